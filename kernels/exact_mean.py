"""Adding vectors of fixed point that lie in several processes' memory, and reading the sum as means.

Vectors are given by address, in tables of int64, as in `hpcvol.kernels.combine`.
"""

import numpy as np
from numba import njit

from hpcvol.kernels.combine import SUM, combine
from hpcvol.kernels.fixed_point import BLOCK_NUMEL, mean


@njit(nogil=True, cache=True)
def spread_means(  # type: ignore[no-untyped-def]
    kind, sources, num_sources, starts, numels, scales, weight, begin, end, mine, targets, num_targets
):
    """Write the means of the elements `begin` to `end` of the sum of all sources to all targets.

    The same bits as `hpcvol.kernels.fixed_point.means` of the sum. Elements between blocks are left alone.

    Args:
        kind: of `mine`, one of `hpcvol.kernels.combine.KINDS`.
        sources: address of a table of the addresses of int64 vectors, left alone.
        num_sources: its length.
        starts: int64[blocks], ascending.
        numels: int64[blocks], at most BLOCK_NUMEL.
        scales: float64[blocks].
        weight: float64.
        begin: first element.
        end: behind the last one.
        mine: float32 or float64 vector, one of the targets.
        targets: address of a table of the addresses of vectors like `mine`.
        num_targets: its length.
    """
    scratch, place = np.empty(BLOCK_NUMEL, np.int64), np.empty(1, np.int64)
    itemsize = mine.itemsize
    block = max(np.searchsorted(starts, begin, "right") - 1, 0)
    while block < starts.size and starts[block] < end:
        low, high = max(starts[block], begin), min(starts[block] + numels[block], end)
        if low < high:
            place[0] = scratch.ctypes.data - low * 8
            combine(np.int64, SUM, sources, num_sources, place.ctypes.data, 1, 1, low * 8, high * 8)
            mean(scratch[: high - low], scales[block], weight, mine[low:high])
            place[0] = mine.ctypes.data
            if num_targets > 1:
                combine(kind, SUM, place.ctypes.data, 1, targets, num_targets, 1, low * itemsize, high * itemsize)
        block += 1
