"""A JSON array that several processes fill at once, and that is whole at every moment, whatever kills them.

The file is laid out in blocks of 4 KiB: what is known from the start, a place of equal size for each process, the
closing bracket. A block holds whole elements, one a line and each with its comma in front, and then spaces. A process
rewrites whole blocks of its own place, and the kernel copies a block in one go, so that a reader finds it as it was or
as it is. In the end the spaces are taken out.

In a place come labels (one block), then the first elements, in half of the rest, and then a ring of the last ones.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hpcvol.durable import create_aside

BLOCK_NBYTES = 4096
_LEAST_BLOCKS = 8
_OPEN, _CLOSE = b"[", b"]"


def create(path: Path, known: Sequence[str], num_places: int, place_nbytes: int) -> list["Place"]:
    """Make the file `path`, which then holds `known`, and return its places. Local.

    Args:
        path: replaced if it is there.
        known: elements known from the start, at least one, each shorter than a block.
        num_places: how many processes write.
        place_nbytes: room for each, a multiple of `BLOCK_NBYTES`.

    Raises:
        OSError: no room, no permission.
    """
    aside = create_aside(path)
    try:
        with aside.open("wb") as file:
            for block in _heading(known):
                file.write(_padded(block))
            start = file.tell()
            for _ in range(num_places * place_nbytes // BLOCK_NBYTES):
                file.write(_padded(b""))
            file.write(_padded(_CLOSE))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return [Place(start + i * place_nbytes, place_nbytes) for i in range(num_places)]


class Place:
    """The place of one process in a file that `create` made: it goes to that process by pickle, to be opened there.

    Args:
        start: where in the file, in bytes.
        nbytes: how much of it.

    Attributes:
        has_kept_first: whether the half for the first elements is full.
        has_dropped: whether elements were dropped to make room for later ones.
    """

    def __init__(self, start: int, nbytes: int) -> None:
        self.has_kept_first = False
        self.has_dropped = False
        self.start = start
        self._num_blocks = nbytes // BLOCK_NBYTES
        if self._num_blocks < _LEAST_BLOCKS:
            raise ValueError(f"a place of {nbytes} bytes: expected {_LEAST_BLOCKS * BLOCK_NBYTES} or more")
        self._ring_start = 1 + (self._num_blocks - 1) // 2
        self._descriptor: int | None = None
        self._labels = b""
        self._block = b""
        self._index = 1

    def open(self, path: Path) -> None:
        """Open the file."""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def label(self, elements: Iterable[str]) -> None:
        """Add elements that are never dropped, while a block has room for them, and write them."""
        for element in elements:
            line = _line(element)
            if len(self._labels) + len(line) < BLOCK_NBYTES:
                self._labels += line
        self._write(0, self._labels)

    def add(self, element: str) -> None:
        """Add an element, which is shorter than a block; `flush` brings it to the file."""
        line = _line(element)
        if len(self._block) + len(line) >= BLOCK_NBYTES:
            self.flush()
            self._block = b""
            self._index += 1
            if self._index == self._num_blocks:
                self._index = self._ring_start
                self.has_dropped = True
            self.has_kept_first = self.has_kept_first or self._index == self._ring_start
        self._block += line

    def flush(self) -> None:
        """Write what was added."""
        self._write(self._index, self._block)

    def close(self) -> None:
        """Close the file; what was added and not flushed is lost. Twice is once."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, index: int, content: bytes) -> None:
        if self._descriptor is not None:
            os.pwrite(self._descriptor, _padded(content), self.start + index * BLOCK_NBYTES)


def compact(path: Path, others: Sequence[Path] = ()) -> None:
    """Take the spaces out of the file `path`, to which nobody writes any more, and add what others like it hold. Local.

    Args:
        path: from `create`, with spaces or without.
        others: more of them.

    Raises:
        OSError: no room, no permission.
    """
    aside = create_aside(path)
    try:
        with aside.open("wb") as target:
            target.write(_OPEN)
            for i, element in enumerate(element for file in [path, *others] for element in _elements(file)):
                target.write(b"\n," + element if i else b"\n" + element)
            target.write(b"\n" + _CLOSE + b"\n")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _elements(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            element = line.strip().removeprefix(b",")
            if element not in (b"", _OPEN, _CLOSE):
                yield element


def _heading(known: Sequence[str]) -> Iterator[bytes]:
    block = _OPEN + b"\n" + known[0].encode()
    for element in known[1:]:
        line = _line(element)
        if len(block) + len(line) >= BLOCK_NBYTES:
            yield block
            block = b""
        block += line
    yield block


def _line(element: str) -> bytes:
    return b"\n," + element.encode()


def _padded(content: bytes) -> bytes:
    return content.ljust(BLOCK_NBYTES - 1) + b"\n"
