"""64-bit integers as 32-bit ones, where all of them fit."""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def narrow(values, out):  # type: ignore[no-untyped-def]
    """Write `values` to `out`, and return whether all of them fit; where one does not, `out` holds nothing of use.

    Args:
        values: int64[n], left alone.
        out: int32[n].
    """
    misfits = np.int64(0)
    for i in range(np.uint64(values.size)):
        value = values[i]
        out[i] = np.int32(value)
        misfits |= (value + np.int64(1 << 31)) >> np.int64(32)
    return misfits == 0


@njit(nogil=True, cache=True)
def widen(values, out):  # type: ignore[no-untyped-def]
    """Write `values` to `out`, which may begin at the same address: the last one first, so that none is lost.

    Args:
        values: int32[n].
        out: int64[n].
    """
    for i in range(values.size - 1, -1, -1):
        out[i] = values[i]
