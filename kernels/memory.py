"""Moving bytes between addresses, inside compiled code."""

import ctypes
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

LINE_NBYTES = 64

if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def copy_bytes(target: int, source: int, nbytes: int) -> None:
        """Copy `nbytes` bytes; the two places do not overlap."""
        ctypes.memmove(int(target), int(source), int(nbytes))

    def fence() -> None:
        """Have all that was written before, around the cache too, seen before what is written from here on."""

    def prefetch(address: int) -> None:
        """Have the cache line at `address`, which need not exist, fetched."""

else:
    _POINTER = ir.IntType(8).as_pointer()
    _WORD = ir.IntType(32)

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

    @intrinsic
    def fence(_context: Any) -> Any:
        """Compiled: a full barrier."""

        def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return types.void(), generate

    @intrinsic
    def prefetch(_context: Any, _address: Any) -> Any:
        """Compiled: llvm.prefetch."""

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            function_type = ir.FunctionType(ir.VoidType(), [_POINTER, _WORD, _WORD, _WORD])
            function = builder.module.declare_intrinsic("llvm.prefetch", [_POINTER], function_type)
            read, keep_in_all_levels, data = _WORD(0), _WORD(3), _WORD(1)
            builder.call(function, [builder.inttoptr(args[0], _POINTER), read, keep_in_all_levels, data])
            return context.get_dummy_value()

        return types.void(types.int64), generate
