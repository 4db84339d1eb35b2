"""Whether a run is complete: it says so itself, in a file, because a launcher's exit status means little."""

import json
from pathlib import Path

SUMMARY_NAME = "summary.json"


class Completion:
    """Watches the summary of a run from before its ranks start.

    Args:
        run_dir: the run's folder; it need not exist yet.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / SUMMARY_NAME
        self._before = self._identity()

    def is_complete(self, launcher_status: int) -> bool:
        """Return whether the run is complete now.

        A summary that was there before counts only where the launcher ended well: then the ranks found the run
        complete and left it alone.
        """
        if not self._says_complete():
            return False
        return launcher_status == 0 or self._identity() != self._before

    def _says_complete(self) -> bool:
        try:
            summary = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(summary, dict) and summary.get("completed") is True

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
