"""Sums of all that stands before an element: of integers, so that any order of adding them makes the same."""

from typing import Any

import numpy as np
from numba import cuda

from hpcvol.kernels.cuda.launch import THREADS, zeros

RUN = 16  # neighbours that a thread adds one after the other
TILE = RUN * THREADS

_PART = 8
_PARTS = THREADS // _PART


@cuda.jit(device=True)
def sums_before(value):  # type: ignore[no-untyped-def]
    """Return the sum of what the threads of this block that come before this one hold, and that of all of them.

    Each thread of the block calls it, with an int64.
    """
    cells = cuda.shared.array(THREADS, np.int64)
    parts = cuda.shared.array(_PARTS, np.int64)
    thread, total, before = cuda.threadIdx.x, np.int64(0), np.int64(0)
    cells[thread] = value
    cuda.syncthreads()
    if thread < _PARTS:
        for i in range(thread * _PART, (thread + 1) * _PART):
            total += cells[i]
        parts[thread] = total
        total = np.int64(0)
    cuda.syncthreads()
    mine = thread // _PART
    for part in range(_PARTS):
        before += parts[part] if part < mine else np.int64(0)
        total += parts[part]
    for i in range(mine * _PART, thread):
        before += cells[i]
    cuda.syncthreads()
    return before, total


@cuda.jit
def _add_tiles(values, totals):  # type: ignore[no-untyped-def]
    begin, added = np.int64(cuda.blockIdx.x) * TILE, np.int64(0)
    for i in range(begin + cuda.threadIdx.x, min(begin + TILE, values.size), THREADS):
        added += values[i]
    total = sums_before(added)[1]
    if cuda.threadIdx.x == 0:
        totals[cuda.blockIdx.x] = total


@cuda.jit
def _add_before(values, before):  # type: ignore[no-untyped-def]
    begin = np.int64(cuda.blockIdx.x) * TILE + cuda.threadIdx.x * RUN
    stop, added = min(begin + RUN, values.size), np.int64(0)
    for i in range(begin, stop):
        added += values[i]
    added = sums_before(added)[0] + before[cuda.blockIdx.x]
    for i in range(begin, stop):
        value = values[i]
        values[i] = added
        added += value


def prefix_sums(values: Any) -> None:
    """Replace each element by the sum of those before it, in place.

    Args:
        values: int64[n] on the device, n at least 1. Where the last one is 0 it becomes the sum of all.
    """
    tiles = -(-values.size // TILE)
    before = zeros(tiles, np.int64)
    if tiles > 1:
        _add_tiles[tiles, THREADS](values, before)
        prefix_sums(before)
    _add_before[tiles, THREADS](values, before)
