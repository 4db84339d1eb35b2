"""What processes that share memory tell each other with: ordered loads, stores, exchanges of int64, and ways to wait.

Addresses are integers. A reader that sees what `store_release` wrote, by `load_acquire`, also sees all that the writer
wrote before it. Without the compiler (NUMBA_DISABLE_JIT=1) these are plain loads and stores: for one process only.
"""

import ctypes
import os
import platform
import time
from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_PAUSE = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause", "aarch64": "llvm.aarch64.hint"}
_AARCH64_YIELD = 1
_CLOCK_MONOTONIC = 1

# An oversubscribed rank that pauses 2000 times before it gives its core away waited ten times longer (measured).
_PAUSES = 20
# On a busy machine every yield may last as long as others' time slices.
_YIELDS_PER_LOOK = 4

if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def load_acquire(address: int) -> int:
        """Return the int64 at `address`; what its writer wrote before is visible after."""
        return ctypes.c_int64.from_address(int(address)).value

    def store_release(address: int, value: int) -> None:
        """Write the int64 `value` to `address`, after all that was written before."""
        ctypes.c_int64.from_address(int(address)).value = int(value)

    def compare_exchange(address: int, expected: int, value: int) -> bool:
        """Write `value` to `address` if `expected` is there, as one step; return whether it was."""
        place = ctypes.c_int64.from_address(int(address))
        if place.value != expected:
            return False
        place.value = int(value)
        return True

    def pause() -> None:
        """Tell the core that it is spinning, where there is an instruction for that."""

    def yield_core() -> None:
        """Let another process that can run have this core."""
        os.sched_yield()

    def monotonic_ns() -> int:
        """Return the time of CLOCK_MONOTONIC, as `time.monotonic_ns` does."""
        return time.monotonic_ns()

else:
    _WORD = ir.IntType(64)
    _INT = ir.IntType(32)
    _function: Any = cgutils.get_or_insert_function

    @intrinsic
    def load_acquire(_context: Any, _address: Any) -> Any:
        """Compiled: an ordered load."""

        def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.load_atomic(builder.inttoptr(args[0], _WORD.as_pointer()), "acquire", 8)

        return types.int64(types.int64), generate

    @intrinsic
    def store_release(_context: Any, _address: Any, _value: Any) -> Any:
        """Compiled: an ordered store."""

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            builder.store_atomic(args[1], builder.inttoptr(args[0], _WORD.as_pointer()), "release", 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    @intrinsic
    def compare_exchange(_context: Any, _address: Any, _expected: Any, _value: Any) -> Any:
        """Compiled: one instruction, ordered."""

        def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
            place = builder.inttoptr(args[0], _WORD.as_pointer())
            found = builder.cmpxchg(place, args[1], args[2], "acq_rel", "acquire")
            return builder.extract_value(found, 1)

        return types.boolean(types.int64, types.int64, types.int64), generate

    @intrinsic
    def pause(_context: Any) -> Any:
        """Compiled: the instruction for that."""
        name = _PAUSE.get(platform.machine())

        def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
            if name is not None:
                hint = [ir.Constant(_INT, _AARCH64_YIELD)] if name.startswith("llvm.aarch64") else []
                function_type = ir.FunctionType(ir.VoidType(), [value.type for value in hint])
                builder.call(_function(builder.module, function_type, name), hint)
            return context.get_dummy_value()

        return types.void(), generate

    @intrinsic
    def monotonic_ns(_context: Any) -> Any:
        """Compiled: without Python."""

        def generate(_: Any, builder: Any, _signature: Any, _args: Any) -> Any:
            timespec = ir.ArrayType(_WORD, 2)
            function_type = ir.FunctionType(_INT, [_INT, timespec.as_pointer()])
            function = _function(builder.module, function_type, "clock_gettime")
            place = cgutils.alloca_once(builder, timespec)  # type: ignore[no-untyped-call]
            builder.call(function, [ir.Constant(_INT, _CLOCK_MONOTONIC), place])
            now = builder.load(place)
            seconds, rest = builder.extract_value(now, 0), builder.extract_value(now, 1)
            return builder.add(builder.mul(seconds, ir.Constant(_WORD, 10**9)), rest)

        return types.int64(), generate

    yield_core: Any = types.ExternalFunction("sched_yield", types.int32())  # type: ignore[no-redef]


@njit(nogil=True, cache=True)
def wait_until(address, value, give_up_ns):  # type: ignore[no-untyped-def]
    """Wait until the int64 at `address` is at least `value`.

    Args:
        address: of a number that only grows.
        value: what is waited for.
        give_up_ns: until when, by `monotonic_ns`; looked at only after the first pauses and yields.

    Returns:
        Whether it came about in time.
    """
    for _ in range(_PAUSES):
        if load_acquire(address) >= value:
            return True
        pause()
    while True:
        for _ in range(_YIELDS_PER_LOOK):
            if load_acquire(address) >= value:
                return True
            yield_core()
        if monotonic_ns() > give_up_ns:
            return False
