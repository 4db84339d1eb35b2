"""Inputs that are a sequence of rows: checks them, divides them among the splits, cuts them into sections."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from hpcvol.data.manifest import Field, offsets_name
from hpcvol.data.partition import WINDOW_ROWS, assign_rows
from hpcvol.data.shard_writer import Array, Chunk
from hpcvol.data.sources.options import Options
from hpcvol.data.sources.source import Section, shard_nbytes
from hpcvol.errors import DataError

Wanted = Callable[[int], bool]


class Windows(Protocol):
    """An input read in windows of WINDOW_ROWS rows (fewer in the last).

    Attributes:
        signature: see `Source`.
        expected_rows: see `Source`.
        num_rows: rows of the whole input; final once `windows` is exhausted.
        declared: fields that the input itself describes; the others follow from the rows of the first window.
    """

    signature: str
    expected_rows: int | None
    num_rows: int
    declared: Mapping[str, Field]

    def windows(self, wanted: Wanted) -> Iterator[tuple[int, Chunk]]:
        """Yield (number, rows) of each wanted window; `wanted(n)` is asked when window n is due, not before."""

    def where(self, row: int) -> str:
        """Return the words that lead a user to `row` (counted from 0): file and line, or what there is."""


class RowSource:
    """A source over rows.

    Fields are what the first window has. A field whose rows there differ in their first dimension is ragged.

    Args:
        rows: the input.
        shares: of the splits.
        options: ragged (names of fields that are ragged though the first window does not show it), non_finite
            ("refuse" or "keep" NaN and infinities), shard_nbytes.

    Raises:
        DataError: no rows, or rows that cannot be samples.
    """

    def __init__(self, rows: Windows, shares: Mapping[str, float], options: Options) -> None:
        self._rows = rows
        self._shares = shares
        self._keep_non_finite = options.text("non_finite", "refuse", among=("refuse", "keep")) == "keep"
        ragged = options.names("ragged")
        nbytes = shard_nbytes(options)
        self.signature = rows.signature
        self.expected_rows = rows.expected_rows
        self._section_is_wanted: Wanted = lambda _section: True
        self._section_windows = 1
        # Window 0 tells the fields and the size of a row, on which the cut into sections depends: every part reads it.
        self._windows = rows.windows(lambda window: window == 0 or self._section_is_wanted(self._section_of(window)))
        number, first = next(self._windows, (0, {}))
        if number != 0 or not first or _num_rows(first) == 0:
            raise DataError(f"There are no samples in {rows.where(0)}.")
        self.fields: Mapping[str, Field] = {
            name: rows.declared.get(name) or self._infer(name, values, name in ragged) for name, values in first.items()
        }
        self._check_names()
        for name in ragged:
            if name not in self.fields:
                raise DataError(f"Option ragged names {name!r}; the fields are {', '.join(self.fields)}.")
        row_nbytes = sum(np.asarray(value).nbytes for values in first.values() for value in values) / _num_rows(first)
        self._section_windows = max(1, int(nbytes / max(row_nbytes, 1)) // WINDOW_ROWS)
        self._first = first

    def num_rows(self) -> int:
        """Return the number of rows."""
        return self._rows.num_rows

    def sections(self, wanted: Wanted) -> Iterator[Section]:
        """Yield the wanted sections: whole windows, as many as make shard_nbytes."""
        self._section_is_wanted = wanted
        windows = self._wanted_windows(wanted)
        held = next(windows, None)
        while held is not None:
            number = self._section_of(held[0])
            run = [held]

            def chunks(number: int = number, run: list[tuple[int, Chunk]] = run) -> Iterator[tuple[str, Chunk]]:
                while run and self._section_of(run[0][0]) == number:
                    yield from self._divide(*run.pop())
                    run.extend(window for window in [next(windows, None)] if window is not None)

            yield Section(number, chunks())
            held = run[0] if run else None

    def _wanted_windows(self, wanted: Wanted) -> Iterator[tuple[int, Chunk]]:
        if wanted(0):
            yield 0, self._first
        yield from self._windows

    def _section_of(self, window: int) -> int:
        return window // self._section_windows

    def _divide(self, window: int, rows: Chunk) -> Iterator[tuple[str, Chunk]]:
        """Check the rows of a window and yield those of each split."""
        checked = {name: self._check(name, field, window, rows) for name, field in self.fields.items()}
        if set(rows) != set(self.fields):
            raise DataError(
                f"{self._rows.where(window * WINDOW_ROWS)} and the rows after it have the fields "
                f"{', '.join(sorted(rows))}; the first rows have {', '.join(sorted(self.fields))}."
            )
        splits = assign_rows(window, _num_rows(rows), self._shares)
        for position, split in enumerate(self._shares):
            chosen = np.flatnonzero(splits == position)
            if len(chosen):
                yield split, {name: _choose(values, chosen) for name, values in checked.items()}

    def _check_names(self) -> None:
        where = self._rows.where(0)
        for name, field in self.fields.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise DataError(
                    f"{where}: field {name!r} has no usable name; expected letters, digits and underscores, a digit "
                    "not first: models are called with it as an argument. Rename it there, or leave it out."
                )
            for added in {f"{name}_length", offsets_name(name)} & set(self.fields) if field.ragged else ():
                raise DataError(f"Field {added!r} has the name that goes with the ragged field {name!r}; rename one.")

    def _infer(self, name: str, values: Array | Sequence[Array], ragged: bool) -> Field:
        where = self._rows.where(0)
        first = np.asarray(values[0])
        if first.dtype.kind not in "biuf" or first.dtype.itemsize > 8:
            raise DataError(
                f"{where}: field {name!r} has dtype {first.dtype}; expected bool, integers or floats of at most 64 "
                "bits. Turn text and objects into numbers first."
            )
        ragged = ragged or (first.ndim > 0 and any(len(value) != len(first) for value in values))
        if ragged and first.ndim == 0:
            raise DataError(f"{where}: field {name!r} is a single number and cannot be ragged.")
        return Field(first.dtype.newbyteorder("<"), first.shape[1:] if ragged else first.shape, ragged)

    def _check(self, name: str, field: Field, window: int, rows: Chunk) -> Array | list[Array]:
        """Return field `name` of the rows in the field's dtype: [k, *shape], or k arrays where ragged."""
        values = rows.get(name, ())
        if isinstance(values, np.ndarray) and not field.ragged and not self._problem(name, field, values, 1):
            return values.astype(field.dtype, copy=False)
        checked = [np.asarray(value) for value in values]
        for i, row in enumerate(checked):
            problem = self._problem(name, field, row, int(field.ragged))
            if problem:
                raise DataError(f"{self._rows.where(window * WINDOW_ROWS + i)}: field {name!r} {problem}.")
        if field.ragged:
            return [np.asarray(row, field.dtype) for row in checked]
        return np.array(checked, field.dtype).reshape(len(checked), *field.shape)

    def _problem(self, name: str, field: Field, values: Array, free: int) -> str:
        """Return what is wrong with `values`, whose first `free` dimensions may be of any size, or nothing."""
        if values.ndim < free or values.shape[free:] != field.shape:
            problem = f"has shape {values.shape}, the first row has {_shape_words(field)}"
            if not field.ragged and values.ndim and values.shape[1:] == field.shape[1:]:
                problem += f"; where rows may differ in their first dimension, set option ragged={name}"
            return problem
        if not np.can_cast(values.dtype, field.dtype, "safe"):
            return f"has dtype {values.dtype}, the first row has {field.dtype}"
        if not self._keep_non_finite and values.dtype.kind == "f" and not np.isfinite(values).all():
            return "has NaN or infinity; clean the input, or set option non_finite=keep"
        return ""


def _num_rows(rows: Chunk) -> int:
    return len(next(iter(rows.values()))) if rows else 0


def _choose(values: Array | list[Array], chosen: Any) -> Array | list[Array]:
    return [values[i] for i in chosen] if isinstance(values, list) else values[chosen]


def _shape_words(field: Field) -> str:
    return f"(any, {', '.join(map(str, field.shape))})" if field.ragged else str(field.shape)
