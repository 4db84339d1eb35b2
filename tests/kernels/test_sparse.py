"""Sparse vectors against dense ones in NumPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.kernels.sparse import add, merge

pytestmark = pytest.mark.without_mpi

by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
index_sets = st.sets(st.integers(0, 30)).map(sorted)


def sparse(indices: list[int], seed: int, dtype: Any) -> tuple[Any, Any]:
    values = np.random.default_rng(seed).standard_normal(len(indices)).astype(dtype)
    return np.array(indices, np.int32), values


@by_dtype
@given(indices=index_sets)
def test_adding_is_what_numpy_does(indices: list[int], dtype: Any) -> None:
    chosen, values = sparse(indices, 0, dtype)
    out = np.random.default_rng(1).standard_normal(31).astype(dtype)
    wanted = out.copy()
    wanted[chosen] += values
    add(chosen, values, out)
    np.testing.assert_array_equal(out, wanted)


@by_dtype
@given(one=index_sets, other=index_sets)
def test_a_merge_is_the_sum(one: list[int], other: list[int], dtype: Any) -> None:
    a, b = sparse(one, 0, dtype), sparse(other, 1, dtype)
    wanted = np.zeros(31, dtype)
    for indices, values in (a, b):
        wanted[indices] += values
    merged = []
    for pair in ((a, b), (b, a)):
        indices, values = np.empty(len(one) + len(other), np.int32), np.empty(len(one) + len(other), dtype)
        count = int(merge(*pair[0], *pair[1], indices, values))
        np.testing.assert_array_equal(indices[:count], sorted({*one, *other}))
        np.testing.assert_array_equal(values[:count], wanted[indices[:count]])
        merged.append((indices[:count].tobytes(), values[:count].tobytes()))
    assert merged[0] == merged[1]


@by_dtype
def test_nan_and_infinity_come_through(dtype: Any) -> None:
    indices = np.arange(4, dtype=np.int32)
    values = np.array([np.nan, np.inf, -np.inf, 1], dtype)
    out, places = np.empty(8, dtype), np.empty(8, np.int32)
    assert merge(indices, values, indices[1:], values[1:], places, out) == 4
    np.testing.assert_array_equal(out[:4], [np.nan, np.inf, -np.inf, 2])
    total = np.zeros(4, dtype)
    add(places[:4], out[:4], total)
    np.testing.assert_array_equal(total, out[:4])


def test_what_would_write_elsewhere_is_refused() -> None:
    out, values = np.zeros(5), np.ones(2)
    for bad in ([0, 5], [-1, 0], [2, 2**31 - 1], [-(2**31), 1]):
        with pytest.raises(ValueError, match="outside"):
            add(np.array(bad, np.int32), values, out)
    with pytest.raises(ValueError, match="as many values"):
        add(np.arange(3, dtype=np.int32), values, out)
    assert not out.any()
    two = np.arange(2, dtype=np.int32)
    with pytest.raises(ValueError, match="room"):
        merge(two, values, two, values, np.empty(3, np.int32), np.empty(4))
    with pytest.raises(ValueError, match="as many values"):
        merge(two, values, two, values[:1], np.empty(4, np.int32), np.empty(4))
