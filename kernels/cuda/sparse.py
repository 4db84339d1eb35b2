"""Sparse vectors on a GPU, as in `hpcvol.kernels.sparse`: sums are the same, to the bit."""

from typing import Any

import numpy as np
from numba import cuda

from hpcvol.kernels import sparse as on_cpu
from hpcvol.kernels.cuda.launch import THREADS, blocks_for, on_device, zeros
from hpcvol.kernels.cuda.prefix_sums import prefix_sums


def check(x: Any, residual: Any, indices: Any, values: Any) -> None:
    """Raise a ValueError if not at most n elements of `x` and `residual`, both [n], can be written to the others."""
    plain = getattr(on_cpu.check, "py_func", on_cpu.check)  # it looks at nothing but lengths
    plain(x, residual, indices, values)


@cuda.jit
def _find_outside(indices, numel, outside):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        if indices[i] < 0 or indices[i] >= numel:
            outside[0] = 1


@cuda.jit
def _add(indices, values, out):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        out[indices[i]] += values[i]


def add(indices: Any, values: Any, out: Any) -> None:
    """Add a sparse vector: out[indices] += values, in place.

    Args:
        indices: int32[k], each in 0 to n - 1, and none twice.
        values: of the dtype of `out`, [k].
        out: float32[n] or float64[n].

    Raises:
        ValueError: an index is outside of `out`, or there are not as many values; `out` is as it was.
    """
    indices, values, out = on_device(indices), on_device(values), on_device(out)
    if indices.size != values.size:
        raise ValueError("a sparse vector has as many values as indices")
    if not indices.size:
        return
    outside, blocks = zeros(1, np.int32), blocks_for(indices.size)
    _find_outside[blocks, THREADS](indices, out.size, outside)
    if outside.copy_to_host()[0]:
        raise ValueError("an index of a sparse vector is outside of the vector that it is added to")
    _add[blocks, THREADS](indices, values, out)


@cuda.jit(device=True)
def _num_below(indices, index):  # type: ignore[no-untyped-def]
    """Return how many of ascending indices are below one."""
    low, high = np.int64(0), np.int64(indices.size)
    while low < high:
        middle = (low + high) >> 1
        if indices[middle] < index:
            low = middle + 1
        else:
            high = middle
    return low


@cuda.jit(device=True)
def _holds(indices, place, index):  # type: ignore[no-untyped-def]
    return place < indices.size and indices[place] == index


@cuda.jit
def _find_common(a_indices, b_indices, common):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), a_indices.size, cuda.gridsize(1)):
        index = a_indices[i]
        common[i] = 1 if _holds(b_indices, _num_below(b_indices, index), index) else 0
    if cuda.grid(1) == 0:
        common[a_indices.size] = 0


@cuda.jit
def _merge(a_indices, a_values, b_indices, b_values, common, indices, values):  # type: ignore[no-untyped-def]
    """Write each element behind those below it, of either side; what both have is a's."""
    for i in range(cuda.grid(1), a_indices.size, cuda.gridsize(1)):
        index, value = a_indices[i], a_values[i]
        j = _num_below(b_indices, index)
        place = i + j - common[i]
        indices[place] = index
        values[place] = value + b_values[j] if _holds(b_indices, j, index) else value
    for j in range(cuda.grid(1), b_indices.size, cuda.gridsize(1)):
        index = b_indices[j]
        i = _num_below(a_indices, index)
        if not _holds(a_indices, i, index):
            place = i + j - common[i]
            indices[place] = index
            values[place] = b_values[j]


def merge(a_indices: Any, a_values: Any, b_indices: Any, b_values: Any, indices: Any, values: Any) -> int:
    """Write the sum of two sparse vectors; commutative to the bit, so that two ranks that exchange theirs agree.

    Args:
        a_indices: int32[m], ascending.
        a_values: float32[m] or float64[m].
        b_indices: int32[n], ascending.
        b_values: of the dtype of `a_values`, [n].
        indices: int32[at least m + n], written: ascending.
        values: of the dtype of `a_values`, as long as `indices`, written.

    Returns:
        How many elements the sum has: m + n less those that both have.

    Raises:
        ValueError: `indices` or `values` is too short, or one of the two has not as many values as indices.
    """
    a, b = (on_device(a_indices), on_device(a_values)), (on_device(b_indices), on_device(b_values))
    indices, values = on_device(indices), on_device(values)
    room = a[0].size + b[0].size
    if min(indices.size, values.size) < room:
        raise ValueError("the sum of two sparse vectors takes room for the elements of both")
    if a[0].size != a[1].size or b[0].size != b[1].size:
        raise ValueError("a sparse vector has as many values as indices")
    if not room:
        return 0
    common = cuda.device_array(a[0].size + 1, np.int64)
    _find_common[blocks_for(a[0].size), THREADS](a[0], b[0], common)
    prefix_sums(common)
    _merge[blocks_for(room), THREADS](*a, *b, common, indices, values)
    return int(room - common[a[0].size :].copy_to_host()[0])
