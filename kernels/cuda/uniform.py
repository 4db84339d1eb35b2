"""Random numbers that follow from a seed and an index: those of `hpcvol.kernels.uniform`, one at a time."""

import numpy as np
from numba import cuda

_LOW32 = 0xFFFFFFFF
_HALF, _UNIT = np.float32(0.5), np.float32(2.0**-23)


@cuda.jit(device=True)
def uniform(first, second, index):  # type: ignore[no-untyped-def]
    """Return a float32 between 0 and 1: an odd multiple of 2^-24, each of them equally likely.

    Args:
        first: int64 below 2^32, the first of `permutation.round_keys`.
        second: likewise, the second.
        index: int64, of the number; the 32 lowest bits count.
    """
    x = (index & _LOW32) ^ first
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW32
    x = x ^ second
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW32
    x = x ^ (x >> 16)
    return (np.float32(x >> 9) + _HALF) * _UNIT
