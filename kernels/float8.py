"""Numbers of eight bits, e4m3: a sign, four bits of exponent, three of mantissa; no infinity, one NaN of either sign.

The largest number is 448, the least normal one 2^-6, the least of all 2^-9. These are operations on the bits of
sixteen float32 at a time.

References:
    Micikevicius et al., FP8 formats for deep learning, 2022, section 3 (there E4M3, in ml_dtypes float8_e4m3fn).
"""

import numpy as np
from numba import njit

from hpcvol.kernels import lanes_compiled  # noqa: F401
from hpcvol.kernels.lanes import bits_of, convert, floats_of, magnitude, spread, where

LARGEST = 448

_NAN = 0x7F
_LARGEST_BITS = 0x7E
_SHIFT = 20  # bits of mantissa that float32 has more
_REBIAS = (127 - 7) << 23
_LEAST_NORMAL = (127 - 6) << 23  # 2^-6 in float32
_INFINITY = 0x7F800000
_ALIGN = 2.0**14  # its unit in the last place is the least e4m3
_ALIGN_BITS = (127 + 14) << 23
_UNIT = 2.0**-9


@njit(nogil=True, cache=True)
def encode_e4m3(values):  # type: ignore[no-untyped-def]
    """Return float32 rounded to e4m3, ties to even, as bits (uint8); beyond 448 it is 448, infinity and NaN are NaN."""
    bits = bits_of(values)
    size = bits & 0x7FFFFFFF
    normal = (size - _REBIAS + ((1 << (_SHIFT - 1)) - 1) + ((size >> _SHIFT) & 1)) >> _SHIFT
    largest = spread(np.uint32(_LARGEST_BITS))
    normal = where(largest < normal, largest, normal)
    tiny = bits_of(magnitude(values) + np.float32(_ALIGN)) - _ALIGN_BITS
    finite = where(size < _LEAST_NORMAL, tiny, normal)
    return convert(where(size < _INFINITY, finite, spread(np.uint32(_NAN))) | ((bits >> 24) & 0x80), np.uint8)


@njit(nogil=True, cache=True)
def decode_e4m3(codes):  # type: ignore[no-untyped-def]
    """Return the numbers whose bits (uint8) are given as float32, exactly."""
    bits = convert(codes, np.uint32)
    size = bits & 0x7F
    tiny = bits_of(convert(convert(size, np.int32), np.float32) * np.float32(_UNIT))
    finite = where(size < 8, tiny, (size << _SHIFT) + _REBIAS)
    number = where(size < _NAN, finite, spread(np.uint32(_INFINITY | (1 << 22))))
    return floats_of(number | ((bits & 0x80) << 24))
