"""How a run ends when something went wrong: one clear message, nobody left hanging, an exit status that says so."""

import atexit
import fcntl
import os
import signal
import stat
import struct
import sys
import termios
import threading
import time
import traceback
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

from hpcvol.comm.calls import live_calls
from hpcvol.comm.group import Group
from hpcvol.comm.launcher import launcher
from hpcvol.comm.surviving import survives_failures
from hpcvol.errors import CommError, HpcvolError, LeftBehindError, LostMemberError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
_UNREAD_SECONDS = 2.0
# How long members leave the word to the one of them that reports an error of all.
_SPEAKER_SECONDS = 5.0
_ABORT_SECONDS = 5.0

_world: Group | None = None
_apart = False
_leaves = False
_finalises = True
_status = 0


def end_together(world: Group) -> None:
    """From now on an uncaught exception on one member of `world` ends the run on all of them. Local, idempotent."""
    global _world, _leaves
    if not _leaves and world.size > 1:
        atexit.register(_leave, os.getpid())
        _leaves = True
    _world = world
    sys.excepthook = _on_uncaught
    threading.excepthook = _on_uncaught_in_thread


def fail(error: BaseException) -> NoReturn:
    """Report `error` and end the run on all members. For callers that catch an exception at the very top.

    Who was left behind ends alone: whatever it told MPI could end those that go on without it.

    An error that all members raised (`everywhere=True`) is printed by the first and all leave in order. Any other one
    is printed by the member that has it, and MPI ends the others, since they would wait for this one forever. An
    HpcvolError is one message, other exceptions come with their traceback. KeyboardInterrupt prints nothing.

    Raises:
        SystemExit: where no other member has to be ended: status 1, or 130 after KeyboardInterrupt.
    """
    global _status
    if isinstance(error, LeftBehindError):
        _end_alone(error)
    everywhere = isinstance(error, HpcvolError) and error.everywhere
    speaks = not isinstance(error, HpcvolError) or not everywhere or _speaks_for_all(error)
    in_order = everywhere and not _calls_were_given_up()
    if not speaks and not in_order:
        time.sleep(_SPEAKER_SECONDS)  # it ends this process meanwhile, unless something is wrong with it too
        speaks = True
    if speaks:
        print(_report(error), end="", file=sys.stderr)
    status = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_FAILED
    _status = status
    if not in_order and _world is not None and _world.size > 1:
        end_all(status)
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(status)


def end_apart() -> NoReturn:
    """End this process alone, in order, when the others have agreed to go on without it. Local.

    Raises:
        SystemExit: always, with status 0.
    """
    global _apart
    _apart = True
    raise SystemExit(0)


def _end_alone(error: LeftBehindError) -> NoReturn:
    """Report `error` and end this process at once, with a word to nobody."""
    if not error.everywhere or _speaks_for_all(error):
        print(_report(error), end="", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    wait_until_read(1, 2)
    # Open MPI's launcher ends all members where one of them exits with a status, and none where one dies of a signal.
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(EXIT_FAILED)


def leave_mpi_open() -> None:
    """From now on end without finalising MPI, when all members have come to their end. Local.

    For processes that had to do with newcomers: Open MPI 5.0 waits for ever in MPI_Finalize for those that died.
    """
    global _finalises
    _finalises = False


def end_all(status: int) -> None:
    """End all members at once, this one too, when what they said has been read. Local, from any thread.

    Returns where MPI has been finalised: then there is nobody to end.
    """
    from mpi4py import MPI

    sys.stdout.flush()
    sys.stderr.flush()
    wait_until_read(1, 2)
    if not MPI.Is_finalized():
        # An MPI that allows one thread at a time may never get to it while another one waits in a call.
        last_resort = threading.Timer(_ABORT_SECONDS, os._exit, (status,))
        last_resort.daemon = True
        last_resort.start()
        MPI.COMM_WORLD.Abort(status)


def _report(error: BaseException) -> str:
    alone = _world is None or _world.size == 1
    if isinstance(error, KeyboardInterrupt):
        return ""
    if isinstance(error, HpcvolError):
        who = "" if alone or error.everywhere or _world is None else f"{_world.name_of_me}: "
        return f"hpcvol: error: {who}{error}\n"
    text = "".join(traceback.format_exception(error))
    return text if alone or _world is None else f"{text}hpcvol: error: {_world.name_of_me} raised the exception above\n"


def _speaks_for_all(error: HpcvolError) -> bool:
    """Whether this process reports an error of all; asked of the launcher where MPI could not start."""
    if _world is not None:
        me, first = _world.members[_world.rank], _world.members[0]
        return me == (first if error.speaker is None else error.speaker)
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


def _calls_were_given_up() -> bool:
    """Whether some collective call was left unfinished: then others may wait for ever, and MPI cannot be finalised."""
    return any(calls.abandoned for calls in live_calls())


def _leave(pid: int) -> None:
    """Leave when all do: the end of a program is the last of the calls that all members have to make alike."""
    from mpi4py import MPI

    if os.getpid() != pid or _world is None or MPI.Is_finalized():
        return
    if _apart:  # finalising MPI is a collective call of all that were started
        _exit(0)
    for calls in live_calls():
        calls.leave()
    said = f"hpcvol: error: {_world.name_of_me} gave a collective call up after an error: ending the run\n"
    if not _calls_were_given_up():
        try:
            _leave_with_all_that_live(_world)
        except CommError as error:
            said = _report(error)
        except (HpcvolError, MPI.Exception) as error:
            print(_report(error), end="", file=sys.stderr)
            end_all(EXIT_FAILED)
        else:
            if not _finalises:
                _exit(_status)
            return
    time.sleep(_SPEAKER_SECONDS)  # those who wait for this member in another call say so, and end it meanwhile
    print(said, end="", file=sys.stderr)
    end_all(EXIT_FAILED)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _leave_with_all_that_live(world: Group) -> None:
    while True:
        try:
            world.leave()
        except LostMemberError:
            if not survives_failures():
                raise
            world.agree(False)
            with suppress(LostMemberError):
                world.shrink()
        else:
            if world.reserve is not None:
                world.reserve.dismiss()
            return


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
