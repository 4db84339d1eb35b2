"""Walking through vectors much larger than the caches, block by block, at the speed of memory.

One core keeps memory busier when it reads several pages at a time, because its prefetchers stop at the end of each:
blocks are visited in such an order, and announced before they are needed.
"""

import numpy as np
from numba import njit

from hpcvol.kernels.memory import LINE_NBYTES, prefetch

_PER_PAGE = 4  # blocks of 1 KiB, which is what 256 elements of float32 are
_PAGES = 4
AHEAD = 4  # blocks


@njit(nogil=True, cache=True)
def visited(turn, num_blocks):  # type: ignore[no-untyped-def]
    """Return which block comes at `turn`: each once, four pages side by side, what does not fill those last."""
    group = turn - turn % (_PER_PAGE * _PAGES)
    if group + _PER_PAGE * _PAGES > num_blocks:
        return turn
    place = turn - group
    return group + place % _PAGES * _PER_PAGE + place // _PAGES


@njit(nogil=True, cache=True)
def announce(address, turn, num_blocks, block_nbytes):  # type: ignore[no-untyped-def]
    """Have the block fetched that comes soon after `turn`.

    Args:
        address: of the first block.
        turn: from 0 to `num_blocks` - 1.
        num_blocks: how many there are.
        block_nbytes: bytes from one to the next.
    """
    if turn + AHEAD < num_blocks:
        begin = address + visited(turn + AHEAD, num_blocks) * block_nbytes
        for line in range(0, block_nbytes, LINE_NBYTES):
            prefetch(begin + line)


@njit(nogil=True, cache=True)
def padded(array, begin, numel):  # type: ignore[no-untyped-def]
    """Return what `array` has from `begin` on, as an array of `numel` elements that zeros fill up."""
    result = np.zeros(numel, array.dtype)
    for i in range(array.size - begin):
        result[i] = array[begin + i]
    return result


@njit(nogil=True, cache=True)
def put_back(source, array, begin):  # type: ignore[no-untyped-def]
    """Write the first elements of `source` to `array` from `begin` on, as many as there is room for."""
    for i in range(array.size - begin):
        array[begin + i] = source[i]
