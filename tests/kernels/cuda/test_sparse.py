"""Sparse vectors: the sums that the CPU's kernels make, to the bit."""

from typing import Any

import numpy as np
import pytest
from numba import cuda

from hpcvol.kernels import sparse as on_cpu
from hpcvol.kernels.cuda.prefix_sums import TILE, prefix_sums
from hpcvol.kernels.cuda.sparse import add, merge

pytestmark = pytest.mark.without_mpi

by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def sparse(count: int, seed: int, dtype: Any) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return np.sort(rng.permutation(100)[:count]).astype(np.int32), rng.standard_normal(count).astype(dtype)


@by_dtype
@pytest.mark.parametrize(("one", "other"), [(0, 0), (0, 5), (5, 0), (50, 60), (100, 100)])
def test_merging_and_adding(one: int, other: int, dtype: Any) -> None:
    a, b, room = sparse(one, 0, dtype), sparse(other, 1, dtype), one + other
    wanted = np.zeros(room, np.int32), np.zeros(room, dtype)
    found = [cuda.to_device(array) for array in wanted]
    count = int(on_cpu.merge(*a, *b, *wanted))
    assert merge(*map(cuda.to_device, (*a, *b)), *found) == count
    for array, expected in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(array.copy_to_host()[:count], expected[:count])
    total = np.ones(100, dtype)
    on_gpu = cuda.to_device(total)
    on_cpu.add(*a, total)
    add(*map(cuda.to_device, a), on_gpu)
    np.testing.assert_array_equal(on_gpu.copy_to_host(), total)


def test_what_would_write_elsewhere_is_refused() -> None:
    out, values = cuda.to_device(np.zeros(5)), cuda.to_device(np.ones(2))
    for bad in ([0, 5], [-1, 0], [2, 2**31 - 1], [-(2**31), 1]):
        with pytest.raises(ValueError, match="outside"):
            add(cuda.to_device(np.array(bad, np.int32)), values, out)
    two = cuda.to_device(np.arange(2, dtype=np.int32))
    with pytest.raises(ValueError, match="as many values"):
        add(two, out, out)
    assert not out.copy_to_host().any()
    with pytest.raises(ValueError, match="room"):
        merge(two, values, two, values, two, out)
    with pytest.raises(ValueError, match="as many values"):
        merge(two, values, two, values[:1], cuda.to_device(np.zeros(4, np.int32)), out)


@pytest.mark.parametrize("numel", [1, 17, TILE + 1])
def test_sums_of_what_stands_before(numel: int) -> None:
    values = np.random.default_rng(numel).integers(0, 1 << 40, numel)
    found = cuda.to_device(values)
    prefix_sums(found)
    np.testing.assert_array_equal(found.copy_to_host(), np.cumsum(values) - values)
