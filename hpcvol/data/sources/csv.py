"""Comma-separated files of numbers: one row a sample."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hpcvol.data.manifest import Field
from hpcvol.data.partition import WINDOW_ROWS
from hpcvol.data.shard_writer import Chunk
from hpcvol.data.sources.files import find_files, signature_of
from hpcvol.data.sources.options import Options, nearest
from hpcvol.data.sources.rows import RowSource, Wanted
from hpcvol.data.sources.source import Source
from hpcvol.errors import DataError


def csv_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the rows of the files at `paths`, which begin with the same line of column names.

    Field `x` is float32[columns], the columns in their order; with option label=NAME that column is left out of `x` and
    becomes field `y`: int64 where its first rows are integers, else float32.

    Options: label, delimiter (","), and those of `RowSource`.
    """
    files = find_files(paths, (".csv", ".tsv"), "comma-separated values")
    rows = _CsvRows(files, options.text("label", ""), options.text("delimiter", ","))
    return RowSource(rows, shares, options)


class _CsvRows:
    def __init__(self, paths: Sequence[Path], label: str, delimiter: str) -> None:
        self._paths = paths
        self.declared: Mapping[str, Field] = {}
        self.expected_rows: int | None = None
        self._delimiter = delimiter
        self.signature = signature_of(paths)
        self.num_rows = 0
        self._columns = self._header(paths[0])
        if label and label not in self._columns:
            raise DataError(
                f"{paths[0]}, line 1: there is no column {label!r} for the label; the columns are "
                f"{', '.join(self._columns)}.{nearest(label, self._columns)}"
            )
        self._label = self._columns.index(label) if label else None
        self._label_dtype: np.dtype[np.int64] | np.dtype[np.float32] | None = None
        self._places: list[str] = []

    def windows(self, wanted: Wanted) -> Iterator[tuple[int, Chunk]]:
        number = 0
        places: list[str] = []
        rows: list[list[str]] = []
        for place, row in self._lines():
            places.append(place)
            rows.append(row)
            self.num_rows += 1
            if len(rows) == WINDOW_ROWS:
                yield from self._window(number, places, rows, wanted)
                number, places, rows = number + 1, [], []
        if rows:
            yield from self._window(number, places, rows, wanted)

    def where(self, row: int) -> str:
        return self._places[row % WINDOW_ROWS] if self._places else str(self._paths[0])

    def _window(
        self, number: int, places: list[str], rows: list[list[str]], wanted: Wanted
    ) -> Iterator[tuple[int, Chunk]]:
        if not wanted(number):
            return
        self._places = places
        for place, row in zip(places, rows, strict=True):
            if len(row) != len(self._columns):
                raise DataError(f"{place}: {len(row)} values, expected {len(self._columns)} as in the first line.")
        try:
            numbers = np.array(rows, dtype=str).astype(np.float64)
        except ValueError:
            raise self._not_a_number(places, rows) from None
        if self._label is None:
            yield number, {"x": numbers.astype(np.float32)}
            return
        yield (
            number,
            {
                "x": np.delete(numbers, self._label, axis=1).astype(np.float32),
                "y": self._labels(places, numbers[:, self._label]),
            },
        )

    def _labels(self, places: list[str], values: np.ndarray) -> np.ndarray:
        whole = np.isfinite(values) & (values == np.rint(values))
        if self._label_dtype is None:
            self._label_dtype = np.dtype(np.int64) if whole.all() else np.dtype(np.float32)
        if self._label_dtype == np.int64 and not whole.all():
            bad = int(np.argmin(whole))
            raise DataError(
                f"{places[bad]}: the label is {values[bad]}, an integer was expected as in the first rows. "
                "Write the labels of the first rows with a fraction where they are not classes."
            )
        return values.astype(self._label_dtype)

    def _not_a_number(self, places: list[str], rows: list[list[str]]) -> DataError:
        for place, row in zip(places, rows, strict=True):
            for column, value in zip(self._columns, row, strict=True):
                try:
                    float(value)
                except ValueError:
                    return DataError(
                        f"{place}: column {column!r} is {value!r}, expected a number. Leave columns of text out, or "
                        "turn them into numbers first."
                    )
        return DataError(f"{places[0]}: this and the rows after it cannot be read as numbers.")

    def _lines(self) -> Iterator[tuple[str, list[str]]]:
        for path in self._paths:
            if self._header(path) != self._columns:
                raise DataError(f"{path}, line 1: other columns than those of {self._paths[0]}.")
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file, delimiter=self._delimiter)
                next(reader)
                for row in reader:
                    if row:
                        yield f"{path}, line {reader.line_num}", row

    def _header(self, path: Path) -> list[str]:
        with path.open(newline="", encoding="utf-8-sig") as file:
            columns = [column.strip() for column in next(csv.reader(file, delimiter=self._delimiter), [])]
        if not columns:
            raise DataError(f"{path} is empty; expected a first line of column names.")
        return columns
