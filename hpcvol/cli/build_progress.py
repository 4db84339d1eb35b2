"""How far a build has come: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 30.0


class BuildProgress:
    """Called as `progress(samples, expected)`, see `hpcvol.data.build_dataset`. A context manager.

    What counts are samples that stand in shards, not what was read.

    Args:
        part: (index, count) of this process. The bar is drawn where one process builds all, since the others' share is
            not known here.
    """

    def __init__(self, part: tuple[int, int]) -> None:
        index, count = part
        self._who = "" if count == 1 else f"part {index + 1} of {count}: "
        self._files = ExitStack()
        self._bar: Progress | None = None
        if count == 1 and sys.stderr.isatty():
            columns = (TextColumn("building"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=None)
        self._said = time.monotonic()

    def __enter__(self) -> "BuildProgress":
        if self._bar is not None:
            self._files.enter_context(self._bar)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._files.close()

    def __call__(self, samples: int, expected: int | None) -> None:
        """Tell how far it is."""
        if self._bar is not None:
            self._bar.update(self._task, completed=samples, total=expected)
        elif time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            of = "" if expected is None else f" of the {expected} in the input"
            print(f"{self._who}{samples} samples written{of}", flush=True)
