"""The ledger of a run: what every step was made of and what happened between, one JSON object a line.

Each line holds the digest of the one before, so that a line which is changed, left out or put in later shows. What
cannot be told from the file itself is whether lines at its end were cut off: for that the head stands in checkpoints
and in the summary.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hpcvol.durable import sync

LEDGER_NAME = "ledger.jsonl"
# What the first line continues.
BEGINNING = "0" * 64
# Members agree after each step, so that none is further behind than a step's lines.
_MOST_BEHIND = 16

Entry = Mapping[str, Any]


class Line(NamedTuple):
    """One line of a ledger.

    Attributes:
        entry: what it says; JSON, without `chain`.
        digest: SHA-256 (hexadecimal) of the line before's digest and this entry, in the file as `chain`.
    """

    entry: dict[str, Any]
    digest: str


def digest_of(previous: str, entry: Entry) -> str:
    """Return the digest of `entry` behind a line whose digest is `previous`."""
    return hashlib.sha256(f"{previous}{_canonical(entry)}".encode()).hexdigest()


class Ledger:
    """The ledger as every member of a run follows it, with the same entries; those that keep the run write it. Local.

    Args:
        head: digest of the last line that there is.

    Attributes:
        head: digest of the last line.
    """

    def __init__(self, head: str = BEGINNING) -> None:
        self.head = head
        self._path: Path | None = None
        # Whoever takes over writes what its predecessor did not come to: lines, and what the first of them continues.
        self._recent: deque[Line] = deque()
        self._before_recent = head

    def record(self, entry: Entry) -> None:
        """Append `entry`. What is written outlives this process; the system only after `sync`.

        Raises:
            OSError: it cannot be written.
        """
        line = Line(dict(entry), digest_of(self.head, entry))
        self._recent.append(line)
        if len(self._recent) > _MOST_BEHIND:
            self._before_recent = self._recent.popleft().digest
        self.head = line.digest
        if self._path is not None:
            _append(self._path, [line])

    def write_to(self, path: Path) -> None:
        """Keep the ledger in file `path` from now on: take a torn last line away, and write lines that it lacks.

        Raises:
            OSError: it cannot be written.
            ValueError: it is not this ledger.
        """
        last, whole = BEGINNING, 0
        if path.exists():
            for line, end in _read(path):
                last, whole = line.digest, end
            if whole < path.stat().st_size:
                os.truncate(path, whole)
        known = [self._before_recent, *(line.digest for line in self._recent)]
        if last not in known:
            raise ValueError(f"{path} is not the ledger that the members of this run have followed")
        _append(path, list(self._recent)[known.index(last) :])
        self._path = path

    def sync(self) -> None:
        """Have all lines on disk."""
        if self._path is not None and self._path.exists():
            sync(self._path)


def head_of(path: Path) -> str:
    """Return the digest of the last line of the ledger `path` that is whole.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is damaged, or does not continue the one before.
    """
    head = BEGINNING
    if path.exists():
        for line in read_ledger(path):
            head = line.digest
    return head


def read_ledger(path: Path) -> Iterator[Line]:
    """Yield the lines of a ledger, all but a torn last one.

    Raises:
        ValueError: a line is damaged, or does not continue the one before.
    """
    return (line for line, _ in _read(path))


def _read(path: Path) -> Iterator[tuple[Line, int]]:
    """Yield each line and the byte behind it."""
    previous, end = BEGINNING, 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return  # torn: its writer was killed
            end += len(raw)
            line = _decoded(raw, f"{path}, line {number}")
            if line.digest != digest_of(previous, line.entry):
                raise ValueError(
                    f"{path}, line {number} does not continue the one before: a line was changed, left out or put in"
                )
            previous = line.digest
            yield line, end


def _canonical(entry: Entry) -> str:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _append(path: Path, lines: Sequence[Line]) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(b"".join(_encoded(line) for line in lines))


def _encoded(line: Line) -> bytes:
    return f"{json.dumps({**line.entry, 'chain': line.digest}, separators=(',', ':'), allow_nan=False)}\n".encode()


def _decoded(raw: bytes, where: str) -> Line:
    try:
        entry = json.loads(raw)
        digest = entry.pop("chain")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{where} is no line of a ledger ({type(error).__name__}: {error})") from None
    return Line(entry, digest)
