"""Indices as gaps: there and back, and never outside."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.kernels import gaps

pytestmark = pytest.mark.without_mpi

by_dtype = pytest.mark.parametrize("dtype", [np.dtype(np.uint8), np.dtype(np.uint16)], ids=str)


@by_dtype
@given(indices=st.sets(st.integers(0, 200_000), max_size=40).map(sorted))
def test_there_and_back(indices: list[int], dtype: Any) -> None:
    wanted = np.array(indices, np.int32)
    codes = np.zeros(gaps.room(wanted.size, 200_001, dtype), dtype)
    used = gaps.encode(wanted, codes)
    found = np.zeros_like(wanted)
    gaps.decode(codes[:used], 200_001, found)
    np.testing.assert_array_equal(found, wanted)


@by_dtype
def test_the_largest_gaps(dtype: Any) -> None:
    largest = int(np.iinfo(dtype).max)
    for gap in (largest - 1, largest, largest + 1, 3 * largest):
        wanted = np.array([gap, 2 * gap + 1], np.int32)
        codes = np.zeros(gaps.room(2, 2 * gap + 2, dtype), dtype)
        used = gaps.encode(wanted, codes)
        found = np.zeros_like(wanted)
        gaps.decode(codes[:used], 2 * gap + 2, found)
        np.testing.assert_array_equal(found, wanted)


@by_dtype
@given(codes=st.lists(st.integers(0, 255), max_size=20), count=st.integers(0, 20))
def test_whatever_comes_in_indices_are_inside(codes: list[int], count: int, dtype: Any) -> None:
    found = np.zeros(count, np.int32)
    try:
        gaps.decode(np.array(codes, dtype), 1000, found)
    except ValueError:
        return
    assert np.all(np.diff(found) > 0)
    assert np.all((found >= 0) & (found < 1000))
