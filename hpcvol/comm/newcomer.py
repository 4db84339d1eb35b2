"""A process that is to become a member of a run that is on its way: how it is started, prepares and says so.

One member, the starter, spawns it; MPI then holds both until the newcomer has started MPI, which it does before
anything else. From there on it prepares by itself, and the two tell each other how far they are in a small file in
memory that the starter holds: nobody waits in MPI for a process that may be killed.
"""

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hpcvol import tracing
from hpcvol.comm import open_mpi
from hpcvol.comm.ending import leave_mpi_open
from hpcvol.comm.processes import Process, started_with
from hpcvol.comm.widening import enter
from hpcvol.errors import CommError

if TYPE_CHECKING:
    from mpi4py import MPI

# Until it knows hpcvol it dies of a signal where anything goes wrong, as in `_end`, also where its starter has died and
# MPI waits for that. Requests to stop wait until somebody listens: MPI would not survive them here.
_PROGRAM = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT})
signal.alarm(60)
try:
    board = os.open(f"/proc/{sys.argv[1]}/fd/{sys.argv[3]}", os.O_RDWR)
    started = open("/proc/self/stat").read().rpartition(")")[2].split()[19]
    os.pwrite(board, os.getpid().to_bytes(8, "little") + int(started).to_bytes(8, "little"), 0)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mpi4py
    mpi4py.rc.initialize = False
    from mpi4py import MPI
    MPI.Init_thread(MPI.THREAD_MULTIPLE)
    from hpcvol.comm import newcomer
    signal.alarm(0)
