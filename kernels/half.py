"""Half-precision vectors: bfloat16 and float16 as their bits, uint16. Arithmetic is in float32 and rounded once.

Numba knows neither type on a CPU, and NumPy's loops over float16 are several times slower than memory. The conversions
are integer operations on the bits, so that they vectorise on any instruction set: rounding to nearest, ties to even;
subnormal numbers are kept; any NaN becomes the quiet one.
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
_BLOCK_NUMEL = 1024  # one conversion at a time vectorises, three in one loop do not; blocks stay in cache


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


@njit(nogil=True, cache=True)
def add_bfloat16(a, b, out):  # type: ignore[no-untyped-def]
    """Write a + b to `out`; all are uint16[n], the bits of bfloat16. `out` may be either of the others."""
    x, y, result = a[: out.size], b[: out.size], out[: out.size]
    for i in range(out.size):
        result[i] = _to_bfloat16(_from_bfloat16(x[i]) + _from_bfloat16(y[i]))


@njit(nogil=True, cache=True)
def multiply_bfloat16(a, b, out):  # type: ignore[no-untyped-def]
    """Write a · b to `out`; all are uint16[n], the bits of bfloat16. `out` may be either of the others."""
    x, y, result = a[: out.size], b[: out.size], out[: out.size]
    for i in range(out.size):
        result[i] = _to_bfloat16(_from_bfloat16(x[i]) * _from_bfloat16(y[i]))


@njit(nogil=True, cache=True)
def divide_bfloat16(bits, divisor):  # type: ignore[no-untyped-def]
    """Divide `bits: uint16[n]`, those of bfloat16, by the float32 `divisor`, in place."""
    result = bits[: bits.size]
    for i in range(bits.size):
        result[i] = _to_bfloat16(_from_bfloat16(result[i]) / divisor)


@njit(nogil=True, cache=True)
def add_float16(a, b, out):  # type: ignore[no-untyped-def]
    """Write a + b to `out`; all are uint16[n], the bits of float16. `out` may be either of the others."""
    wide, other = np.empty(_BLOCK_NUMEL, np.float32), np.empty(_BLOCK_NUMEL, np.float32)
    for start in range(0, out.size, _BLOCK_NUMEL):
        result = out[start : start + _BLOCK_NUMEL]
        widen_float16(a[start : start + result.size], wide)
        widen_float16(b[start : start + result.size], other)
        for i in range(wide.size):
            wide[i] += other[i]
        narrow_float16(wide[: result.size], result)


@njit(nogil=True, cache=True)
def multiply_float16(a, b, out):  # type: ignore[no-untyped-def]
    """Write a · b to `out`; all are uint16[n], the bits of float16. `out` may be either of the others."""
    wide, other = np.empty(_BLOCK_NUMEL, np.float32), np.empty(_BLOCK_NUMEL, np.float32)
    for start in range(0, out.size, _BLOCK_NUMEL):
        result = out[start : start + _BLOCK_NUMEL]
        widen_float16(a[start : start + result.size], wide)
        widen_float16(b[start : start + result.size], other)
        for i in range(wide.size):
            wide[i] *= other[i]
        narrow_float16(wide[: result.size], result)


@njit(nogil=True, cache=True)
def divide_float16(bits, divisor):  # type: ignore[no-untyped-def]
    """Divide `bits: uint16[n]`, those of float16, by the float32 `divisor`, in place."""
    wide = np.empty(_BLOCK_NUMEL, np.float32)
    for start in range(0, bits.size, _BLOCK_NUMEL):
        result = bits[start : start + _BLOCK_NUMEL]
        widen_float16(result, wide)
        for i in range(wide.size):
            wide[i] /= divisor
        narrow_float16(wide[: result.size], result)
