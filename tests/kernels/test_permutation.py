import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcvol.kernels.permutation import NUM_ROUNDS, permute, round_keys

pytestmark = pytest.mark.without_mpi


def hash32(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    low = np.uint64(0xFFFFFFFF)
    x = (x ^ (x >> np.uint64(16))) * np.uint64(0x7FEB352D) & low
    x = (x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B) & low
    return x ^ (x >> np.uint64(16))


def permute_oracle(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The whole permutation in NumPy, by another route: all values of the power of two, then walked."""
    bits = (num_samples - 1).bit_length()
    left_bits = np.uint64(bits // 2)
    right_bits = np.uint64(bits - bits // 2)
    one = np.uint64(1)
    left_mask, right_mask = (one << left_bits) - one, (one << right_bits) - one
    x = np.arange(1 << bits, dtype=np.uint64)
    left, right = x >> right_bits, x & right_mask
    for i, key in enumerate(round_keys(seed, epoch).astype(np.uint64)):
        if i % 2 == 0:
            left = left ^ (hash32(right ^ key) & left_mask)
        else:
            right = right ^ (hash32(left ^ key) & right_mask)
    cipher = ((left << right_bits) | right).astype(np.int64)
    out = cipher[:num_samples]
    while (out >= num_samples).any():
        out = np.where(out >= num_samples, cipher[out], out)
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.data())
def test_equals_the_oracle_wherever_it_is_cut(num_samples: int, seed: int, epoch: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, num_samples))
    count = data.draw(st.integers(0, num_samples - start))
    out = np.empty(count, np.int64)
    permute(num_samples, seed, epoch, start, out)
    np.testing.assert_array_equal(out, permute_oracle(num_samples, seed, epoch)[start : start + count])


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 63, 64, 65, 4097])
def test_is_a_permutation(num_samples: int) -> None:
    out = np.empty(num_samples, np.int64)
    permute(num_samples, 7, 0, 0, out)
    np.testing.assert_array_equal(np.sort(out), np.arange(num_samples))


def test_large_domains_stay_inside() -> None:
    for num_samples in (2**31 + 1, 2**40 - 5, 2**62 + 3):
        out = np.empty(100, np.int64)
        permute(num_samples, 1, 2, num_samples - 100, out)
        assert out.min() >= 0
        assert out.max() < num_samples
        assert len(np.unique(out)) == 100


def test_neighbours_part_ways() -> None:
    """Of a random permutation of n values about one neighbour pair stays adjacent, and about n/2 values go up."""
    num_samples = 10_000
    out = np.empty(num_samples, np.int64)
    permute(num_samples, 5, 3, 0, out)
    steps = np.diff(out)
    assert (np.abs(steps) == 1).sum() < 15
    assert abs((steps > 0).mean() - 0.5) < 0.03
    assert (out == np.arange(num_samples)).sum() < 10


def test_small_domains_reach_every_permutation() -> None:
    seen = set()
    out = np.empty(4, np.int64)
    for epoch in range(2000):
        permute(4, 0, epoch, 0, out)
        seen.add(tuple(out.tolist()))
    assert len(seen) == 24


def test_keys_are_words_of_32_bits() -> None:
    keys = round_keys(2**63 - 1, 2**63 - 1)
    assert len(set(keys.tolist())) == NUM_ROUNDS
    assert keys.min() >= 0
    assert keys.max() < 2**32


def test_same_bits_without_the_compiler() -> None:
    """The body is plain Python too: NUMBA_DISABLE_JIT=1 gives the same values, and no overflow warning."""
    code = (
        "import numpy as np; from hpcvol.kernels.permutation import permute; o = np.empty(50, np.int64); "
        "permute(1000, 2**63 - 1, 12345678901234567, 900, o); print(o.tolist())"
    )
    plain = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    out = np.empty(50, np.int64)
    permute(1000, 2**63 - 1, 12345678901234567, 900, out)
    assert plain.stdout.strip() == str(out.tolist())
