"""Random numbers that follow from a seed and an index: the same on every machine, in any order, with no state.

References:
    Salmon, Moraes, Dror, Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011 (numbers by counter).
    Wellons, hash-prospector: the 32-bit hash "lowbias32", between whose rounds a second key comes in here.
"""

import numpy as np
from numba import njit

from hpcvol.kernels import lanes_compiled  # noqa: F401
from hpcvol.kernels.lanes import convert, count_from


@njit(nogil=True, cache=True)
def uniform(keys, index, dtype):  # type: ignore[no-untyped-def]
    """Return sixteen numbers between 0 and 1: odd multiples of 2^-24, each of them equally likely.

    Args:
        keys: int64[2 or more] below 2^32, such as those of `permutation.round_keys`.
        index: of the first number; the 32 lowest bits count.
        dtype: np.float32 or np.float64, of what is returned.
    """
    x = count_from(np.uint32(index)) ^ np.uint32(keys[0])
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = x ^ np.uint32(keys[1])
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    x = x ^ (x >> 16)
    half, unit = dtype(0.5), dtype(2.0**-23)
    return (convert(convert(x >> 9, np.int32), dtype) + half) * unit
