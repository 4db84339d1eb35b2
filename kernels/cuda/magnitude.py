"""Floats by magnitude: the order of `hpcvol.kernels.magnitude`, in kernels for a GPU."""

from typing import Any

from llvmlite import ir
from numba import config, types

if config.ENABLE_CUDASIM:  # type: ignore[attr-defined]
    from hpcvol.kernels.magnitude import magnitude
else:
    from numba.cuda.extending import intrinsic

    @intrinsic
    def magnitude(_context: Any, value: Any) -> Any:
        """Return the bits of |value| as an int64; `value` is one float32 or float64."""

        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            kind = ir.IntType(value.bitwidth)
            bits = builder.and_(builder.bitcast(args[0], kind), kind(2 ** (value.bitwidth - 1) - 1))
            return bits if value.bitwidth == 64 else builder.zext(bits, ir.IntType(64))

        return types.int64(value), generate


__all__ = ["magnitude"]
