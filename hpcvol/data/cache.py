"""Copies of shards on a node's own disk, made by one process of the node while all of them train."""

import fcntl
import os
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import xxhash

from hpcvol.data.manifest import BLOCK_NBYTES, Shard
from hpcvol.durable import create_aside, publish, remove_stale_asides
from hpcvol.errors import DataError

# Room that is left on the disk: others write there, too.
_LEFT_FREE_NBYTES = 1 << 28
_POLL_SECONDS = 0.5


def copy_name(shard: Shard) -> str:
    """Return the name of a shard's copy: it follows from the content, so that datasets and runs can share a folder."""
    return f"{shard.digest}-{xxhash.xxh3_64_hexdigest(shard.blocks.encode())}.h5"


def free_nbytes(folder: Path) -> int:
    """Return how much may be written to `folder` yet."""
    return max(0, shutil.disk_usage(folder).free - _LEFT_FREE_NBYTES)


def make_folder(folder: Path) -> None:
    """Make the folder of a cache.

    Raises:
        DataError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"data.cache = {folder} cannot be made: {error.strerror}. Name a folder on a disk that every node can "
            "write to."
        ) from error


def is_intact(path: Path, shard: Shard) -> bool:
    """Read the file `path` and return whether it is `shard`, block by block."""
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != shard.nbytes:
                return False
            expected = (shard.blocks[at : at + 16] for at in range(0, len(shard.blocks), 16))
            return all(xxhash.xxh3_64_hexdigest(file.read(BLOCK_NBYTES)) == checksum for checksum in expected)
    except OSError:
        return False


class CacheFiller:
    """Fills the cache in a thread of its own, and tells which copies can be read.

    The processes of a node share the folder. The one that holds the lock copies; should it die, another goes on.

    Args:
        folder: of the cache; made if it is not there.
        files: where each shard lies, and what its manifest says of it.
        moves_along: False copies all shards, as far as there is room; True those that `want` names.

    Attributes:
        folder: of the cache.

    Raises:
        DataError: the folder cannot be made.
    """

    def __init__(self, folder: Path, files: Sequence[tuple[Path, Shard]], *, moves_along: bool = False) -> None:
        make_folder(folder)
        self.folder = folder
        self._files = files
        self._copies = [folder / copy_name(shard) for _, shard in files]
        key = xxhash.xxh3_64_hexdigest("\n".join(copy.name for copy in self._copies).encode())
        self._lock_file = folder / f"{key}.lock"
        self._lock = -1
        self._wanted = [] if moves_along else list(range(len(files)))
        self._moves_along = moves_along
        self._readable: set[int] = set()
        self._changes: dict[int, Path] = {}
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hpcvol-cache", daemon=True)
        self._thread.start()

    def want(self, shards: Sequence[int]) -> None:
        """Say which shards are needed next, in the order of their use: copies of others may make room for them."""
        if list(shards) != self._wanted:
            self._wanted = list(shards)
            self._wake.set()

    def take_changes(self) -> dict[int, Path]:
        """Return where shards are to be read from now on, of those for which that has changed since the last call."""
        with self._mutex:
            changes, self._changes = self._changes, {}
        return changes

    def close(self) -> None:
        """Stop copying; what is there stays."""
        self._closed.set()
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._wake.clear()
                if not self._go_on():
                    self._wake.wait(_POLL_SECONDS)
        finally:
            if self._lock >= 0:
                os.close(self._lock)

    def _go_on(self) -> bool:
        """Notice what others did, and copy a shard; return False where there is nothing to do for now."""
        try:
            self._notice()
            return self._is_first() and self._fetch_one()
        except OSError:  # the folder is gone, or the disk: shards are read where they lie
            return False

    def _is_first(self) -> bool:
        """Return whether this process of the node is the one that copies."""
        if self._lock < 0:
            descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            self._lock = descriptor
            remove_stale_asides(self.folder)
        return True

    def _notice(self) -> None:
        """Look which copies came and went."""
        for number, copy in enumerate(self._copies):
            if self._closed.is_set() or self._files[number][0] == copy:
                continue
            there = copy.exists()
            if there and number not in self._readable:
                if is_intact(copy, self._files[number][1]):
                    self._readable.add(number)
                    self._change(number, copy)
                else:
                    copy.unlink(missing_ok=True)
            elif not there and number in self._readable:
                self._forget(number)

    def _fetch_one(self) -> bool:
        """Copy the next shard that is wanted; return False where there is none, or no room."""
        wanted = self._wanted
        missing = [number for number in wanted if number not in self._readable and self._is_elsewhere(number)]
        if not missing:
            return False
        nbytes = self._files[missing[0]][1].nbytes
        for old in sorted(self._readable - set(wanted)) if self._moves_along else ():
            if free_nbytes(self.folder) >= nbytes:
                break
            self._forget(old)
            self._copies[old].unlink(missing_ok=True)
        return free_nbytes(self.folder) >= nbytes and self._copy(missing[0])

    def _is_elsewhere(self, number: int) -> bool:
        return self._files[number][0] != self._copies[number]

    def _copy(self, number: int) -> bool:
        """Copy a shard, checking each block; a damaged one is left to whoever reads it, who says so.

        Runs with other lists of shards have other locks, and may copy the same one: each to a file of its own.
        """
        source, shard = self._files[number]
        aside: Path | None = None
        try:
            with source.open("rb", buffering=0) as original:
                aside = create_aside(self._copies[number])
                with aside.open("wb") as copy:
                    for at in range(0, len(shard.blocks), 16):
                        block = original.read(BLOCK_NBYTES)
                        if self._closed.is_set() or xxhash.xxh3_64_hexdigest(block) != shard.blocks[at : at + 16]:
                            return False
                        copy.write(block)
            if not is_intact(aside, shard):
                return False
            publish(aside, self._copies[number])
        except OSError:
            return False
        finally:
            if aside is not None:
                with suppress(OSError):
                    aside.unlink(missing_ok=True)
        self._readable.add(number)
        self._change(number, self._copies[number])
        return True

    def _forget(self, number: int) -> None:
        self._readable.discard(number)
        self._change(number, self._files[number][0])

    def _change(self, number: int, path: Path) -> None:
        with self._mutex:
            self._changes[number] = path
