"""Whether a run has ended: it says so itself, in its files, because a launcher's exit status means little."""

import json
import os
from pathlib import Path

from hpcvol.elastic.ledger import LEDGER_NAME

SUMMARY_NAME = "summary.json"

STOP = "stop"
"""The event of the ledger with which a run ends that was asked to stop."""

_LINE_NBYTES = 1 << 16  # that line is shorter


class Completion:
    """Watches the summary and the ledger of a run from before its ranks start.

    Args:
        run_dir: the run's folder; it need not exist yet.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / SUMMARY_NAME
        self._ledger = run_dir / LEDGER_NAME
        self._before = _identity(self._path), _identity(self._ledger)

    def is_complete(self, launcher_status: int) -> bool:
        """Return whether the run is complete now.

        A summary that was there before counts only where the launcher ended well: then the ranks found the run
        complete and left it alone.
        """
        if not self._says_complete():
            return False
        return launcher_status == 0 or _identity(self._path) != self._before[0]

    def has_stopped(self) -> bool:
        """Return whether the run has stopped, as it was asked to, since then: that is its ledger's last line."""
        if _identity(self._ledger) == self._before[1]:
            return False
        try:
            with self._ledger.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LINE_NBYTES))
                last = json.loads(file.read().removesuffix(b"\n").rpartition(b"\n")[2])
        except (OSError, ValueError):
            return False
        return isinstance(last, dict) and last.get("event") == STOP

    def _says_complete(self) -> bool:
        try:
            summary = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(summary, dict) and summary.get("completed") is True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
