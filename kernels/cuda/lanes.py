"""What `hpcvol.kernels.lanes` does with sixteen elements, here with one: a thread is a lane.

Bits are int64 that hold 32 of them at most: Numba makes floats of sums of signed and unsigned integers.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, cuda

INFINITY = 0x7F800000
_MAGNITUDE = 0x7FFFFFFF
_REBIAS = (127 - 15) << 23  # from the exponents of float16 to those of float32
_LEAST_NORMAL = (127 - 14) << 23
_TOO_LARGE = (127 + 16) << 23
_ALIGN = np.float32(0.5)  # its unit in the last place is the least float16
_ALIGN_BITS = 126 << 23
_UNIT = np.float32(2.0**-24)

if config.ENABLE_CUDASIM:  # type: ignore[attr-defined]

    def product(a: Any, b: Any) -> Any:
        """Return a * b, rounded before anything is added to it."""
        return a * b

else:
    from numba.cuda.extending import intrinsic

    @intrinsic
    def product(_context: Any, a: Any, _b: Any) -> Any:
        """Return a * b, rounded before anything is added to it: the GPU's compiler would make one operation of both."""

        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            kind = args[0].type
            name = "llvm.nvvm.mul.rn.f" if kind == ir.FloatType() else "llvm.nvvm.mul.rn.d"
            function = builder.module.globals.get(name)
            if function is None:
                function = ir.Function(builder.module, ir.FunctionType(kind, [kind, kind]), name)
            return builder.call(function, args)

        return a(a, a), generate


@cuda.jit(device=True)
def bits_of(value):  # type: ignore[no-untyped-def]
    """Return the bits of a float32."""
    return np.int64(np.float32(value).view(np.uint32))


@cuda.jit(device=True)
def float_of(bits):  # type: ignore[no-untyped-def]
    """Return the float32 whose bits are given."""
    return np.uint32(bits).view(np.float32)


@cuda.jit(device=True)
def float32_of(value):  # type: ignore[no-untyped-def]
    """Return a float as float32 in such a way that rounding that further is as if it had been done at once."""
    near = np.float32(value)
    if near == value or near != near:
        return near
    return float_of((bits_of(near) - (abs(near) > abs(value))) | 1)


@cuda.jit(device=True)
def float16_bits(value):  # type: ignore[no-untyped-def]
    """Return float32 rounded to float16, ties to even, as bits; any NaN becomes the quiet one."""
    bits = bits_of(value)
    sign, size = (bits >> 16) & 0x8000, bits & _MAGNITUDE
    if size > INFINITY:
        return np.int64(0x7E00)
    if size >= _TOO_LARGE:
        return sign | 0x7C00
    if size >= _LEAST_NORMAL:
        return sign | ((size - _REBIAS + 0xFFF + ((size >> 13) & 1)) >> 13)
    return sign | (bits_of(abs(value) + _ALIGN) - _ALIGN_BITS)


@cuda.jit(device=True)
def float16_value(code):  # type: ignore[no-untyped-def]
    """Return the float16 whose bits are given as float32, exactly."""
    sign, size = (code & 0x8000) << 16, code & 0x7FFF
    if size >= 0x7C00:
        return float_of(sign | INFINITY | ((size & 0x3FF) << 13))
    if size >= 0x400:
        return float_of(sign | ((size << 13) + _REBIAS))
    return float_of(sign | bits_of(np.float32(size) * _UNIT))


@cuda.jit(device=True)
def larger(one, other):  # type: ignore[no-untyped-def]
    """Return the larger of two magnitudes; NaN where one of them is."""
    return other if other > one or other != other else one
