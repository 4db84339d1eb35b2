"""Rows of files that say how many they hold, so that a part of a build reads only its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from hpcvol.data.manifest import Field
from hpcvol.data.partition import WINDOW_ROWS
from hpcvol.data.shard_writer import Chunk
from hpcvol.data.sources.files import signature_of
from hpcvol.data.sources.rows import Wanted
from hpcvol.errors import DataError

ReadRows = Callable[[int, int], Chunk]  # read(begin, end): those rows of the file; asked for in ascending order


class RowFile(Protocol):
    """One file.

    Attributes:
        path: of the file.
        num_rows: in it.
        fields: names, the same in all files of an input.
        declared: see `Windows`.
    """

    path: Path
    num_rows: int
    fields: frozenset[str]
    declared: Mapping[str, Field]

    def open(self) -> AbstractContextManager[ReadRows]:
        """Open the file for one pass over some of its rows."""


class FileWindows:
    """Windows of the rows of files put end to end.

    Args:
        files: in the order of their rows.

    Raises:
        DataError: the files have other fields.
    """

    def __init__(self, files: Sequence[RowFile]) -> None:
        self._files = files
        self.signature = signature_of([file.path for file in files])
        self._starts = list(accumulate((file.num_rows for file in files), initial=0))
        self.num_rows = self._starts[-1]
        self.expected_rows: int | None = self.num_rows
        self.declared = files[0].declared
        for file in files:
            if file.fields != files[0].fields:
                raise DataError(
                    f"{file.path} has the fields {', '.join(sorted(file.fields))}; {files[0].path} has "
                    f"{', '.join(sorted(files[0].fields))}. All files of a build need the same."
                )

    def windows(self, wanted: Wanted) -> Iterator[tuple[int, Chunk]]:
        """See `Windows`: a window may begin in one file and end in another."""
        held: list[Chunk] = []
        for file, start in zip(self._files, self._starts, strict=False):
            with file.open() as read:
                begin, end = start, start + file.num_rows
                while begin < end:
                    number = begin // WINDOW_ROWS
                    last = min(end, (number + 1) * WINDOW_ROWS)
                    if wanted(number):
                        held.append(read(begin - start, last - start))
                        if last in ((number + 1) * WINDOW_ROWS, self.num_rows):
                            yield number, _join(held)
                            held = []
                    begin = last

    def where(self, row: int) -> str:
        """See `Windows`."""
        file = max(i for i, start in enumerate(self._starts[:-1]) if start <= row)
        return f"{self._files[file].path}, row {row - self._starts[file]}"


def _join(chunks: Sequence[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    joined = {name: [chunk[name] for chunk in chunks] for name in chunks[0]}
    return {
        name: np.concatenate(parts)
        if all(isinstance(part, np.ndarray) and part.shape[1:] == parts[0].shape[1:] for part in parts)  # type: ignore[union-attr]
        else [row for part in parts for row in part]
        for name, parts in joined.items()
    }
