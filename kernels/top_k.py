"""Selection of the k elements of largest magnitude: exactly k, the lower index first where magnitudes are equal.

Magnitudes are the bits of |x|: infinity is above all numbers and NaN above infinity, so that it is sent and not hidden.

A threshold is taken from elements drawn at random, somewhat below where the k-th largest should be. One pass over
memory collects what reaches it; of these the k largest are kept. Where so many reach it that room runs out, they are
trimmed on the way, and the threshold rises above what the k-th of them has. Where fewer than k reach it, which has a
chance below one in a thousand whatever the values are, radix selection looks at all of them again.

References:
    Lin, Han, Mao, Wang and Dally, Deep Gradient Compression, ICLR 2018 (sampled thresholds).
"""

import numpy as np
from numba import njit

from hpcvol.kernels.magnitude import ABOVE_ALL, magnitude
from hpcvol.kernels.radix import kth_magnitude
from hpcvol.kernels.random_k import random_indices
from hpcvol.kernels.sparse import check
from hpcvol.kernels.survivors import collect

_SAMPLE = 1 << 14  # at most: a larger one takes longer to draw than it saves in survivors
_ROOM = 1 << 12  # beyond 2 k, so that a trim has enough to trim where k is small


@njit(nogil=True, cache=True)
def top_k(x, residual, seed, indices, values):  # type: ignore[no-untyped-def]
    """Select the k elements of largest magnitude.

    Args:
        x: float32[n] or float64[n], contiguous, n below 2^31, left alone.
        residual: of the dtype of `x`, [n], added to `x`, and then what was not selected, 0 elsewhere; or None.
        seed: of the sample, 0 to 2^63 - 1. It has a say in the time that this takes and in nothing else: another one in
            every call, and no gradient is slow each time.
        indices: int32[k], k at most n; overwritten: ascending.
        values: of the dtype of `x`, [k]; overwritten.

    Raises:
        ValueError: lengths do not fit; nothing was changed.
    """
    check(x, residual, indices, values)
    k = indices.size
    found = _collect_largest(x, residual, _sampled_threshold(x, residual, seed, k), indices, values)
    if found == k:
        return
    if residual is None:
        top_k_by_radix(x, indices, values)
    else:
        for i in range(found):
            residual[indices[i]] = values[i]
        top_k_by_radix(residual, indices, values)
        for i in range(k):
            residual[indices[i]] = 0


@njit(nogil=True, cache=True)
def top_k_by_radix(x, indices, values):  # type: ignore[no-untyped-def]
    """Select the k elements of largest magnitude by radix selection alone; arguments as for `top_k`."""
    check(x, None, indices, values)
    if indices.size > 0:
        _collect_largest(x, None, kth_magnitude(x, indices.size)[0], indices, values)


@njit(nogil=True, cache=True)
def _sampled_threshold(x, residual, seed, k):  # type: ignore[no-untyped-def]
    """Return a magnitude that, almost certainly, at least k elements reach, and few more where k is large."""
    if k == 0:
        return ABOVE_ALL
    places = np.empty(min(_SAMPLE, (x.size + 7) // 8), np.int32)
    random_indices(x.size, seed, places)
    # Of the k largest a sample has Poisson-distributed many; this is beyond what it has in all but 1e-4 of cases.
    expected = k / x.size * places.size
    rank = int(expected + 3.5 * np.sqrt(expected) + 4)
    if rank > places.size:
        return np.int64(0)
    sample = np.empty(places.size, x.dtype)
    for i in range(places.size):
        sample[i] = x[places[i]]
        if residual is not None:
            sample[i] += residual[places[i]]
    return kth_magnitude(sample, rank)[0]


@njit(nogil=True, cache=True)
def _collect_largest(x, residual, threshold, indices, values):  # type: ignore[no-untyped-def]
    """Take the k largest of the elements whose magnitude reaches the threshold, or all where these are fewer.

    Returns:
        How many were taken.
    """
    k = indices.size
    room = min(x.size, 2 * k + _ROOM)
    some_indices, some_values = np.empty(room, np.int32), np.empty(room, x.dtype)
    start = found = 0
    while start < x.size:
        start, found = collect(x, residual, start, threshold, some_indices, some_values, found)
        if found > k:
            threshold = _trim(residual, k, some_indices[:found], some_values[:found]) + 1
            found = k
    indices[:found] = some_indices[:found]
    values[:found] = some_values[:found]
    return found


@njit(nogil=True, cache=True)
def _trim(residual, k, indices, values):  # type: ignore[no-untyped-def]
    """Keep the k largest elements, at the front, and put the others back; return the magnitude of the k-th."""
    kth, num_equal = kth_magnitude(values, k)
    others = np.empty(indices.size - k + 1, np.int32)
    their_values = np.empty(others.size, values.dtype)
    kept = dropped = np.uint64(0)
    # No branch: one in five is dropped, and which cannot be guessed. Each is written to both, and stays in one.
    for i in range(indices.size):
        index, value = indices[i], values[i]
        size = magnitude(value)
        is_equal = size == kth
        keeps = np.uint64((size > kth) | (is_equal & (num_equal > 0)))
        num_equal -= int(is_equal)
        indices[kept], values[kept] = index, value
        others[dropped], their_values[dropped] = index, value
        kept += keeps
        dropped += np.uint64(1) - keeps
    if residual is not None:
        for i in range(dropped):
            residual[others[i]] = their_values[i]
    return kth
