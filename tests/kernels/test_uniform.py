"""Random numbers by counter: evenly spread, and unrelated between seeds and between neighbours."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit

from hpcvol.kernels.lanes import LANES, store
from hpcvol.kernels.permutation import round_keys
from hpcvol.kernels.uniform import uniform

pytestmark = pytest.mark.without_mpi

NUMEL = 1 << 15


@njit  # type: ignore[untyped-decorator]
def fill(keys: Any, first: int, out: Any, dtype: Any) -> None:
    for k in range(0, out.size, LANES):
        store(out, k, uniform(keys, first + k, dtype))


def numbers(seed: int, first: int = 0, dtype: Any = np.float32) -> npt.NDArray[Any]:
    out = np.zeros(NUMEL, dtype)
    fill(round_keys(seed, 0), first, out, dtype)
    return out


def chi_squared(counts: npt.NDArray[Any]) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2).sum() / expected)


# Of 255 degrees of freedom: the mean is 255, the standard deviation 22.6; this is five of them.
LIMIT = 255 + 5 * 22.6


@pytest.mark.parametrize("seed", [0, 1, 2, 3 << 40, 2**63 - 1])
def test_numbers_are_evenly_spread(seed: int) -> None:
    one = numbers(seed)
    assert one.min() > 0
    assert one.max() < 1
    assert chi_squared(np.histogram(one, 256, (0, 1))[0]) < LIMIT


@pytest.mark.parametrize("other_seed", [1, 2, 16, 1 << 32, 1 << 62])
def test_seeds_are_unrelated(other_seed: int) -> None:
    one, other = numbers(0), numbers(other_seed)
    assert chi_squared(np.histogram2d(one, other, 16, [(0, 1), (0, 1)])[0].reshape(-1)) < LIMIT
    assert len(np.intersect1d(one, other)) < 4 * NUMEL**2 / 2**23  # as many are equal by chance, not all


@pytest.mark.parametrize("distance", [1, 2, 16, 256, 4096])
def test_neighbours_are_unrelated(distance: int) -> None:
    one = numbers(7)
    pairs = np.histogram2d(one[:-distance], one[distance:], 16, [(0, 1), (0, 1)])[0]
    assert chi_squared(pairs.reshape(-1)) < LIMIT


def test_numbers_follow_from_the_index() -> None:
    np.testing.assert_array_equal(numbers(5)[160:], numbers(5, 160)[:-160])
    np.testing.assert_array_equal(numbers(5), numbers(5, dtype=np.float64))
