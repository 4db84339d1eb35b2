"""Casts to 16 bits, as in `hpcvol.kernels.cast`, whose bytes these are: on a GPU, one element a thread and turn."""

from typing import Any

import numpy as np
from numba import cuda

from hpcvol.kernels.cast import BFLOAT16, FLOAT16, FORMATS
from hpcvol.kernels.cuda.lanes import INFINITY, bits_of, float16_bits, float16_value, float32_of, float_of
from hpcvol.kernels.cuda.launch import THREADS, blocks_for, on_device

__all__ = ["BFLOAT16", "FLOAT16", "FORMATS", "accumulate", "decode", "encode", "encode_with_feedback"]

_MAGNITUDE = 0x7FFFFFFF
_BFLOAT16_NAN = 0x7FC0
_BFLOAT16_HALF = 0x7FFF  # one less than half a unit in the last place: ties go to even


@cuda.jit(device=True)
def _narrow(value, number_format):  # type: ignore[no-untyped-def]
    single = float32_of(value)
    if number_format == FLOAT16:
        return float16_bits(single)
    bits = bits_of(single)
    if bits & _MAGNITUDE > INFINITY:
        return np.int64(_BFLOAT16_NAN)
    return (bits + ((bits >> 16) & 1) + _BFLOAT16_HALF) >> 16


@cuda.jit(device=True)
def _widen(code, number_format):  # type: ignore[no-untyped-def]
    if number_format == FLOAT16:
        return float16_value(np.int64(code))
    return float_of(np.int64(code) << 16)


@cuda.jit
def _encode(x, number_format, codes):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        codes[i] = _narrow(x[i], number_format)


def encode(x: Any, number_format: int, codes: Any) -> None:
    """Write the payload of `x`.

    Args:
        x: float32[n] or float64[n], left alone; each element is rounded once.
        number_format: BFLOAT16 or FLOAT16.
        codes: uint16[n], overwritten.
    """
    x, codes = on_device(x), on_device(codes)
    if x.size:
        _encode[blocks_for(x.size), THREADS](x, number_format, codes)


@cuda.jit
def _encode_with_feedback(x, residual, number_format, codes):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        corrected = x[i] + residual[i]
        code = _narrow(corrected, number_format)
        decoded = x.dtype.type(_widen(code, number_format))
        codes[i] = code
        residual[i] = corrected - decoded if abs(decoded) < np.inf else x.dtype.type(0)


def encode_with_feedback(x: Any, residual: Any, number_format: int, codes: Any) -> None:
    """Write the payload of `x + residual`, and to `residual` what it lacks.

    Args:
        x: float32[n] or float64[n], left alone.
        residual: of the same dtype, [n], changed in place.
        number_format: BFLOAT16 or FLOAT16.
        codes: uint16[n], overwritten.
    """
    x, residual, codes = on_device(x), on_device(residual), on_device(codes)
    if x.size:
        _encode_with_feedback[blocks_for(x.size), THREADS](x, residual, number_format, codes)


@cuda.jit
def _decode(codes, number_format, out):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        out[i] = _widen(codes[i], number_format)


def decode(codes: Any, number_format: int, out: Any) -> None:
    """Write what a payload stands for to `out`, exactly.

    Args:
        codes: uint16[n], left alone.
        number_format: BFLOAT16 or FLOAT16.
        out: float32[n] or float64[n], overwritten.
    """
    codes, out = on_device(codes), on_device(out)
    if out.size:
        _decode[blocks_for(out.size), THREADS](codes, number_format, out)


@cuda.jit
def _accumulate(codes, number_format, out):  # type: ignore[no-untyped-def]
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        out[i] += out.dtype.type(_widen(codes[i], number_format))


def accumulate(codes: Any, number_format: int, out: Any) -> None:
    """Add what a payload stands for to `out`; arguments as for `decode`."""
    codes, out = on_device(codes), on_device(out)
    if out.size:
        _accumulate[blocks_for(out.size), THREADS](codes, number_format, out)
