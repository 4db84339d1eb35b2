"""Shards on their way from a disk into the page cache while others are being trained on."""

import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

# Asked for a whole file at once, Linux reads the first megabyte or two of it only.
_PIECE_NBYTES = 1 << 20


class ReadAhead:
    """Has the system read whole files, one after the other, in a thread of its own.

    Args:
        files: the shards of a split.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)
        self._asked: frozenset[int] = frozenset()
        self._queue: SimpleQueue[Path | None] = SimpleQueue()
        threading.Thread(target=_read, args=(self._queue,), name="hpcvol-read-ahead", daemon=True).start()
        weakref.finalize(self, self._queue.put, None)

    def want(self, shards: Sequence[int]) -> None:
        """Say which shards are needed now and next, in that order; returns at once."""
        for number in shards:
            if number not in self._asked:
                self._queue.put(self._files[number])
        self._asked = frozenset(shards)


def _read(queue: "SimpleQueue[Path | None]") -> None:
    while (path := queue.get()) is not None:
        with suppress(OSError):  # whoever reads the file says what is wrong with it
            _read_file(path)


def _read_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for begin in range(0, os.fstat(descriptor).st_size, _PIECE_NBYTES):
            os.posix_fadvise(descriptor, begin, _PIECE_NBYTES, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
