"""Numbers of eight bits, e4m3, as in `hpcvol.kernels.float8`, one at a time."""

import numpy as np
from numba import cuda

from hpcvol.kernels.cuda.lanes import INFINITY, bits_of, float_of

_NAN, _LARGEST_BITS = 0x7F, 0x7E
_SHIFT = 20  # bits of mantissa that float32 has more
_REBIAS = (127 - 7) << 23
_LEAST_NORMAL = (127 - 6) << 23  # 2^-6 in float32
_ALIGN = np.float32(2.0**14)  # its unit in the last place is the least e4m3
_ALIGN_BITS = (127 + 14) << 23
_UNIT = np.float32(2.0**-9)


@cuda.jit(device=True)
def encode_e4m3(value):  # type: ignore[no-untyped-def]
    """Return float32 rounded to e4m3, ties to even, as bits; beyond 448 it is 448, infinity and NaN are NaN."""
    bits = bits_of(value)
    sign, size = (bits >> 24) & 0x80, bits & 0x7FFFFFFF
    if size >= INFINITY:
        return sign | _NAN
    if size < _LEAST_NORMAL:
        return sign | (bits_of(abs(value) + _ALIGN) - _ALIGN_BITS)
    return sign | min(_LARGEST_BITS, (size - _REBIAS + ((1 << (_SHIFT - 1)) - 1) + ((size >> _SHIFT) & 1)) >> _SHIFT)


@cuda.jit(device=True)
def decode_e4m3(code):  # type: ignore[no-untyped-def]
    """Return the number whose bits are given as float32, exactly."""
    sign, size = (code & 0x80) << 24, code & 0x7F
    if size == _NAN:
        return float_of(sign | INFINITY | (1 << 22))
    if size < 8:
        return float_of(sign | bits_of(np.float32(size) * _UNIT))
    return float_of(sign | ((size << _SHIFT) + _REBIAS))
