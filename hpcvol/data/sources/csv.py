"""Comma-separated files of numbers: one row a sample."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from hpcvol.data.manifest import Field
from hpcvol.data.partition import WINDOW_ROWS
from hpcvol.data.shard_writer import Chunk
from hpcvol.data.sources.files import find_files, signature_of
from hpcvol.data.sources.options import Options, nearest
from hpcvol.data.sources.rows import RowSource, Wanted
from hpcvol.data.sources.source import Source
from hpcvol.errors import ConfigError, DataError

_BEYOND_INT64 = 2**63


def csv_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the rows of the files at `paths`, which begin with the same line of column names.

    Field `x` is float32[columns], the columns in their order; with option label=NAME that column is left out of `x` and
    becomes field `y`: int64 where its first rows are integers, else float32.

    Options: label, delimiter (","), and those of `RowSource`.
    """
    files = find_files(paths, (".csv", ".tsv"), "comma-separated values")
    rows = _CsvRows(files, options.text("label", ""), _delimiter(options))
    return RowSource(rows, shares, options)


def _delimiter(options: Options) -> str:
    text = options.text("delimiter", ",")
    try:
        csv.reader([], delimiter=text)
    except (TypeError, ValueError):
        raise ConfigError(f"Option delimiter of kind csv is {text!r}, expected one character.") from None
    return text


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
        self._name = label
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
                "y": self._labels(places, [row[self._label] for row in rows]),
            },
        )

    def _labels(self, places: list[str], texts: list[str]) -> np.ndarray:
        whole = [_integer(text) for text in texts]
        if self._label_dtype is None:
            self._label_dtype = np.dtype(np.float32) if None in whole else np.dtype(np.int64)
        if self._label_dtype == np.float32:
            return np.array(texts, dtype=str).astype(np.float64).astype(np.float32)
        values = []
        for place, text, number in zip(places, texts, whole, strict=True):
            if number is None:
                raise DataError(
                    f"{place}: the label is {text} (column {self._name!r}), an integer was expected as in the first "
                    "rows. Write the labels of the first rows with a fraction where they are not classes."
                )
            if not -_BEYOND_INT64 <= number < _BEYOND_INT64:
                raise DataError(
                    f"{place}: the label is {text} (column {self._name!r}), expected an integer of at most 64 bits. "
                    "Write the labels of the first rows with a fraction where they are not classes."
                )
            values.append(int(number))
        return np.array(values, np.int64)

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
            rows = self._rows_of(path)
            next(rows)  # the names
            for line, row in rows:
                if row:
                    yield f"{path}, line {line}", row

    def _header(self, path: Path) -> list[str]:
        _, names = next(self._rows_of(path), (1, []))
        if not names:
            raise DataError(f"{path} is empty; expected a first line of column names.")
        return [name.strip() for name in names]

    def _rows_of(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """Yield each row of a file, the names included, and the number of its last line."""
        line = 0
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file, delimiter=self._delimiter)
                for row in reader:
                    line = reader.line_num
                    yield line, row
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, after line {line}: {error}. Convert the file to UTF-8, for example with iconv."
            ) from error
        except csv.Error as error:
            raise DataError(
                f"{path}, after line {line}: {error}. Correct the file, or see whether option delimiter is right."
            ) from error


def _integer(text: str) -> Decimal | None:
    """Return the integer that a number's text stands for, exactly; None where it has a fraction or is not finite."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and number == number.to_integral_value() else None
