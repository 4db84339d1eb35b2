"""Orthonormal vectors that span what given ones span, to the same bits on every machine.

Gram-Schmidt, each vector freed twice of those before it: once is not enough where vectors are nearly dependent, and
twice is. Inner products are added in double, in the order of `inner`, and all else is element by element.

References:
    Giraud, Langou, Rozložník and van den Eshof, Rounding error analysis of the classical Gram-Schmidt orthogonalization
    process, Numerische Mathematik 2005 ("twice is enough").
"""

import numpy as np
from numba import njit

_LANES = 8
_DEPENDENT = 16  # units in the last place: what rounding leaves of a vector that depends on at most seven others


@njit(nogil=True, cache=True)
def orthogonalise(vectors):  # type: ignore[no-untyped-def]
    """Make the vectors orthonormal, in their order, in place.

    One that depends on those before it, to rounding, becomes 0, and so does its part in any product: who goes on from
    there with the vectors of this step has to draw it anew. NaN and infinity become NaN, in that vector and in those
    after it.

    Args:
        vectors: float32[rank, n] or float64[rank, n], contiguous.

    Returns:
        How many of them are not 0.
    """
    left = 0
    for r in range(vectors.shape[0]):
        vector = vectors[r]
        _divide(vector, _largest(vector))  # so that no square overflows or vanishes
        before = np.sqrt(inner(vector, vector))
        for _ in range(2):
            for s in range(r):
                _subtract_scaled(vectors[s], inner(vectors[s], vector), vector)
        after = np.sqrt(inner(vector, vector))
        if after <= _DEPENDENT * np.finfo(vectors.dtype).eps * before:  # not so where it is NaN
            vector[:] = 0
        else:
            _divide(vector, after)
            left += 1
    return left


@njit(nogil=True, cache=True)
def inner(a, b):  # type: ignore[no-untyped-def]
    """Return Σ a b in double: eight running sums, element i to sum i mod 8, added one after the other at the end.

    Args:
        a: float32[n] or float64[n], contiguous.
        b: likewise.
    """
    sums = np.zeros(_LANES, np.float64)
    whole = a.size // _LANES * _LANES
    for i in range(0, whole, _LANES):
        x, y = a[i : i + _LANES], b[i : i + _LANES]
        for lane in range(_LANES):
            sums[lane] += np.float64(x[lane]) * np.float64(y[lane])
    for i in range(whole, a.size):
        sums[i - whole] += np.float64(a[i]) * np.float64(b[i])
    total = 0.0
    for lane in range(_LANES):
        total += sums[lane]
    return total


@njit(nogil=True, cache=True)
def _largest(vector):  # type: ignore[no-untyped-def]
    largest = vector.dtype.type(0)
    for i in range(vector.size):
        largest = max(largest, abs(vector[i]))
    return largest


@njit(nogil=True, cache=True)
def _divide(vector, divisor):  # type: ignore[no-untyped-def]
    if divisor == 0:
        return
    for i in range(vector.size):
        vector[i] = vector[i] / divisor


@njit(nogil=True, cache=True)
def _subtract_scaled(x, weight, out):  # type: ignore[no-untyped-def]
    for i in range(out.size):
        out[i] = out[i] - weight * x[i]
