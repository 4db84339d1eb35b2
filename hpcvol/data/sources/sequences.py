"""Files put end to end and cut into sequences of fixed length: what text and token files have in common."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from hpcvol.data.manifest import Field
from hpcvol.data.partition import assign_name
from hpcvol.data.shard_writer import Chunk
from hpcvol.data.sources.files import signature_of
from hpcvol.data.sources.source import Section
from hpcvol.errors import DataError

# With fewer documents than give the smallest split about this many, each document is cut instead.
_FEW_DOCUMENTS = 5
_PIECE_NBYTES = 1 << 22


@dataclass(frozen=True)
class _Extent:
    """Tokens begin..end-1 of a file."""

    path: Path
    begin: int
    end: int


class SequenceSource:
    """Sequences of tokens; a file is a document. Sections are runs of sequences of one split.

    The tokens of all documents of a split, in the order given, are cut into sequences; what is left at the end of a
    split (less than one sequence) is dropped. Where there are many documents each goes whole to the split that a hash
    of its name says, so that nothing of a document seen in training is validated on. Where there are few (the smallest
    split would get less than about five) each is cut by position: its beginning to the first split, and so on.

    Args:
        documents: the files by name.
        dtype: of a token.
        shares: of the splits.
        length: tokens a sequence.
        shard_nbytes: see `source.shard_nbytes`.
        num_values: tokens have to be below it; 0 does not look.

    Raises:
        DataError: a file that is not a whole number of tokens long.
    """

    def __init__(
        self,
        documents: Mapping[str, Path],
        dtype: np.dtype[Any],
        shares: Mapping[str, float],
        length: int,
        shard_nbytes: int,
        num_values: int = 0,
    ) -> None:
        self.fields: Mapping[str, Field] = {"tokens": Field(dtype, (length,))}
        self._dtype = dtype
        self._length = length
        self._num_values = num_values
        self._section_rows = max(1, shard_nbytes // (length * dtype.itemsize))
        self.signature = signature_of(documents)
        self._extents = _divide(documents, dtype, shares)
        self._rows = {
            split: sum(extent.end - extent.begin for extent in extents) // length
            for split, extents in self._extents.items()
        }
        self.expected_rows: int | None = self.num_rows()

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
        held = np.empty(0, self._dtype)
        for piece in self._read(self._extents[split], first * length, last * length):
            held = np.concatenate([held, piece])
            rows = len(held) // length
            if rows:
                yield split, {"tokens": held[: rows * length].reshape(rows, length)}
                held = held[rows * length :]

    def _read(self, extents: Sequence[_Extent], begin: int, end: int) -> Iterator[np.ndarray]:
        """Yield tokens begin..end-1 of the extents put end to end, in pieces."""
        starts = list(accumulate((extent.end - extent.begin for extent in extents), initial=0))
        index = bisect_right(starts, begin) - 1
        while begin < end:
            extent, within = extents[index], begin - starts[index]
            first = extent.begin + within
            last = min(extent.end, first + end - begin)
            yield from self._read_file(extent.path, first, last)
            begin += last - first
            index += 1

    def _read_file(self, path: Path, begin: int, end: int) -> Iterator[np.ndarray]:
        with path.open("rb") as file:
            file.seek(begin * self._dtype.itemsize)
            for first in range(begin, end, _PIECE_NBYTES):
                count = min(_PIECE_NBYTES, end - first)
                tokens = np.frombuffer(file.read(count * self._dtype.itemsize), self._dtype)
                if len(tokens) < count:
                    raise DataError(f"{path} became shorter while it was read. Build the dataset again.")
                self._check(path, first, tokens)
                yield tokens

    def _check(self, path: Path, first: int, tokens: np.ndarray) -> None:
        if self._num_values and tokens.max() >= self._num_values:
            bad = int(np.argmax(tokens >= self._num_values))
            raise DataError(
                f"{path}: token {first + bad} is {tokens[bad]}, expected less than vocab_size={self._num_values}. "
                "Look at option dtype (another than the file was written with gives such numbers), or at vocab_size."
            )


def _divide(
    documents: Mapping[str, Path], dtype: np.dtype[Any], shares: Mapping[str, float]
) -> dict[str, list[_Extent]]:
    extents: dict[str, list[_Extent]] = {split: [] for split in shares}
    whole = len(documents) * min(shares.values()) >= _FEW_DOCUMENTS
    for name, path in documents.items():
        size = _num_tokens(path, dtype)
        if whole:
            extents[assign_name(name, shares)].append(_Extent(path, 0, size))
            continue
        begin = 0
        for split, share in zip(shares, accumulate(shares.values()), strict=True):
            end = round(min(share, 1.0) * size)
            extents[split].append(_Extent(path, begin, end))
            begin = end
    return extents


def _num_tokens(path: Path, dtype: np.dtype[Any]) -> int:
    nbytes = path.stat().st_size
    if nbytes % dtype.itemsize:
        raise DataError(
            f"{path} has {nbytes} bytes, which is no whole number of tokens of dtype {dtype} ({dtype.itemsize} bytes): "
            "it is damaged, or was written with another dtype (option dtype)."
        )
    return nbytes // dtype.itemsize
