"""Selections: the elements that the CPU's kernels select, to the bit, and residuals likewise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import cuda

from hpcvol.kernels import random_k as random_on_cpu
from hpcvol.kernels import threshold as threshold_on_cpu
from hpcvol.kernels import top_k as top_on_cpu
from hpcvol.kernels.cuda.prefix_sums import TILE
from hpcvol.kernels.cuda.random_k import random_indices, random_k
from hpcvol.kernels.cuda.threshold import threshold
from hpcvol.kernels.cuda.top_k import top_k, top_k_by_radix

pytestmark = [pytest.mark.without_mpi, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
by_feedback = pytest.mark.parametrize("feedback", [False, True])

NUMEL = TILE + 130  # more than one block of threads takes


def normal() -> Any:
    return np.random.default_rng(0).standard_normal(NUMEL)


def non_finite() -> Any:
    values = normal()
    values[::300], values[7::400], values[9::500] = np.nan, -np.inf, np.inf
    return values


GRADIENTS: dict[str, Callable[[], Any]] = {
    "normal": normal,
    "constant": lambda: np.full(NUMEL, -0.5),
    "few magnitudes": lambda: np.round(normal()),
    "denormal": lambda: np.round(normal() * 100) * 1e-45,
    "non-finite": non_finite,
}


def check(on_cpu: Any, on_gpu: Any, x: Any, feedback: bool, parameter: float, room: int) -> int:
    """Select on either side; what was selected, and what was left, has to be the same."""
    residual = x / 2 if feedback else None
    arrays = [x, residual, np.zeros(room, np.int32), np.zeros(room, x.dtype)]
    found = [None if array is None else cuda.to_device(array) for array in arrays]
    wanted_count = on_cpu(*arrays[:2], parameter, *arrays[2:])
    found_count = on_gpu(*found[:2], parameter, *found[2:])
    assert found_count == wanted_count
    count = room if wanted_count is None else int(wanted_count)
    for one, other in zip(found[:2], arrays[:2], strict=True):
        if other is not None:
            np.testing.assert_array_equal(one.copy_to_host(), other)
    for one, other in zip(found[2:], arrays[2:], strict=True):
        np.testing.assert_array_equal(one.copy_to_host()[:count], other[:count])
    return count


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_k_largest(gradient: str) -> None:
    check(top_on_cpu.top_k, top_k, GRADIENTS[gradient]().astype(np.float32), True, 5, 30)


@by_dtype
@by_feedback
@pytest.mark.parametrize(("numel", "k"), [(1, 1), (5, 0), (0, 0), (200, 57)])
def test_any_number_of_the_largest(numel: int, k: int, feedback: bool, dtype: Any) -> None:
    x = np.round(np.random.default_rng(numel).standard_normal(numel) * 3).astype(dtype)
    check(top_on_cpu.top_k, top_k, x, feedback, 5, k)


def test_radix_selection_is_what_top_k_does() -> None:
    x, indices = normal()[:200], cuda.to_device(np.zeros(9, np.int32))
    top_k_by_radix(cuda.to_device(x), indices, cuda.to_device(np.zeros(9)))
    np.testing.assert_array_equal(indices.copy_to_host(), np.sort(np.argsort(-np.abs(x), kind="stable")[:9]))


@by_feedback
def test_a_threshold_stops_where_room_ends(feedback: bool) -> None:
    for room, least in ((0, 0.5), (17, 0.5), (NUMEL, 1.5)):
        check(threshold_on_cpu.threshold, threshold, normal().astype(np.float32), feedback, least, room)


@by_dtype
def test_thresholds_at_both_ends(dtype: Any) -> None:
    x = np.array([0, -0.0, 1e-45, 1, -np.inf, np.nan], dtype)
    for least, wanted in ((0, 6), (np.inf, 2)):
        assert check(threshold_on_cpu.threshold, threshold, x, False, least, 6) == wanted


@by_dtype
@by_feedback
@pytest.mark.parametrize(("numel", "k"), [(1, 1), (5, 0), (7, 7), (300, 130)])
def test_elements_at_random(numel: int, k: int, feedback: bool, dtype: Any) -> None:
    x = np.random.default_rng(0).standard_normal(numel).astype(dtype)
    check(random_on_cpu.random_k, random_k, x, feedback, 7, k)


@pytest.mark.parametrize(("numel", "k"), [(1, 1), (10, 3), (1000, 99), (2**31 - 1, 140)])
def test_random_indices_are_those_of_a_cpu(numel: int, k: int) -> None:
    wraps = 0
    for seed in (0, 1, 2, 12345678901234567, 2**63 - 1):
        wanted, found = np.zeros(k, np.int32), cuda.to_device(np.zeros(k, np.int32))
        random_on_cpu.random_indices(numel, seed, wanted)
        random_indices(numel, seed, found)
        np.testing.assert_array_equal(found.copy_to_host(), wanted)
        wraps += int(wanted[0] < numel // k)
    assert wraps > 0


def test_what_does_not_fit_is_refused() -> None:
    x, indices, values = (cuda.to_device(np.zeros(n, t)) for n, t in ((3, np.float32), (4, np.int32), (4, np.float32)))
    for rule, parameter in ((top_k, 0), (threshold, 0.5), (random_k, 0)):
        with pytest.raises(ValueError, match="than there are"):
            rule(x, None, parameter, indices, values)
        with pytest.raises(ValueError, match="as many values as indices"):
            rule(x, None, parameter, indices, values[:3])
        with pytest.raises(ValueError, match="as long as"):
            rule(x, values, parameter, indices[:2], values[:2])
    for least in (-1.0, np.nan):
        with pytest.raises(ValueError, match="at least 0"):
            threshold(x, None, least, indices[:2], values[:2])
