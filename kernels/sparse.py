"""Sparse vectors: some elements of a long vector as their indices, ascending, and their values. What is left out is 0.

Indices are int32, values float32 or float64. Both come over a wire: indices that would write elsewhere are refused.
"""

import numpy as np
from numba import njit

from hpcvol.kernels.gather import first_outside

MAX_NUMEL = 2**31 - 1


@njit(nogil=True, cache=True)
def check(x, residual, indices, values):  # type: ignore[no-untyped-def]
    """Raise a ValueError if not at most n elements of `x` and `residual`, both [n], can be written to the others."""
    if x.size > MAX_NUMEL:
        raise ValueError("indices are int32, so that a sparse vector has less than 2^31 elements")
    if residual is not None and residual.size != x.size:
        raise ValueError("a residual is as long as what it is added to")
    if indices.size != values.size:
        raise ValueError("a sparse vector has as many values as indices")
    if indices.size > x.size:
        raise ValueError("no more elements can be selected than there are")


@njit(nogil=True, cache=True)
def add(indices, values, out):  # type: ignore[no-untyped-def]
    """Add a sparse vector: out[indices] += values, in place.

    Args:
        indices: int32[k], each in 0 to n - 1, and none twice.
        values: of the dtype of `out`, [k].
        out: float32[n] or float64[n].

    Raises:
        ValueError: an index is outside of `out`, or there are not as many values; `out` is as it was.
    """
    if indices.size != values.size:
        raise ValueError("a sparse vector has as many values as indices")
    if first_outside(indices, out.size) >= 0:
        raise ValueError("an index of a sparse vector is outside of the vector that it is added to")
    for i in range(indices.size):
        out[np.uint64(indices[i])] += values[i]


@njit(nogil=True, cache=True)
def merge(a_indices, a_values, b_indices, b_values, indices, values):  # type: ignore[no-untyped-def]
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
    if min(indices.size, values.size) < a_indices.size + b_indices.size:
        raise ValueError("the sum of two sparse vectors takes room for the elements of both")
    if a_indices.size != a_values.size or b_indices.size != b_values.size:
        raise ValueError("a sparse vector has as many values as indices")
    i, j, end = np.uint64(0), np.uint64(0), np.uint64(0)
    # No branch but the loop's: which of the two comes next cannot be guessed.
    while i < a_indices.size and j < b_indices.size:
        from_a, from_b = a_indices[i] <= b_indices[j], b_indices[j] <= a_indices[i]
        indices[end] = a_indices[i] if from_a else b_indices[j]
        one = a_values[i] if from_a else b_values[j]
        values[end] = a_values[i] + b_values[j] if from_a and from_b else one
        i += np.uint64(from_a)
        j += np.uint64(from_b)
        end += np.uint64(1)
    return _append(
        b_indices[j:], b_values[j:], indices, values, _append(a_indices[i:], a_values[i:], indices, values, end)
    )


@njit(nogil=True, cache=True)
def _append(more_indices, more_values, indices, values, end):  # type: ignore[no-untyped-def]
    stop = end + np.uint64(more_indices.size)
    indices[end:stop] = more_indices
    values[end:stop] = more_values
    return stop