except BaseException:
    import traceback
    traceback.print_exc()
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
newcomer.arrive(board)
""".replace("SETTINGS", repr({**open_mpi.EAGER, **open_mpi.SURVIVING}))

# The board: words of 8 bytes, and the digest.
_PROCESS, _READY, _CALLED, _DIGEST = 0, 16, 24, 32
DIGEST_NBYTES = 32
_NBYTES = _DIGEST + DIGEST_NBYTES

_START_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_SEARCH_SECONDS = 0.02
_PAUSE_SECONDS = 0.001

_invitation: "Invitation | None" = None


class Newcomer:
    """A process that this one, the starter, has spawned. Local, as its methods are.

    Making one takes until the process has started MPI, some tenths of a second.

    Args:
        member: the id that it is to have.
        program: a module and its arguments, run as `python -m` does.

    Attributes:
        member: the same.
        intercommunicator: of the starter and the newcomer.

    Raises:
        CommError: MPI cannot start it.
    """

    def __init__(self, member: int, program: Sequence[str]) -> None:
        from mpi4py import MPI

        leave_mpi_open()
        self.member = member
        self._board = os.memfd_create("hpcvol-newcomer")
        os.ftruncate(self._board, _NBYTES)
        self._began = time.monotonic()
        me = Process.current()
        self._arguments = [str(me.pid), str(me.started), str(self._board), str(member), *program]
        info = MPI.Info.Create()
        # Open MPI goes on counting those that died: without it there are no slots for a newcomer.
        info.Set("map_by", ":OVERSUBSCRIBE")
        info.Set("bind_to", "none")
        info.Set("wdir", str(Path.cwd()))
        spawned = threading.Event()
        threading.Thread(target=self._guard, args=(spawned,), name="hpcvol-spawn", daemon=True).start()
        try:
            self.intercommunicator: MPI.Intercomm = MPI.COMM_SELF.Spawn(
                sys.executable, ["-c", _PROGRAM, *self._arguments], maxprocs=1, info=info
            )
        except MPI.Exception as error:
            raise CommError(f"MPI cannot start a process that would join: {error.Get_error_string()}") from error
        finally:
            spawned.set()
            info.Free()

    @property
    def process(self) -> Process | None:
        """Its process, None before it has said so."""
        pid, started = self._word(_PROCESS), self._word(_PROCESS + 8)
        return Process(pid, started) if pid and started else None

    @property
    def alive(self) -> bool:
        """Whether it lives."""
        process = self.process
        return process is not None and process.alive()

    @property
    def seconds(self) -> float:
        """How long ago it was spawned."""
        return time.monotonic() - self._began

    @property
    def ready(self) -> bool:
        """Whether it has prepared all that it can prepare alone."""
        return self._word(_READY) != 0

    @property
    def digest(self) -> bytes:
        """What it said of its code and data when it became ready."""
        return os.pread(self._board, DIGEST_NBYTES, _DIGEST)

    def call(self) -> None:
        """Have it come to the meeting in which it becomes a member."""
        os.pwrite(self._board, (1).to_bytes(8, "little"), _CALLED)

    def end(self) -> None:
        """End its process by force."""
        if (process := self.process) is not None:
            process.kill()

    def close(self) -> None:
        """Forget it: it is a member now, or has ended."""
        os.close(self._board)

    def _word(self, place: int) -> int:
        return int.from_bytes(os.pread(self._board, 8, place), "little")

    def _guard(self, spawned: threading.Event) -> None:
        """End this process where the one that it spawns dies before MPI has started there: MPI waits for ever then."""
        process = None
        while not spawned.wait(_LOOK_SECONDS if process else _SEARCH_SECONDS):
            # It may die before it has said who it is: some tenths of a second, in which Python starts.
            process = process or self.process or started_with(self._arguments)
            if self.seconds > _START_SECONDS or (process is not None and not process.alive()):
                if spawned.wait(1.0):
                    return
                print(
                    "hpcvol: a process that was to join died as it started, which MPI does not survive here: "
                    f"process {os.getpid()}, which had started it, ends itself, and the other members go on",
                    file=sys.stderr,
                    flush=True,
                )
                Process.current().kill()


class Invitation:
    """What a newcomer knows of the run that it is to join. Local, as its methods are.

    Attributes:
        member: the id that it will have.
        starter: the process that spawned it.
    """

    def __init__(self, board: int, starter: Process, member: int) -> None:
        self.member = member
        self.starter = starter
        self._board = board
        self._joined = threading.Event()
        threading.Thread(target=self._follow_starter, name="hpcvol-invitation", daemon=True).start()

    def ready(self, digest: bytes) -> "MPI.Comm":
        """Say that all is prepared, wait until the members have come to a point where they take a newcomer in.

        Args:
            digest: of all that members must have in common; the starter compares.

        Returns:
            The communicator of the members and this process.
        """
        from mpi4py import MPI

        os.pwrite(self._board, digest, _DIGEST)
        os.pwrite(self._board, (1).to_bytes(8, "little"), _READY)
        with tracing.span("ready"):
            while not int.from_bytes(os.pread(self._board, 8, _CALLED), "little"):
                time.sleep(_PAUSE_SECONDS)
        return enter(MPI.Comm.Get_parent())

    def accepted(self) -> None:
        """Take note that this process is a member: it lives on without the starter."""
        self._joined.set()

    @property
    def is_open(self) -> bool:
        """Whether this process is no member yet."""
        return not self._joined.is_set()

    def _follow_starter(self) -> None:
        while not self._joined.wait(_LOOK_SECONDS):
            if not self.starter.alive():
                _end()


def invitation() -> Invitation | None:
    """Return what this process was invited to; None for one that was there from the start, or has joined. Local."""
    return _invitation if _invitation is not None and _invitation.is_open else None


def arrive(board: int) -> None:
    """Run the program of a newcomer, whose MPI has been started. Local; called once, by `_PROGRAM`."""
    global _invitation
    leave_mpi_open()
    pid, started, _, member, module, *arguments = sys.argv[1:]
    _invitation = Invitation(board, Process(int(pid), int(started)), int(member))
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except BaseException:
        if _invitation.is_open:
            give_up()
        raise


def give_up() -> NoReturn:
    """End this process, which is no member yet: nobody waits for it, and MPI would for the starter. Local."""
    sys.stdout.flush()
    sys.stderr.flush()
    _end()


def _end() -> NoReturn:
    # Open MPI's launcher ends all members where a process exits with a status, and none where one dies of a signal.
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit
