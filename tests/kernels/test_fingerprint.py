"""Linear fingerprints against Python's own integers."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcvol.kernels.fingerprint import fingerprint

pytestmark = pytest.mark.without_mpi

WORD = 2**64
BITS = (1, 1 << 13, 1 << 40)


def oracle(values: NDArray[np.int64], first: int, key: int) -> int:
    total = 0
    for i, value in enumerate(values.tolist()):
        mixed = (key + (first + i + 1) * 0x9E3779B97F4A7C15) % WORD
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % WORD
        total += (mixed ^ (mixed >> 31) | 1) * value
    return total % WORD


def of(values: NDArray[np.int64], first: int = 0, key: int = 2**63 + 5) -> int:
    return int(fingerprint(values, np.uint64(first), np.uint64(key)))


def integers(seed: int, numel: int = 1009) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(-(2**62), 2**62, numel)


@pytest.mark.parametrize("numel", [0, 1, 7, 257])
@pytest.mark.parametrize("first", [0, 1, 2**40])
def test_equals_the_oracle(numel: int, first: int) -> None:
    for key in (0, 1, 2**63 + 5, WORD - 1):
        assert of(integers(numel, numel), first, key) == oracle(integers(numel, numel), first, key)


def test_the_sum_of_fingerprints_is_that_of_the_sum() -> None:
    one, other = integers(1), integers(2)
    assert (of(one) + of(other)) % WORD == of(one + other)
    assert (of(one[:300]) + of(one[300:], 300)) % WORD == of(one)


def test_any_other_vector_has_another() -> None:
    values = integers(3)
    found = {of(values)}
    for place in range(values.size):
        for bit in BITS:
            changed = values.copy()
            changed[place] ^= bit
            found.add(of(changed))
    swapped = values.copy()
    swapped[[0, 1]] = values[[1, 0]]
    found |= {of(swapped), of(values, 1), of(values, key=7)}
    assert len(found) == 1 + 3 * values.size + 3


def test_the_highest_bit_of_one_element_is_always_seen() -> None:
    values = integers(4, 50)
    for key in range(20):
        for place in range(values.size):
            changed = values.copy()
            changed[place] ^= -(2**63)
            assert of(changed, key=key) != of(values, key=key)
