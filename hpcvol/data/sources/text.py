"""Text as byte tokens in sequences of fixed length."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from hpcvol.callables import load_callable
from hpcvol.data.manifest import Field
from hpcvol.data.partition import assign_name
from hpcvol.data.shard_writer import Chunk
from hpcvol.data.sources.options import Options
from hpcvol.data.sources.source import Section, Source, shard_nbytes
from hpcvol.errors import ConfigError, DataError

# With fewer documents than give the smallest split about this many, each document is cut instead.
_FEW_DOCUMENTS = 5
_PIECE_NBYTES = 1 << 22


@dataclass(frozen=True)
class _Extent:
    """Bytes begin..end-1 of a file."""

    path: Path
    begin: int
    end: int


def text_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the text at `paths`: files, folders, or `file.py:function` that returns a list of them.

    The bytes of all documents (files) of a split, in the order of their names, are cut into sequences; what is left at
    the end of a split (less than one sequence) is dropped. Where there are many documents each goes whole to the split
    that a hash of its name says, so that nothing of a document seen in training is validated on. Where there are few
    (the smallest split would get less than about five) each is cut by position: its beginning to the first split, and
    so on.

    Options: sequence_length (257: 256 inputs and, one further on, 256 targets); pattern ("*", of the files taken from
    folders, at any depth, without hidden ones); shard_nbytes.
    """
    length = options.integer("sequence_length", 257, least=1)
    documents = _documents(paths, options.text("pattern", "*"))
    return TextSource(documents, shares, length, shard_nbytes(options))


class TextSource:
    """See `text_source`. Sections are runs of sequences of one split."""

    def __init__(
        self, documents: Mapping[str, Path], shares: Mapping[str, float], length: int, shard_nbytes: int
    ) -> None:
        self.fields: Mapping[str, Field] = {"tokens": Field(np.dtype("u1"), (length,))}
        self._length = length
        self._section_rows = max(1, shard_nbytes // length)
        stats = {name: path.stat() for name, path in documents.items()}
        self.signature = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()])
        sizes = {name: stat.st_size for name, stat in stats.items()}
        self._extents = _divide(documents, sizes, shares)
        self._rows = {
            split: sum(extent.end - extent.begin for extent in extents) // length
            for split, extents in self._extents.items()
        }

    def num_rows(self) -> int:
        """Return the number of sequences."""
        return sum(self._rows.values())

    def sections(self, wanted: Callable[[int], bool]) -> Iterator[Section]:
        """Yield the wanted sections; they are numbered through all splits."""
        number = 0
        for split, rows in self._rows.items():
            for first in range(0, rows, self._section_rows):
                if wanted(number):
                    yield Section(number, self._chunks(split, first, min(first + self._section_rows, rows)))
                number += 1

    def _chunks(self, split: str, first: int, last: int) -> Iterator[tuple[str, Chunk]]:
        length = self._length
        held = b""
        for piece in _read(self._extents[split], first * length, last * length):
            held += piece
            rows = len(held) // length
            if rows:
                yield split, {"tokens": np.frombuffer(held, np.uint8, rows * length).reshape(rows, length)}
                held = held[rows * length :]


def _documents(paths: Sequence[str], pattern: str) -> dict[str, Path]:
    """Return the files by name: the path within the folder it was found in, which is the same on any machine."""
    documents: dict[str, Path] = {}
    for path in _expand(paths):
        if path.is_dir():
            files = {file.relative_to(path): file for file in path.rglob(pattern) if file.is_file()}
            found = {name.as_posix(): file for name, file in files.items() if not _hidden(name)}
        elif path.is_file():
            found = {path.name: path}
        else:
            raise DataError(f"There is no file or folder {path} to take text from.")
        for name in sorted(found):
            unique = name
            while unique in documents:
                unique += "'"
            documents[unique] = found[name]
    if not documents:
        raise DataError(f"No files match {pattern!r} in {', '.join(map(str, paths))}; check the path or the pattern.")
    return documents


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _expand(paths: Sequence[str]) -> Iterator[Path]:
    for path in paths:
        if ".py:" not in path:
            yield Path(path)
            continue
        listed = load_callable(path, Path())()
        if isinstance(listed, str | bytes | os.PathLike) or not isinstance(listed, Sequence):
            raise ConfigError(f"{path} returned a {type(listed).__name__}, expected a list of paths.")
        yield from (Path(entry) for entry in listed)


def _divide(
    documents: Mapping[str, Path], sizes: Mapping[str, int], shares: Mapping[str, float]
) -> dict[str, list[_Extent]]:
    extents: dict[str, list[_Extent]] = {split: [] for split in shares}
    whole = len(documents) * min(shares.values()) >= _FEW_DOCUMENTS
    for name, path in documents.items():
        if whole:
            extents[assign_name(name, shares)].append(_Extent(path, 0, sizes[name]))
            continue
        begin = 0
        for split, share in zip(shares, accumulate(shares.values()), strict=True):
            end = round(min(share, 1.0) * sizes[name])
            extents[split].append(_Extent(path, begin, end))
            begin = end
    return extents


def _read(extents: Sequence[_Extent], begin: int, end: int) -> Iterator[bytes]:
    """Yield bytes begin..end-1 of the extents put end to end, in pieces."""
    starts = list(accumulate((extent.end - extent.begin for extent in extents), initial=0))
    index = bisect_right(starts, begin) - 1
    while begin < end:
        extent, within = extents[index], begin - starts[index]
        with extent.path.open("rb") as file:
            file.seek(extent.begin + within)
            left = min(extent.end - extent.begin - within, end - begin)
            while left > 0:
                piece = file.read(min(left, _PIECE_NBYTES))
                if not piece:
                    raise DataError(f"{extent.path} became shorter while it was read. Build the dataset again.")
                yield piece
                begin += len(piece)
                left -= len(piece)
        index += 1
