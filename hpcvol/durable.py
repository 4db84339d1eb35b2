"""Files that are whole or absent after a crash: written aside, synchronised to disk, then renamed into place."""

import os
from pathlib import Path


def publish(aside: Path, path: Path) -> None:
    """Give the complete file `aside` its name `path`, replacing what was there; both in one file system."""
    sync(aside)
    os.replace(aside, path)
    sync(path.parent)


def write_text(path: Path, text: str, aside: Path) -> None:
    """Write `text` to `path`, which then holds all of it or what it held before; first to `aside`, a name of ours."""
    aside.write_text(text, encoding="utf-8")
    publish(aside, path)


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
