"""Processes of this machine, told apart for certain: a process id is used again, with its start time it is not."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

GONE = ""
_DEAD = "ZX"  # a zombie computes nothing any more: its launcher has only not collected it yet


@dataclass(frozen=True)
class Process:
    """A process on this machine.

    Attributes:
        pid: its id.
        started: when it was started, in clock ticks since the machine was.
    """

    pid: int
    started: int

    @classmethod
    def current(cls) -> "Process":
        """Return the process that calls. Local."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "Process":
        """Return the process that has this id now. Local.

        Raises:
            OSError: there is none.
        """
        return cls(pid, int(_fields(f"/proc/{pid}/stat")[19]))

    def alive(self) -> bool:
        """Return whether it still runs, or is stopped and can go on. Local: one small read."""
        return self.look().letter != GONE

    def kill(self) -> None:
        """End it by force, if it still runs. Local."""
        with suppress(OSError):
            handle = os.pidfd_open(self.pid)  # before looking: from here on the id cannot become another process's
            try:
                if self.alive():
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)

    def look(self) -> "State":
        """Return what it is about. Local: one small read."""
        try:
            fields = _fields(f"/proc/{self.pid}/stat")
        except OSError:
            return State(GONE, 0.0)
        if fields[0] in _DEAD or int(fields[19]) != self.started:
            return State(GONE, 0.0)
        return State(fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


def started_with(arguments: Sequence[str]) -> Process | None:
    """Return the process whose command line has `arguments` in a row, None where there is none. Local: some ms."""
    wanted = "\0".join(["", *arguments, ""]).encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if wanted in path.read_bytes():
                return Process.of(int(path.parent.name))
    return None


class State(NamedTuple):
    """What the system says of a process.

    Attributes:
        letter: as in /proc/PID/stat: R runs, S sleeps, D waits for a disk, T is stopped, t is traced; `GONE`.
        cpu_seconds: processor time used so far.
    """

    letter: str
    cpu_seconds: float


def letter_of_main_thread() -> str:
    """Return the state of this process's main thread, a letter as in `State`. Local, from any thread."""
    return _fields(f"/proc/self/task/{os.getpid()}/stat")[0]


def _fields(path: str) -> list[str]:
    """Return fields 3 and following of a `stat` file; the second field is a name that may hold blanks and brackets."""
    return Path(path).read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
