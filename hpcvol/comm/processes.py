"""Processes of this machine, told apart for certain: a process id is used again, with its start time it is not."""

import os
from dataclasses import dataclass
from pathlib import Path

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
        pid = os.getpid()
        return cls(pid, _state_and_start(pid)[1])

    def alive(self) -> bool:
        """Return whether it still runs, or is stopped and can go on. Local: one small read."""
        try:
            state, started = _state_and_start(self.pid)
        except OSError:
            return False
        return state not in _DEAD and started == self.started


def _state_and_start(pid: int) -> tuple[str, int]:
    """Fields 3 and 22 of /proc/PID/stat; the second field is a name that may hold blanks and brackets."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])
