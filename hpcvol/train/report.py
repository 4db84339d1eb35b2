"""What a member tells while a run runs: lines on the terminal, `metrics.jsonl`, and the user's own hook."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hpcvol.durable import writing
from hpcvol.train.files import finite, write_whole

Hook = Callable[[int, dict[str, Any]], None]
_TORN = 1 << 62
# Members agree after each step, so that no two are further apart than a step's lines.
_MOST_BEHIND = 4


class Report:
    """Writes one member's view of the run.

    Args:
        path: `metrics.jsonl`; None on a member that keeps no run directory.
        hook: `train.on_metrics`, called as `(step, metrics)`.
        columns: width of the terminal that one progress line is drawn on; None prints plain lines.
        speaks: whether this is the member that prints.
    """

    def __init__(self, path: Path | None, hook: Hook | None, columns: int | None, *, speaks: bool = True) -> None:
        self._path = path
        self._speaks = speaks
        self._hook = hook
        self._columns = columns
        self._drawn = False
        self._drawn_at = 0.0
        # The last lines on every member: whoever takes over writes those that its predecessor did not come to.
        self._recent: deque[dict[str, Any]] = deque(maxlen=_MOST_BEHIND)

    @property
    def recent(self) -> list[dict[str, Any]]:
        """The last lines of the metrics, which all members have."""
        return list(self._recent)

    @recent.setter
    def recent(self, lines: Iterable[dict[str, Any]]) -> None:
        self._recent.clear()
        self._recent.extend(lines)

    def take_over(self, path: Path | None, hook: Hook | None, *, speaks: bool) -> None:
        """Write from now on, in the place of a member that died, what it would have written.

        Args:
            path: as for the class, as are the others.
            hook: of the user.
            speaks: whether this is now the member that prints.
        """
        self._hook, self._speaks = hook, speaks
        if path is None or path == self._path:
            return
        self._path = path
        whole = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [line for line in whole if _step_of(line) != _TORN]
        known = {_key(json.loads(line)) for line in kept}
        kept += [json.dumps(line) for line in self._recent if _key(line) not in known]
        with writing(path):
            write_whole(path, "".join(f"{line}\n" for line in kept))

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps after `step`: the run goes on from there and will write them again."""
        if self._path is not None and self._path.exists():
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            with writing(self._path):
                write_whole(self._path, "".join(f"{line}\n" for line in kept))

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._speaks:
            self._erase()
            print(text, flush=True)

    def progress(self, text: str, *, stays: bool) -> None:
        """Show how far the run is: redrawn in place on a terminal, elsewhere printed when it `stays`."""
        if not self._speaks:
            return
        if self._columns is None:
            if stays:
                print(text, flush=True)
        elif time.monotonic() - self._drawn_at > 0.1:
            print(f"\r\x1b[K{text[: self._columns - 1]}", end="", flush=True)
            self._drawn, self._drawn_at = True, time.monotonic()

    def metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`, with null for what is not finite, and call the hook.

        Raises:
            HpcvolError: the line cannot be written.
        """
        ours = {"step": step}
        line = ours | finite(metrics) | ours
        self._recent.append(line)
        if self._path is not None:
            with writing(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self._hook is not None:
            self._hook(step, dict(metrics))

    def close(self) -> None:
        """Leave the terminal on a line of its own."""
        self._erase()

    def _erase(self) -> None:
        if self._drawn:
            print("\r\x1b[K", end="", flush=True)
            self._drawn = False


def duration(seconds: float) -> str:
    """Return seconds as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return _TORN  # it goes with what is written again


def _key(line: Mapping[str, Any]) -> tuple[int, bool]:
    """Return what tells lines apart: a step has one for its training and one for its validation."""
    return line["step"], "val" in line
