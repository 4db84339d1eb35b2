"""Writing files so that a reader sees all of one or nothing, whatever kills the writer."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcvol.durable import write_text
from hpcvol.errors import HpcvolError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the body, which writes `path`, into an error that says what to do.

    Raises:
        HpcvolError: no room, no permission, or no such place.
    """
    try:
        yield
    except OSError as error:
        raise HpcvolError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another --run-dir, and start the "
            "same command again: it goes on from the last checkpoint"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by a file that holds `text`: written aside, synced, renamed. Local."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_text(path, text, aside)
    finally:
        aside.unlink(missing_ok=True)


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with None for what is not finite, in nested mappings too: strict JSON has no NaN."""
    return {
        key: finite(value)
        if isinstance(value, Mapping)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in values.items()
    }
