"""The indices of large elements, in their order: each block of threads counts its own, and then has a place.

Once through memory to count, and once more to write.
"""

from typing import Any

import numpy as np
from numba import cuda

from hpcvol.kernels.cuda.launch import THREADS
from hpcvol.kernels.cuda.magnitude import magnitude
from hpcvol.kernels.cuda.prefix_sums import RUN, TILE, prefix_sums, sums_before

# Two counts in one integer, each below 2^31: of magnitudes above the bound, and of those equal to it.
_ABOVE, _EQUAL = 1 << 32, 1


@cuda.jit(device=True)
def _counted(value, bound):  # type: ignore[no-untyped-def]
    size = magnitude(value)
    if size > bound:
        return np.int64(_ABOVE)
    return np.int64(_EQUAL if size == bound else 0)


@cuda.jit
def _count(source, bounds, counts):  # type: ignore[no-untyped-def]
    begin, found, bound = np.int64(cuda.blockIdx.x) * TILE, np.int64(0), bounds[0]
    for i in range(begin + cuda.threadIdx.x, min(begin + TILE, source.size), THREADS):
        found += _counted(source[i], bound)
    total = sums_before(found)[1]
    if cuda.threadIdx.x == 0:
        counts[cuda.blockIdx.x] = total
        counts[cuda.gridDim.x] = 0


@cuda.jit
def _write(source, bounds, before, indices):  # type: ignore[no-untyped-def]
    kinds = cuda.shared.array(TILE, np.int8)  # memory is read by neighbours, and written by runs
    begin, bound, quota = np.int64(cuda.blockIdx.x) * TILE, bounds[0], bounds[1]
    for at in range(cuda.threadIdx.x, TILE, THREADS):
        counted = _counted(source[begin + at], bound) if begin + at < source.size else np.int64(0)
        kinds[at] = 2 if counted == _ABOVE else counted
    cuda.syncthreads()
    first, own = cuda.threadIdx.x * RUN, np.int64(0)
    for at in range(first, first + RUN):
        own += _ABOVE if kinds[at] == 2 else kinds[at]
    place = sums_before(own)[0] + before[cuda.blockIdx.x]
    above, equal = place >> 32, place & (_ABOVE - 1)
    for at in range(first, first + RUN):
        kind, place = kinds[at], above + min(equal, quota)
        if (kind == 2 or (kind == 1 and equal < quota)) and place < indices.size:
            indices[place] = begin + at
        above += kind >> 1
        equal += kind & 1


def collect(source: Any, bounds: Any, indices: Any) -> Any:
    """Write the indices of elements whose magnitude is above a bound, and of the first ones that are equal to it.

    Args:
        source: float32[n] or float64[n] on the device, n below 2^31 and not 0, left alone.
        bounds: int64[2] on the device: a magnitude, and how many elements of that magnitude are wanted.
        indices: int32[room] on the device, written, ascending, as far as there is room.

    Returns:
        int64[1] on the device: 2^32 times the number of elements above the bound, and that of elements equal to it.
    """
    tiles = -(-source.size // TILE)
    counts = cuda.device_array(tiles + 1, np.int64)
    _count[tiles, THREADS](source, bounds, counts)
    prefix_sums(counts)
    _write[tiles, THREADS](source, bounds, counts, indices)
    return counts[tiles:]
