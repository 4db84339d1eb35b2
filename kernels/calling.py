"""Calling a C function again and again, in compiled code, which needs Python's lock for none of it."""

import ctypes
from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

if config.DISABLE_JIT:  # type: ignore[attr-defined]
    _FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 5)

    def call(address: int, a: int, b: int, c: int, d: int, e: int) -> int:
        """Return what the function at `address` returns, which takes five integers or pointers at most."""
        return int(_FUNCTION(int(address))(int(a), int(b), int(c), int(d), int(e)))

else:

    @intrinsic
    def call(_context: Any, _address: Any, _a: Any, _b: Any, _c: Any, _d: Any, _e: Any) -> Any:
        """Compiled: an indirect call. Whole registers are passed, of which the function uses what it takes."""

        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            function_type = ir.FunctionType(ir.IntType(64), [ir.IntType(64)] * 5)
            return builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])

        return types.int64(*[types.int64] * 6), generate


@njit(nogil=True, cache=True)
def call_until(stop, function, arguments, usleep, pause):  # type: ignore[no-untyped-def]
    """Call a function until another thread sets `stop[0]`.

    Args:
        stop: int64[1].
        function: its address; it takes five integers or pointers at most.
        arguments: int64[5], those that it takes and zeros.
        usleep: the address of the C library's function of that name.
        pause: between two calls, in microseconds, below one million.
    """
    while stop[0] == 0:
        call(function, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4])
        call(usleep, pause, 0, 0, 0, 0)
