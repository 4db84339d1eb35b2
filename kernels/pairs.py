"""Two vectors combined into a third, where NumPy is slow or leaves open what comes out: half types, extremes."""

import numpy as np
from numba import njit

from hpcvol.kernels.combine import BFLOAT16, combine


@njit(nogil=True, cache=True)
def _pair(kind, op, a, b, out, nbytes):  # type: ignore[no-untyped-def]
    table = np.array([a, b, out])
    address = table.ctypes.data
    combine(kind, op, address, 2, address + 16, 1, 2, 0, nbytes)


@njit(nogil=True, cache=True)
def _float32(op, a, b, out, nbytes):  # type: ignore[no-untyped-def]
    _pair(np.float32, op, a, b, out, nbytes)


@njit(nogil=True, cache=True)
def _float64(op, a, b, out, nbytes):  # type: ignore[no-untyped-def]
    _pair(np.float64, op, a, b, out, nbytes)


@njit(nogil=True, cache=True)
def _float16(op, a, b, out, nbytes):  # type: ignore[no-untyped-def]
    _pair(np.float16, op, a, b, out, nbytes)


@njit(nogil=True, cache=True)
def _bfloat16(op, a, b, out, nbytes):  # type: ignore[no-untyped-def]
    _pair(BFLOAT16, op, a, b, out, nbytes)


# By the name of a dtype: combines `nbytes` at the addresses `a` and `b` into those at `out`, which may be either, by an
# operation of `hpcvol.kernels.combine`.
PAIR = {"float32": _float32, "float64": _float64, "float16": _float16, "bfloat16": _bfloat16}
