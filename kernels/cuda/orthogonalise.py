"""Orthonormal vectors that span what given ones span, as in `hpcvol.kernels.orthogonalise`.

Inner products are added in double, but in another order than on a CPU: as many running sums as there are threads. How
many follows from the length alone, so that every GPU computes the same bits; a CPU's differ in the last place.
"""

import math
from typing import Any

import numpy as np
from numba import cuda

from hpcvol.kernels.cuda.lanes import product
from hpcvol.kernels.cuda.launch import on_device, zeros

_MOST_THREADS = 1024
_NUMEL = 8  # elements that a thread has at least, where there are fewer threads
_DEPENDENT = 16  # units in the last place, as on a CPU


@cuda.jit(device=True)
def _total(value):  # type: ignore[no-untyped-def]
    """Return the sum of what the threads hold: the upper half is added to the lower one, and so on."""
    cells = cuda.shared.array(_MOST_THREADS, np.float64)
    thread, half = cuda.threadIdx.x, cuda.blockDim.x // 2
    cells[thread] = value
    while half > 0:
        cuda.syncthreads()
        if thread < half:
            cells[thread] += cells[thread + half]
        half //= 2
    cuda.syncthreads()
    total = cells[0]
    cuda.syncthreads()
    return total


@cuda.jit(device=True)
def _largest(vector):  # type: ignore[no-untyped-def]
    """Return the largest magnitude; NaNs do not count, and come out of the inner products."""
    cells = cuda.shared.array(_MOST_THREADS, np.float64)
    thread, half, largest = cuda.threadIdx.x, cuda.blockDim.x // 2, np.float64(0)
    for i in range(thread, vector.size, cuda.blockDim.x):
        largest = max(largest, np.float64(abs(vector[i])))
    cells[thread] = largest
    while half > 0:
        cuda.syncthreads()
        if thread < half:
            cells[thread] = max(cells[thread], cells[thread + half])
        half //= 2
    cuda.syncthreads()
    largest = cells[0]
    cuda.syncthreads()
    return largest


@cuda.jit(device=True)
def _inner(a, b):  # type: ignore[no-untyped-def]
    added = np.float64(0)
    for i in range(cuda.threadIdx.x, a.size, cuda.blockDim.x):
        added += product(np.float64(a[i]), np.float64(b[i]))
    return _total(added)


@cuda.jit(device=True)
def _divide(vector, divisor):  # type: ignore[no-untyped-def]
    if divisor != 0:
        for i in range(cuda.threadIdx.x, vector.size, cuda.blockDim.x):
            vector[i] = np.float64(vector[i]) / divisor


@cuda.jit(device=True)
def _subtract_scaled(x, weight, out):  # type: ignore[no-untyped-def]
    for i in range(cuda.threadIdx.x, out.size, cuda.blockDim.x):
        out[i] = np.float64(out[i]) - product(weight, np.float64(x[i]))


@cuda.jit
def _orthogonalise(vectors, dependent, left):  # type: ignore[no-untyped-def]
    """One block of threads; each has elements of its own, and all have the same sums."""
    for r in range(vectors.shape[0]):
        vector = vectors[r]
        _divide(vector, _largest(vector))  # so that no square overflows or vanishes
        before = math.sqrt(_inner(vector, vector))
        for _ in range(2):
            for s in range(r):
                _subtract_scaled(vectors[s], _inner(vectors[s], vector), vector)
        after = math.sqrt(_inner(vector, vector))
        if after <= dependent * before:  # not so where it is NaN
            for i in range(cuda.threadIdx.x, vector.size, cuda.blockDim.x):
                vector[i] = 0
        else:
            _divide(vector, after)
            if cuda.threadIdx.x == 0:
                left[0] += 1


def orthogonalise(vectors: Any) -> int:
    """Make the vectors orthonormal, in their order, in place.

    One that depends on those before it, to rounding, becomes 0, and so does its part in any product: who goes on from
    there with the vectors of this step has to draw it anew. NaN and infinity become NaN, in that vector and in those
    after it.

    Args:
        vectors: float32[rank, n] or float64[rank, n], contiguous.

    Returns:
        How many of them are not 0.
    """
    vectors = on_device(vectors)
    if not vectors.size:
        return 0
    dependent, left = _DEPENDENT * float(np.finfo(vectors.dtype).eps), zeros(1, np.int32)
    threads = 32
    while threads < _MOST_THREADS and threads * _NUMEL < vectors.shape[1]:
        threads *= 2
    _orthogonalise[1, threads](vectors, dependent, left)
    return int(left.copy_to_host()[0])
