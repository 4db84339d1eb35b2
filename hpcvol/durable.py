"""Files that are whole or absent after a crash: written aside, synchronised to disk, then renamed into place."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpcvol.errors import HpcvolError

_STALE_SECONDS = 24 * 3600


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


def create_aside(path: Path) -> Path:
    """Create an empty file next to `path` to write it first; nobody else, on any host, has the same one."""
    aside = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}.aside")
    aside.touch(exist_ok=False)
    return aside


def remove_stale_asides(folder: Path) -> None:
    """Remove files of `create_aside` in `folder` that nobody writes any more.

    Those are of processes of this host that are gone, and whatever was not written to for a day.
    """
    for aside in folder.glob(".*-*-*.aside"):
        with suppress(OSError):
            owner, process, _ = aside.name.rsplit("-", 2)
            gone = owner.endswith(f".{socket.gethostname()}") and process.isdigit() and not _is_alive(int(process))
            if gone or time.time() - aside.stat().st_mtime > _STALE_SECONDS:
                aside.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the body, which writes a run's file `path`, into an error that says what to do.

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
