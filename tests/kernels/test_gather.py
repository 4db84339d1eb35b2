import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcvol.kernels.gather import bucket_table, first_outside, gather_ragged, gather_rows, unchecked_blocks

pytestmark = pytest.mark.without_mpi


def regions(
    rng: np.random.Generator, rows: list[int], row_nbytes: int
) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    memory = [rng.integers(0, 256, (count, row_nbytes), dtype=np.uint8) for count in rows]
    return memory, np.cumsum([0, *rows]).astype(np.int64)


def addresses(memory: list[NDArray[np.uint8]]) -> NDArray[np.int64]:
    return np.array([array.ctypes.data for array in memory], np.int64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(1, 3000), st.integers(0, 60), st.integers(0, 99)
)
def test_gather_rows_equals_numpy(rows: list[int], row_nbytes: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    memory, starts = regions(rng, rows, row_nbytes)
    buckets, shift = bucket_table(starts)
    indices = rng.integers(0, starts[-1], count)
    out = np.full((count + 1, row_nbytes), 77, np.uint8)
    gather_rows(addresses(memory), starts, buckets, shift, row_nbytes, row_nbytes, indices, out[:count].reshape(-1))
    np.testing.assert_array_equal(out[:count], np.concatenate(memory)[indices])
    assert (out[count] == 77).all()  # nothing written past the end


def test_gather_rows_with_a_stride_of_its_own() -> None:
    """Two values of a row that overlaps the next: how the bounds of ragged rows are read."""
    offsets = [np.array([0, 3, 3, 9], np.int64), np.array([0, 5], np.int64)]
    starts = np.array([0, 3, 4], np.int64)
    buckets, shift = bucket_table(starts)
    out = np.empty((4, 2), np.int64)
    bases = np.array([array.ctypes.data for array in offsets], np.int64)
    gather_rows(bases, starts, buckets, shift, 8, 16, np.array([3, 0, 1, 2]), out.reshape(-1).view(np.uint8))
    assert out.tolist() == [[0, 5], [0, 3], [3, 3], [3, 9]]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_gather_ragged_equals_numpy(lengths: list[list[int]], item_nbytes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    memory, _ = regions(rng, [max(1, sum(region)) for region in lengths], item_nbytes)
    starts = np.cumsum([0, *(len(region) for region in lengths)]).astype(np.int64)
    buckets, shift = bucket_table(starts)
    ends = [np.cumsum(region) for region in lengths]
    every = np.array(
        [(e - n, e) for region, n_s in zip(ends, lengths, strict=True) for e, n in zip(region, n_s, strict=True)]
    )
    indices = rng.integers(0, starts[-1], 13)
    bounds = np.ascontiguousarray(every[indices], np.int64)
    longest = int((bounds[:, 1] - bounds[:, 0]).max())
    out = np.full((13, longest, item_nbytes), 77, np.uint8)
    gather_ragged(addresses(memory), starts, buckets, shift, item_nbytes, indices, bounds, out.reshape(-1))
    for i, row in enumerate(indices):
        region = int(np.searchsorted(starts, row, side="right")) - 1
        begin, end = bounds[i]
        np.testing.assert_array_equal(out[i, : end - begin], memory[region][begin:end])
        assert not out[i, end - begin :].any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40))
def test_bucket_table_starts_at_or_before_the_region(rows: list[int]) -> None:
    starts = np.cumsum([0, *rows]).astype(np.int64)
    buckets, shift = bucket_table(starts)
    every = np.arange(starts[-1])
    region = np.searchsorted(starts, every, side="right") - 1
    assert (buckets[every >> shift] <= region).all()
    assert len(buckets) <= 8 * len(rows) + 1


@pytest.mark.parametrize(("indices", "expected"), [([0, 4], -1), ([], -1), ([0, 5, 9], 1), ([-1], 0), ([4, -9], 1)])
def test_first_outside(indices: list[int], expected: int) -> None:
    assert first_outside(np.array(indices, np.int64), 5) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(1, 40), st.integers(0, 99))
def test_unchecked_blocks_equals_every_byte_looked_at(rows: list[int], stride: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *rows]).astype(np.int64)
    buckets, shift = bucket_table(starts)
    origins = (np.cumsum([0, *(count * stride + 64 for count in rows)])[:-1]).astype(np.int64)
    checked = rng.integers(0, 2, 4096 // 16 + sum(rows) * stride).astype(np.uint8)
    indices = rng.integers(0, starts[-1], 9)
    span = np.array([[0, stride]], np.int64)
    out = np.empty(9 * (stride // 16 + 2), np.int64)
    found = unchecked_blocks(origins, starts, buckets, shift, stride, indices, span, 4, checked, out)
    expected = set()
    for row in indices.tolist():
        region = int(np.searchsorted(starts, row, side="right")) - 1
        first = int(origins[region] + (row - starts[region]) * stride)
        expected |= {byte // 16 for byte in range(first, first + stride) if not checked[byte // 16]}
    assert set(out[:found].tolist()) == expected


def test_the_same_tests_pass_without_the_compiler() -> None:
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("this is the run without the compiler")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert "1 skipped" in run.stdout
