"""The ledger of a run: a line for each committed version and for each event, chained by hash.

Each line is a JSON object whose `prev` is the SHA-256 of the line before, so that none can be changed or taken out
without changing all that follow. Every member makes every line, from what all of them know alike, and remembers the
last ones; those that keep the run directory write them. So whoever takes over writes what its predecessor did not.
"""

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from hpcvol.durable import writing

logger = logging.getLogger("hpcvol")

LEDGER_NAME = "ledger.jsonl"
# Lines are brought to disk at least so often: what a lost host had not written is then among those remembered.
_SYNC_LINES = 1000
# A newcomer is on the host of the member that writes: what that has written stays.
_LINES_TO_NEWCOMERS = 100
# No line is longer.
_LINE_NBYTES = 1 << 20


@dataclass(frozen=True)
class Head:
    """Where a ledger ends: the hash of its last line, and how many there are."""

    hash: str = "0" * 64
    lines: int = 0


class Ledger:
    """The ledger as one member sees it. Local, as all methods are; all members make the same calls in the same order.

    Args:
        path: the file; None on a member that keeps no run directory.
        may_write: whether this member may still write for the run; lines that it may not write are remembered only.

    Attributes:
        head: where it ends.
    """

    def __init__(self, path: Path | None, may_write: Callable[[], bool] = lambda: True) -> None:
        self._path = path
        self._may_write = may_write
        self._file: int | None = None
        self._unsynced = 0
        self._recent: deque[bytes] = deque(maxlen=2 * _SYNC_LINES)
        self.head = Head()

    def begin(self, head: Head) -> None:
        """Go on after `head`: lines behind it are of steps that are made again, and are cut off.

        Raises:
            HpcvolError: the file cannot be written.
        """
        self.head = head
        self._recent.clear()
        if self._path is None:
            return
        with writing(self._path):
            nbytes, last = _first_lines(self._path, head.lines)
            if last != head.hash:
                logger.warning(
                    "%s does not lead to where the checkpoint says: it was changed or lost lines", self._path
                )
            os.ftruncate(self._open(), nbytes)

    def event(self, kind: str, **facts: Any) -> None:
        """Add what happened to the run: `kind`, such as "death", and facts for JSON, the same on every member.

        Raises:
            HpcvolError: the file cannot be written.
        """
        self._add({"event": kind, **facts})

    def version(self, version: int, **facts: Any) -> None:
        """Add a committed version: the state after `version` steps, and facts for JSON, the same on every member.

        Raises:
            HpcvolError: the file cannot be written.
        """
        self._add({"version": version, **facts})

    def take_over(self, path: Path | None) -> None:
        """Write from now on to `path`, in the place of one that died or left: mend a torn tail, write missing lines.

        Raises:
            HpcvolError: the file cannot be written.
        """
        if path is None or path == self._path:
            return
        self._path = path
        with writing(path):
            self._mend()
        self.sync()

    @property
    def recent(self) -> tuple[Head, list[bytes]]:
        """Where it ends, and the last lines, for a member that joins."""
        return self.head, list(self._recent)[-_LINES_TO_NEWCOMERS:]

    def follow(self, head: Head, lines: Iterable[bytes]) -> None:
        """Go on from what `recent` gave on another member."""
        self.head = head
        self._recent.clear()
        self._recent.extend(lines)

    def sync(self) -> None:
        """Bring what was written to disk.

        Raises:
            HpcvolError: it cannot be.
        """
        if self._path is not None and self._file is not None:
            with writing(self._path):
                os.fsync(self._file)
        self._unsynced = 0

    def hand_over(self) -> None:
        """Write no more: another member will."""
        self.close()
        self._path = None

    def close(self) -> None:
        """Close the file. More lines would open it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _add(self, facts: dict[str, Any]) -> None:
        line = json.dumps({"prev": self.head.hash, **facts}).encode() + b"\n"
        self.head = Head(hash_of(line), self.head.lines + 1)
        self._recent.append(line)
        if self._path is None or not self._may_write():
            return
        with writing(self._path):
            self._write(line)
        self._unsynced += 1
        if self._unsynced >= _SYNC_LINES:
            self.sync()

    def _open(self) -> int:
        if self._file is None:
            assert self._path is not None
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        return self._file

    def _write(self, data: bytes) -> None:
        file, rest = self._open(), memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]

    def _mend(self) -> None:
        """Keep what is written up to the last line that is one of ours, and write the lines that follow it."""
        file, recent = self._open(), list(self._recent)
        known = {hash_of(line): number for number, line in enumerate(recent, 1)}
        before = json.loads(recent[0])["prev"] if recent else self.head.hash
        known[before] = 0
        nbytes = os.fstat(file).st_size
        begin = max(0, nbytes - sum(map(len, recent)) - 2 * _LINE_NBYTES)
        tail = os.pread(file, nbytes - begin, begin)
        whole = end = tail.rfind(b"\n") + 1
        while end:
            start = tail.rfind(b"\n", 0, end - 1) + 1
            if (written := known.get(hash_of(tail[start:end]))) is not None:
                break
            end = start
        else:
            written = 0
            if before != Head().hash:
                logger.warning("%s does not hold the lines that were written last: it was changed", self._path)
                end = whole
        os.ftruncate(file, begin + end)
        self._write(b"".join(recent[written:]))


def hash_of(line: bytes) -> str:
    """Return the hash of a line, with or without its end."""
    return sha256(line.removesuffix(b"\n")).hexdigest()


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers in order as in `0-2,5`."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def from_ranges(text: str) -> list[int]:
    """Return the numbers that `ranges` was given.

    Raises:
        ValueError: it is nothing of that kind.
    """
    found: list[int] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _first_lines(path: Path, count: int) -> tuple[int, str]:
    """Return how many bytes the first `count` lines have, or those that are whole, and the hash of the last."""
    nbytes, last = 0, Head().hash
    if path.exists():
        with path.open("rb") as file:
            for line, _ in zip(file, range(count), strict=False):
                if line.endswith(b"\n"):
                    nbytes, last = nbytes + len(line), hash_of(line)
    return nbytes, last
