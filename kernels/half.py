"""Half-precision vectors, bfloat16 and float16 as their bits (uint16), to float32 and back.

NumPy's conversions are several times slower than memory. These are integer operations on the bits, so that they
vectorise on any instruction set. Rounding is to nearest, ties to even; subnormal numbers are kept; any NaN becomes the
quiet one.
"""

import numpy as np
from numba import njit

_U16 = np.uint32(16)
_ONE = np.uint32(1)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)

_BFLOAT16_NAN = np.uint32(0x7FC0)
_BFLOAT16_HALF = np.uint32(0x7FFF)  # one less than half a unit in the last place: ties go to even

_FLOAT16_NAN = np.uint32(0x7E00)
_FLOAT16_INFINITY = np.uint32(0x7C00)
_FLOAT16_SIGN = np.uint32(0x8000)
_FLOAT16_BITS = np.uint32(0x7FFF)
_FLOAT16_SHIFT = np.uint32(13)
_FLOAT16_LEAST_NORMAL = np.uint32(0x0400)
_FLOAT16_REBIAS = np.uint32((127 - 15) << 23)
_FLOAT16_UNIT = np.float32(2.0**-24)  # the least subnormal number
_FLOAT16_ROUND = np.uint32(0xFFF)
_FLOAT16_OVERFLOWS = np.uint32((127 + 16) << 23)  # 2^16 in float32
_FLOAT16_NORMAL = np.uint32((127 - 14) << 23)  # 2^-14
_FLOAT16_ALIGN = np.float32(0.5)  # its unit in the last place is the least subnormal float16
_FLOAT16_ALIGN_BITS = np.uint32(126 << 23)


@njit(nogil=True, cache=True, inline="always")
def _from_bfloat16(bits):  # type: ignore[no-untyped-def]
    return np.uint32(np.uint32(bits) << _U16).view(np.float32)


@njit(nogil=True, cache=True, inline="always")
def _to_bfloat16(value):  # type: ignore[no-untyped-def]
    bits = np.float32(value).view(np.uint32)
    even = np.uint32(np.uint32(bits >> _U16) & _ONE)
    rounded = np.uint32(np.uint32(bits + np.uint32(_BFLOAT16_HALF + even)) >> _U16)
    is_nan = np.uint32(bits & _MAGNITUDE) > _INFINITY
    return np.uint16(_BFLOAT16_NAN if is_nan else rounded)


@njit(nogil=True, cache=True, inline="always")
def _from_float16(bits):  # type: ignore[no-untyped-def]
    half = np.uint32(bits)
    sign = np.uint32(np.uint32(half & _FLOAT16_SIGN) << _U16)
    magnitude = np.uint32(half & _FLOAT16_BITS)
    normal = np.uint32(np.uint32(magnitude << _FLOAT16_SHIFT) + _FLOAT16_REBIAS)
    special = np.uint32(np.uint32(magnitude << _FLOAT16_SHIFT) | _INFINITY)
    subnormal = np.float32(np.float32(np.int32(magnitude)) * _FLOAT16_UNIT).view(np.uint32)
    above = special if magnitude >= _FLOAT16_INFINITY else normal
    return np.uint32((subnormal if magnitude < _FLOAT16_LEAST_NORMAL else above) | sign).view(np.float32)


@njit(nogil=True, cache=True, inline="always")
def _to_float16(value):  # type: ignore[no-untyped-def]
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32(np.uint32(bits >> _U16) & _FLOAT16_SIGN)
    magnitude = np.uint32(bits & _MAGNITUDE)
    even = np.uint32(np.uint32(magnitude >> _FLOAT16_SHIFT) & _ONE)
    rebiased = np.uint32(np.uint32(magnitude - _FLOAT16_REBIAS) + np.uint32(_FLOAT16_ROUND + even))
    normal = np.uint32(rebiased >> _FLOAT16_SHIFT)
    aligned = np.float32(magnitude.view(np.float32) + _FLOAT16_ALIGN).view(np.uint32)
    subnormal = np.uint32(aligned - _FLOAT16_ALIGN_BITS)
    finite = subnormal if magnitude < _FLOAT16_NORMAL else normal
    special = _FLOAT16_NAN if magnitude > _INFINITY else _FLOAT16_INFINITY
    return np.uint16((special if magnitude >= _FLOAT16_OVERFLOWS else finite) | sign)


@njit(nogil=True, cache=True)
def widen_bfloat16(bits, out):  # type: ignore[no-untyped-def]
    """Write the bfloat16 numbers `bits: uint16[n]` to `out: float32[n]`, exactly."""
    wide = out[: bits.size]
    for i in range(bits.size):
        wide[i] = _from_bfloat16(bits[i])


@njit(nogil=True, cache=True)
def narrow_bfloat16(values, out):  # type: ignore[no-untyped-def]
    """Write `values: float32[n]`, rounded to bfloat16, to `out: uint16[n]`."""
    bits = out[: values.size]
    for i in range(values.size):
        bits[i] = _to_bfloat16(values[i])


@njit(nogil=True, cache=True)
def widen_float16(bits, out):  # type: ignore[no-untyped-def]
    """Write the float16 numbers `bits: uint16[n]` to `out: float32[n]`, exactly."""
    wide = out[: bits.size]
    for i in range(bits.size):
        wide[i] = _from_float16(bits[i])


@njit(nogil=True, cache=True)
def narrow_float16(values, out):  # type: ignore[no-untyped-def]
    """Write `values: float32[n]`, rounded to float16, to `out: uint16[n]`; infinity above 65519."""
    bits = out[: values.size]
    for i in range(values.size):
        bits[i] = _to_float16(values[i])
