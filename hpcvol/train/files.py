"""Writing files so that a reader sees all of one or nothing, whatever kills the writer."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcvol.durable import write_text


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
