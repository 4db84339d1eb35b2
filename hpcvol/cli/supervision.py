"""Runs a launcher such as mpiexec in a session of its own: a Ctrl-C then reaches us alone and we decide what follows.

Were mpiexec in the terminal's foreground group, a Ctrl-C would reach it and all ranks at once, and it kills ranks half
a second later: too soon for a checkpoint. It forwards SIGUSR1 and lives on, whichever MPI it belongs to.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import psutil

# mpiexec needs half a second to end its ranks after a SIGTERM, more where they are on other nodes.
_END_SECONDS = 3.0
# Open MPI's launcher now and then misses the end of its last rank when another one had been killed, and waits for ever.
_ALONE_SECONDS = 5.0
# And it waits for hosts that it has lost, although the run has ended without them.
_ENDED_SECONDS = 20.0
_LOOK_SECONDS = 1.0
# Asks, however often: Slurm and a job script may both send it for one reason. Of the others a second one ends all.
_REQUEST = signal.SIGUSR1
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ending:
    """How a supervised command ended.

    Attributes:
        status: its exit status, negative for the signal that ended it.
        stopped: whether it was asked to stop, by a signal to this process.
        outlived: whether it was ended here because all that it had started was gone, or the run had ended.
    """

    status: int
    stopped: bool
    outlived: bool = False


class _EndNow(BaseException):
    """Thrown out of the waiting by the second signal; no Exception, so that nothing on the way swallows it."""


class _Supervisor:
    """Passes signals on: the first asks for a checkpoint and an orderly end, a second interrupt ends all at once."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.requested = False
        self.interrupts = 0

    def on_signal(self, number: int, _: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        self.interrupts += number in _INTERRUPTS
        if self.process is None:  # not started yet: `supervise` looks at `requested` when it is
            return
        if first:
            name = signal.Signals(number).name
            again = "; again ends at once" if number in _INTERRUPTS else ""
            print(f"\nhpcvol: {name}: stopping after this step with a checkpoint{again}", file=sys.stderr)
            self.process.send_signal(_REQUEST)
        elif self.interrupts == 2:
            raise _EndNow


def supervise(
    argv: Sequence[str], variables: Mapping[str, str], has_ended: Callable[[], bool] = lambda: False
) -> Ending:
    """Run `argv` with exactly the environment `variables` and wait for its end; main thread only.

    SIGUSR1, SIGINT, SIGTERM and SIGHUP of this process become one SIGUSR1 for the command; a second SIGINT, SIGTERM or
    SIGHUP ends the command and all that it started on this node. So does the end of the run, if the command does not
    follow it by itself.

    Args:
        argv: the command.
        variables: its environment.
        has_ended: whether the run that it was to start says that it has come to its end.

    Returns:
        Its status, and why it ended.
    """
    supervisor = _Supervisor()
    with _handling(supervisor):
        process = subprocess.Popen(argv, env=variables, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            supervisor.process = process
            if supervisor.requested:
                raise _EndNow
            outlived = not _ends_by_itself(process, has_ended)
        except _EndNow:
            outlived = False
            end_session(process)
    return Ending(process.wait(), supervisor.requested, outlived)


def _ends_by_itself(process: subprocess.Popen[bytes], has_ended: Callable[[], bool]) -> bool:
    """Wait for the end of `process`; end it where all that it was started for is gone, or done, for a while."""
    launcher = psutil.Process(process.pid)
    had_children, alone_since = False, None
    ended_since: float | None = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_SECONDS)
            return True
        with suppress(psutil.NoSuchProcess):
            if any(child.status() != psutil.STATUS_ZOMBIE for child in launcher.children()):
                had_children, alone_since = True, None
            else:
                # From the look that finds it alone: the one before may be long ago, as after a suspension.
                alone_since = alone_since or time.monotonic()
        if had_children and alone_since is not None and time.monotonic() - alone_since > _ALONE_SECONDS:
            process.kill()
            return False
        ended_since = (ended_since or time.monotonic()) if has_ended() else None
        if ended_since is not None and time.monotonic() - ended_since > _ENDED_SECONDS:
            end_session(process)
            return False


@contextmanager
def _handling(supervisor: _Supervisor) -> Iterator[None]:
    before = {number: signal.signal(number, supervisor.on_signal) for number in (_REQUEST, *_INTERRUPTS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End `process`, the leader of a session, and all that descends from it or is in its session, by force if needed.

    It is asked first, because it alone can end its ranks on other nodes.
    """
    others = _session(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    process.kill()
    for other in others:
        with suppress(psutil.NoSuchProcess):
            other.kill()


def _session(leader: int) -> list[psutil.Process]:
    """Return all processes in the session of `leader` or descending from it, but for itself."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                found[process.pid] = process
    with suppress(psutil.NoSuchProcess):
        found |= {child.pid: child for child in psutil.Process(leader).children(recursive=True)}
    found.pop(leader, None)
    return list(found.values())
