"""The ledger of a run: what every step was made of and what happened between, one JSON object a line.

Each line holds the digest of the one before, so that a line which is changed, left out or put in later shows. What
cannot be told from the file itself is whether lines at its end were cut off: for that the head stands in checkpoints
and in the summary.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hpcvol.durable import sync

LEDGER_NAME = "ledger.jsonl"
# What the first line continues.
BEGINNING = "0" * 64

Entry = Mapping[str, Any]


class Line(NamedTuple):
    """One line of a ledger.

    Attributes:
        entry: what it says; JSON, without `previous` and `digest`.
        digest: SHA-256 (hexadecimal) of the line before's digest and this entry.
    """

    entry: dict[str, Any]
    digest: str


def digest_of(previous: str, entry: Entry) -> str:
    """Return the digest of `entry` behind a line whose digest is `previous`."""
    return hashlib.sha256(f"{previous}{_canonical(entry)}".encode()).hexdigest()


class Ledger:
    """The ledger of a run, for the one member that writes it. Local, as all methods are.

    Opening it takes a torn last line away: it was never said to be written.

    Args:
        path: the file; it need not exist.

    Raises:
        OSError: it cannot be read or written.
        ValueError: a line that is whole is damaged; the message says which.

    Attributes:
        head: digest of the last line.
        version: the last version that it tells of, 0 where none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.head = BEGINNING
        self.version = 0
        good = 0
        if path.exists():
            for line, end in _read(path):
                self._advance(line)
                good = end
            if good < path.stat().st_size:
                os.truncate(path, good)
                sync(path)

    def write(self, entry: Entry) -> str:
        """Append `entry` and return the new head. It outlives this process, not the system, before `sync`."""
        line = Line(dict(entry), digest_of(self.head, entry))
        with self._path.open("ab", buffering=0) as file:
            file.write(_encoded(line))
        self._advance(line)
        return self.head

    def sync(self) -> None:
        """Have all lines on disk."""
        if self._path.exists():
            sync(self._path)

    def _advance(self, line: Line) -> None:
        self.head = line.digest
        self.version = int(line.entry.get("version", self.version))


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


def _encoded(line: Line) -> bytes:
    return f"{json.dumps({**line.entry, 'digest': line.digest}, separators=(',', ':'), allow_nan=False)}\n".encode()


def _decoded(raw: bytes, where: str) -> Line:
    try:
        entry = json.loads(raw)
        digest = entry.pop("digest")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{where} is no line of a ledger ({type(error).__name__}: {error})") from None
    return Line(entry, digest)
