"""Moving bytes between addresses, inside compiled code."""

import ctypes
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def copy_bytes(target: int, source: int, nbytes: int) -> None:
        """Copy `nbytes` bytes; the two places do not overlap."""
        ctypes.memmove(int(target), int(source), int(nbytes))

else:
    _POINTER = ir.IntType(8).as_pointer()

    @intrinsic
    def copy_bytes(_context: Any, _target: Any, _source: Any, _nbytes: Any) -> Any:
        """Compiled: llvm.memcpy."""

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            function_type = ir.FunctionType(ir.VoidType(), [_POINTER, _POINTER, ir.IntType(64), ir.IntType(1)])
            memcpy = builder.module.declare_intrinsic(
                "llvm.memcpy", [_POINTER, _POINTER, ir.IntType(64)], function_type
            )
            target, source = builder.inttoptr(args[0], _POINTER), builder.inttoptr(args[1], _POINTER)
            builder.call(memcpy, [target, source, args[2], ir.IntType(1)(0)])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate
