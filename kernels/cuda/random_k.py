"""Selection at random, as in `hpcvol.kernels.random_k`: a seed and n and k have the same indices as on a CPU."""

from typing import Any

import numpy as np
from numba import cuda

from hpcvol.kernels.cuda.launch import THREADS, blocks_for, on_device
from hpcvol.kernels.cuda.selected import correct, take
from hpcvol.kernels.cuda.sparse import check
from hpcvol.kernels.permutation import hash32, round_keys

_OFFSET = 2**31  # a stratum that there is none of


@cuda.jit(device=True)
def _below(limit, stratum, first, second, third):  # type: ignore[no-untyped-def]
    """Return a number from 0 to limit - 1, limit below 2^31: a fraction of 64 hashed bits, times the limit."""
    high = hash32(hash32(stratum ^ first) ^ second)
    low = hash32(high ^ third)
    return (high * limit + (low * limit >> 32)) >> 32


@cuda.jit
def _random_indices(numel, first, second, third, indices):  # type: ignore[no-untyped-def]
    """Write one index of each stratum: the last one may reach over the end, and then its index is the first."""
    k = indices.size
    offset = _below(numel, _OFFSET, first, second, third)
    begin = ((k - 1) * numel + offset) // k
    last = begin + _below(numel + offset // k - begin, k - 1, first, second, third)
    wraps = 1 if last >= numel else 0
    for i in range(cuda.grid(1), k, cuda.gridsize(1)):
        if i == k - 1:
            indices[(k - 1 + wraps) % k] = last - numel * wraps
        else:
            begin = (np.int64(i) * numel + offset) // k
            end = (np.int64(i + 1) * numel + offset) // k
            indices[i + wraps] = begin + _below(end - begin, i, first, second, third)


def random_indices(numel: int, seed: int, indices: Any) -> None:
    """Write the indices that `random_k` selects.

    Args:
        numel: n, below 2^31.
        seed: as for `random_k`.
        indices: int32[k], k at most n; overwritten: ascending.
    """
    indices = on_device(indices)
    first, second, third = (int(key) for key in round_keys(seed, 0)[:3])
    if indices.size:
        _random_indices[blocks_for(indices.size), THREADS](numel, first, second, third, indices)


def random_k(x: Any, residual: Any, seed: int, indices: Any, values: Any) -> None:
    """Select k elements at random.

    Args:
        x: float32[n] or float64[n], n below 2^31, left alone.
        residual: of the dtype of `x`, [n], added to `x`, and then what was not selected, 0 elsewhere; or None.
        seed: 0 to 2^63 - 1; a seed and n and k have their indices, on any machine.
        indices: int32[k], k at most n; overwritten: ascending.
        values: of the dtype of `x`, [k]; overwritten. Not scaled: with a residual nothing is missing in the long run.

    Raises:
        ValueError: lengths do not fit; nothing was changed.
    """
    x, indices, values = on_device(x), on_device(indices), on_device(values)
    residual = None if residual is None else on_device(residual)
    check(x, residual, indices, values)
    random_indices(x.size, seed, indices)
    correct(x, residual)
    take(x, residual, indices, values)
