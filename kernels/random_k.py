"""Selection at random: k elements, one of each of k strata, the same ones wherever the seed is the same.

Strata are k runs of neighbours, as equally long as whole numbers allow, and where the first one begins is drawn too: so
each element is chosen with the probability k / n, and values scaled by n / k are unbiased. Draws are hashes of the seed
and of the stratum: indices need not be sent, and reading the elements goes forward through memory.

References:
    Stich, Cordonnier and Jaggi, Sparsified SGD with memory, NeurIPS 2018 (random-k).
    Wellons, hash-prospector: the 32-bit hash "lowbias32".
"""

import numpy as np
from numba import njit

from hpcvol.kernels.permutation import hash32, round_keys
from hpcvol.kernels.sparse import check

_BLOCK = 4096
_OFFSET = 2**31  # a stratum that there is none of


@njit(nogil=True, cache=True)
def random_k(x, residual, seed, indices, values):  # type: ignore[no-untyped-def]
    """Select k elements at random.

    Args:
        x: float32[n] or float64[n], contiguous, n below 2^31, left alone.
        residual: of the dtype of `x`, [n], added to `x`, and then what was not selected, 0 elsewhere; or None.
        seed: 0 to 2^63 - 1; a seed and n and k have their indices, on any machine.
        indices: int32[k], k at most n; overwritten: ascending.
        values: of the dtype of `x`, [k]; overwritten. Not scaled: with a residual nothing is missing in the long run.

    Raises:
        ValueError: lengths do not fit; nothing was changed.
    """
    check(x, residual, indices, values)
    random_indices(x.size, seed, indices)
    if residual is None:
        for i in range(indices.size):
            values[i] = x[np.uint64(indices[i])]
    else:
        _take_corrected(x, residual, indices, values)


@njit(nogil=True, cache=True)
def _take_corrected(x, residual, indices, values):  # type: ignore[no-untyped-def]
    taken = 0
    for start in range(0, x.size, _BLOCK):
        added, corrected = x[start : start + _BLOCK], residual[start : start + _BLOCK]
        for i in range(corrected.size):
            corrected[i] += added[i]
        while taken < indices.size and indices[taken] < start + corrected.size:
            values[taken] = residual[indices[taken]]
            residual[indices[taken]] = 0
            taken += 1


@njit(nogil=True, cache=True)
def random_indices(numel, seed, indices):  # type: ignore[no-untyped-def]
    """Write the indices that `random_k` selects.

    Args:
        numel: n, below 2^31.
        seed: as for `random_k`.
        indices: int32[k], k at most n; overwritten: ascending.
    """
    k = indices.size
    if k == 0:
        return
    keys = round_keys(seed, 0)
    first, second, third = int(keys[0]), int(keys[1]), int(keys[2])
    offset = _below(numel, _OFFSET, first, second, third)
    # Stratum i begins at (i * n + offset) // k; the last one may reach over the end, and goes on at the beginning.
    begin = ((k - 1) * numel + offset) // k
    last = begin + _below(numel + offset // k - begin, k - 1, first, second, third)
    wraps = int(last >= numel)
    indices[(k - 1 + wraps) % k] = last - numel * wraps
    begin, rest = offset // k, offset % k
    begins, lengths = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    for start in range(0, k - 1, _BLOCK):
        block = indices[start + wraps : min(start + _BLOCK, k - 1) + wraps]
        for i in range(block.size):
            rest += numel % k
            longer = int(rest >= k)
            rest -= k * longer
            begins[i] = begin
            lengths[i] = numel // k + longer
            begin += lengths[i]
        for i in range(block.size):  # on its own, so that the hashes are computed several at a time
            block[i] = begins[i] + _below(lengths[i], start + i, first, second, third)


@njit(nogil=True, cache=True)
def _below(limit, stratum, first, second, third):  # type: ignore[no-untyped-def]
    """Return a number from 0 to limit - 1, limit below 2^31: a fraction of 64 hashed bits, times the limit."""
    high = hash32(hash32(stratum ^ first) ^ second)
    low = hash32(high ^ third)
    return (high * limit + (low * limit >> 32)) >> 32
