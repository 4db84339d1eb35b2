"""How a run ends when something went wrong: one clear message, nobody left hanging, an exit status that says so."""

import fcntl
import os
import stat
import struct
import sys
import termios
import threading
import time
import traceback
from types import TracebackType
from typing import NoReturn

from hpcvol.comm.group import Group
from hpcvol.comm.launcher import launcher
from hpcvol.errors import HpcvolError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
_UNREAD_SECONDS = 2.0

_world: Group | None = None


def end_together(world: Group) -> None:
    """From now on an uncaught exception on one member of `world` ends the run on all of them. Local, idempotent."""
    global _world
    _world = world
    sys.excepthook = _on_uncaught
    threading.excepthook = _on_uncaught_in_thread


def fail(error: BaseException) -> NoReturn:
    """Report `error` and end the run on all members. For callers that catch an exception at the very top.

    An error that all members raised (`everywhere=True`) is printed by the first and all leave in order. Any other one
    is printed by the member that has it, and MPI ends the others, since they would wait for this one forever. An
    HpcvolError is one message, other exceptions come with their traceback. KeyboardInterrupt prints nothing.

    Raises:
        SystemExit: where no other member has to be ended: status 1, or 130 after KeyboardInterrupt.
    """
    everywhere = isinstance(error, HpcvolError) and error.everywhere
    if not everywhere or _is_first():
        print(_report(error), end="", file=sys.stderr)
    status = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    if not everywhere and _world is not None and _world.size > 1:
        wait_until_read(1, 2)
        _end_all(status)
    raise SystemExit(status)


def _report(error: BaseException) -> str:
    alone = _world is None or _world.size == 1
    if isinstance(error, KeyboardInterrupt):
        return ""
    if isinstance(error, HpcvolError):
        who = "" if alone or error.everywhere or _world is None else f"{_world.name_of_me}: "
        return f"hpcvol: error: {who}{error}\n"
    text = "".join(traceback.format_exception(error))
    return text if alone or _world is None else f"{text}hpcvol: error: {_world.name_of_me} raised the exception above\n"


def _is_first() -> bool:
    """Whether this process speaks for all; asked of the launcher where MPI could not start."""
    if _world is not None:
        return _world.rank == 0
    by = launcher()
    return by is None or by.rank == 0


def wait_until_read(*descriptors: int) -> None:
    """Wait, 2 s at most, until what is in these pipes was read: MPICH's launcher drops what is left at an abort."""
    until = time.monotonic() + _UNREAD_SECONDS
    while any(_unread_bytes(descriptor) for descriptor in descriptors) and time.monotonic() < until:
        time.sleep(0.001)


def _unread_bytes(descriptor: int) -> int:
    """The bytes that wait in the pipe of `descriptor`; 0 for what is not a pipe."""
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return 0
        answer: bytes = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])


def _end_all(status: int) -> None:
    from mpi4py import MPI

    if not MPI.Is_finalized():
        MPI.COMM_WORLD.Abort(status)


def _on_uncaught(_: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    # Raising SystemExit here makes the interpreter leave with that status, through atexit and MPI_Finalize.
    fail(error.with_traceback(where))


def _on_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    """Say whose thread died and go on, as Python does: hpcvol's own threads hand their errors to the main one."""
    if args.exc_value is None or args.exc_type is SystemExit:
        return
    name = args.thread.name if args.thread is not None else "a thread"
    who = "" if _world is None else f" of {_world.name_of_me}"
    text = "".join(traceback.format_exception(args.exc_value))
    print(f"{text}hpcvol: warning: {name}{who} ended by the exception above", file=sys.stderr)
