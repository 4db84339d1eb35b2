"""Which ranks see one and the same directory: a file that one of them makes there, under a name nobody can guess."""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hpcvol.comm.group import Group
from hpcvol.durable import sync

ABSENT = -1

# How long a name that another host has just made may take to appear: NFS clients remember what was not there.
_PATIENCE_SECONDS = 1.0
_PAUSE_SECONDS = 0.05

# The name of a file, or inode number and time of change where nothing can be written.
_Mark = str | tuple[int, int]


@dataclass(frozen=True)
class Sharing:
    """Who shares a directory with whom.

    Attributes:
        first: by rank, the lowest rank whose directory is the very same; `ABSENT` where there is no directory.
    """

    first: tuple[int, ...]

    @property
    def by_all(self) -> bool:
        """Whether all ranks see one directory."""
        return set(self.first) == {0}

    def same(self, one: int, other: int) -> bool:
        """Whether ranks `one` and `other` see the same directory."""
        return self.first[one] == self.first[other] != ABSENT


def shared(group: Group, paths: Sequence[Path]) -> list[Sharing]:
    """Find out for each of some directories which ranks share it. Collective.

    One rank a node looks. The first rank leaves a file with a random name for the time being; only nodes that do not
    see it leave files of their own. Where a directory cannot be written, two are the same if inode number and time of
    change are. On one node nothing is done: all share.

    Args:
        group: all of its ranks call this.
        paths: as many on each rank; a rank's own paths are looked at.

    Returns:
        One for each path, the same on all ranks.
    """
    if group.node.size == group.size:
        return [Sharing((0,) * group.size) for _ in paths]
    looks = group.node.rank == 0
    seen = _mark_and_look(group, paths, [group.rank == 0] * len(paths), looks, _PATIENCE_SECONDS)
    alone = [looks and one == ABSENT and path.is_dir() for one, path in zip(seen, paths, strict=True)]
    if group.any(any(alone)):
        again = _mark_and_look(group, paths, alone, looks, _PAUSE_SECONDS)
        seen = [one if one != ABSENT else other for one, other in zip(seen, again, strict=True)]
    everybody = group.gather_objects(group.node.broadcast_object(seen))
    return [Sharing(tuple(one[place] for one in everybody)) for place in range(len(paths))]


def _mark_and_look(
    group: Group, paths: Sequence[Path], marks: Sequence[bool], looks: bool, patience_seconds: float
) -> list[int]:
    """Mark those paths that `marks` says; return the lowest rank whose mark is at each, or `ABSENT`. Collective."""
    with _marked(paths, marks) as mine:
        everybody = group.gather_objects(mine)
        seen = [ABSENT] * len(paths)
        until = time.monotonic() + patience_seconds
        while looks:
            for place, path in enumerate(paths):
                candidates = (rank for rank, theirs in enumerate(everybody) if _is_at(path, theirs[place]))
                seen[place] = next(candidates, ABSENT)
            if ABSENT not in seen or time.monotonic() > until:
                break
            _refresh(paths)
            time.sleep(_PAUSE_SECONDS)
        group.barrier()
    return seen


@contextmanager
def _marked(paths: Sequence[Path], marks: Sequence[bool]) -> Iterator[list[_Mark | None]]:
    made = [_make(path) if mark else None for path, mark in zip(paths, marks, strict=True)]
    try:
        yield made
    finally:
        for path, mark in zip(paths, made, strict=True):
            if isinstance(mark, str):
                with suppress(OSError):
                    (path / mark).unlink()


def _make(path: Path) -> _Mark | None:
    if not path.is_dir():
        return None
    name = f".hpcvol-nonce-{secrets.token_hex(8)}"
    try:
        (path / name).touch(exist_ok=False)
        sync(path)
    except OSError:
        return _identity(path)
    return name


def _is_at(path: Path, mark: _Mark | None) -> bool:
    if isinstance(mark, str):
        return (path / mark).exists()
    return mark is not None and _identity(path) == mark


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def _refresh(paths: Sequence[Path]) -> None:
    """Read the folders: an NFS client then asks its server again for names that it took for missing."""
    for path in paths:
        for folder in (path.parent, path):
            with suppress(OSError):
                os.listdir(folder)
