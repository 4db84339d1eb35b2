"""Writing files so that a reader sees all of one or nothing, whatever kills the writer."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by a file that holds `text`: written aside, synced, renamed. Local."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until `path`, a file or a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
