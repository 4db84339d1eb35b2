"""Samples that a Python function returns: any iterable, or any map-style dataset."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hpcvol.callables import load_callable
from hpcvol.data.manifest import Field
from hpcvol.data.partition import WINDOW_ROWS
from hpcvol.data.shard_writer import Array, Chunk
from hpcvol.data.sources.options import Options
from hpcvol.data.sources.rows import RowSource, Wanted
from hpcvol.data.sources.source import Source
from hpcvol.errors import ConfigError, DataError


def python_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return what the function `paths[0]` (`file.py:function` or `package.module:function`) returns.

    That is a map-style dataset (it has __len__ and __getitem__, as torch's do) or any iterable. A sample is a mapping
    of field names to arrays or numbers, a tuple (x, y), or one array, which becomes field `x`; arrays are whatever
    np.asarray understands. With many parts each computes its own samples of a map-style dataset, while of an iterable
    each computes all and keeps its own.

    Options: those of `RowSource`.
    """
    if len(paths) != 1:
        raise ConfigError(f"Kind python takes one file.py:function, got {len(paths)} paths.")
    return RowSource(_PythonRows(paths[0]), shares, options)


class _PythonRows:
    def __init__(self, spec: str) -> None:
        self._spec = spec
        self.declared: Mapping[str, Field] = {}
        function = load_callable(spec, Path())
        try:
            self._samples = function()
        except Exception as error:
            raise DataError(f"{spec} raised {type(error).__name__}: {error}") from error
        self._map_style = hasattr(self._samples, "__len__") and hasattr(self._samples, "__getitem__")
        if isinstance(self._samples, Mapping | str | bytes) or not (
            self._map_style or isinstance(self._samples, Iterable)
        ):
            raise ConfigError(
                f"{spec} returned a {type(self._samples).__name__}; expected samples: an iterable, or a dataset with "
                "__len__ and __getitem__."
            )
        self.num_rows = len(self._samples) if self._map_style else 0
        self.expected_rows: int | None = self.num_rows if self._map_style else None
        code = Path(inspect.getsourcefile(function) or "")
        self.signature = hashlib.sha256(code.read_bytes()).hexdigest() if code.is_file() else spec

    def where(self, row: int) -> str:
        return f"{self._spec}, sample {row}"

    def windows(self, wanted: Wanted) -> Iterator[tuple[int, Chunk]]:
        return self._map_windows(wanted) if self._map_style else self._stream_windows(wanted)

    def _map_windows(self, wanted: Wanted) -> Iterator[tuple[int, Chunk]]:
        for number, first in enumerate(range(0, self.num_rows, WINDOW_ROWS)):
            if wanted(number):
                rows = range(first, min(first + WINDOW_ROWS, self.num_rows))
                yield number, self._columns(first, (self._samples[row] for row in rows))

    def _stream_windows(self, wanted: Wanted) -> Iterator[tuple[int, Chunk]]:
        stream = iter(self._samples)
        number = 0
        while True:
            window = self._columns(self.num_rows, islice(stream, WINDOW_ROWS), keep=wanted(number))
            rows = len(next(iter(window.values()), ()))
            self.num_rows += rows
            if rows and wanted(number):
                yield number, window
            if rows < WINDOW_ROWS:
                return
            number += 1

    def _columns(self, first: int, samples: Iterable[Any], keep: bool = True) -> dict[str, list[Array]]:
        """Turn samples into columns; without `keep` only their number matters."""
        columns: dict[str, list[Array]] = {}
        row = first
        iterator = iter(samples)
        while True:
            try:
                sample = next(iterator)
            except StopIteration:
                return columns
            except Exception as error:
                raise DataError(f"{self.where(row)}: raised {type(error).__name__}: {error}") from error
            named = self._named(sample, row)
            if columns and set(named) != set(columns):
                raise DataError(
                    f"{self.where(row)} has the fields {', '.join(named)}; the samples before it have "
                    f"{', '.join(columns)}."
                )
            for name, value in named.items():
                columns.setdefault(name, []).append(np.asarray(value) if keep else np.empty(0))
            row += 1

    def _named(self, sample: Any, row: int) -> Mapping[str, Any]:
        if isinstance(sample, Mapping):
            if not sample:
                raise DataError(f"{self.where(row)} is a mapping without fields.")
            return sample
        if isinstance(sample, tuple):
            if len(sample) != 2:
                raise DataError(
                    f"{self.where(row)} is a tuple of {len(sample)}; expected (x, y), or a mapping of field names to "
                    "arrays."
                )
            return {"x": sample[0], "y": sample[1]}
        return {"x": sample}
