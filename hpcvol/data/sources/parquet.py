"""Parquet files: a column becomes a field."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hpcvol.data.manifest import Field
from hpcvol.data.shard_writer import Array, Chunk
from hpcvol.data.sources.extras import required
from hpcvol.data.sources.file_windows import FileWindows, ReadRows
from hpcvol.data.sources.files import find_files
from hpcvol.data.sources.options import Options, nearest
from hpcvol.data.sources.rows import RowSource
from hpcvol.data.sources.source import Source
from hpcvol.errors import DataError

_BUFFER_NBYTES = 1 << 20  # a column is read through a buffer of this size, not whole
_BATCH_ROWS = 200


def parquet_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the rows of the Parquet files at `paths`, one file after the other, streamed within each row group.

    Numbers become fields as they are, lists of fixed size arrays, other lists ragged fields; strings and binary values
    become ragged bytes (UTF-8), as does a struct with a binary child `bytes`, which is how Hugging Face stores images.

    Options: columns (names of those to take, such as "text,label"; all by default), and those of `RowSource`.
    """
    required("pyarrow", "parquet")
    columns = options.names("columns")
    files = [_ParquetFile(path, columns) for path in find_files(paths, (".parquet", ".pq"), "a Parquet file")]
    return RowSource(FileWindows(files), shares, options)


class _ParquetFile:
    """See `RowFile`."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        with self._parquet() as file:
            schema = file.schema_arrow
            self.num_rows: int = file.metadata.num_rows
        for name in columns:
            if name not in schema.names:
                raise DataError(
                    f"{path} has no column {name!r} (option columns); it has {', '.join(schema.names)}."
                    f"{nearest(name, schema.names)}"
                )
        self.declared: Mapping[str, Field] = {
            name: self._declare(name, schema.field(name).type) for name in (columns or schema.names)
        }
        self.fields = frozenset(self.declared)

    @contextmanager
    def open(self) -> Iterator[ReadRows]:
        """See `RowFile`."""
        with self._parquet() as file:
            rows = _Rows(file, self)
            yield rows.read

    def _declare(self, name: str, kind: Any) -> Field:
        field = _field(kind)
        if field is None:
            raise DataError(
                f"{self.path}: column {name!r} has type {kind}; expected numbers, lists of numbers, strings or binary "
                "values. Name the columns to take with option columns=..., or convert it first."
            )
        return field

    @contextmanager
    def _parquet(self) -> Iterator[Any]:
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(self.path, buffer_size=_BUFFER_NBYTES, pre_buffer=False)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self.path} cannot be read as a Parquet file: {error}.") from error
        with file:
            yield file


class _Rows:
    """Reads ascending ranges of rows; row groups that none of them touches are not read."""

    def __init__(self, parquet: Any, file: _ParquetFile) -> None:
        self._parquet = parquet
        self._file = file
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._begin = 0  # first row of the batch at hand
        self._end = 0  # one past its last row

    def read(self, begin: int, end: int) -> Chunk:
        """Return rows begin..end-1."""
        import pyarrow

        pieces = []
        at = begin
        try:
            while at < end:
                while not self._begin <= at < self._end:
                    self._advance(at)
                last = min(end, self._end)
                pieces.append(self._batch.slice(at - self._begin, last - at))
                at = last
            table = pyarrow.Table.from_batches(pieces).combine_chunks()
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self._file.path}, row {at}: cannot be read: {error}. Copy the file again.") from error
        return {
            name: _values(_only(table.column(name)), f"{self._file.path}, column {name!r}", begin)
            for name in self._file.declared
        }

    def _advance(self, row: int) -> None:
        """Go to the next batch, or to the row group of `row` where that is further on."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if self._starts[group] >= self._end:
            self._batches = self._parquet.iter_batches(
                batch_size=_BATCH_ROWS, row_groups=[group], columns=list(self._file.declared), use_threads=False
            )
            self._end = int(self._starts[group])
        self._batch = next(self._batches)
        self._begin, self._end = self._end, self._end + self._batch.num_rows


def _only(column: Any) -> Any:
    """Return the one array of a combined column."""
    import pyarrow

    return column.chunk(0) if column.num_chunks else pyarrow.array([], column.type)


def _field(kind: Any) -> Field | None:
    """Return the field that a column of Arrow type `kind` becomes, None where it can be none."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _field(kind.value_type)
    if _is_bytes(kind):
        return Field(np.dtype("u1"), (), ragged=True)
    if types.is_list(kind) or types.is_large_list(kind):
        item = _field(kind.value_type)
        return None if item is None or item.ragged else Field(item.dtype, item.shape, ragged=True)
    if types.is_fixed_size_list(kind):
        item = _field(kind.value_type)
        return None if item is None or item.ragged else Field(item.dtype, (kind.list_size, *item.shape))
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        return Field(np.dtype(kind.to_pandas_dtype()), ())
    return None


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_binary,
        types.is_large_binary,
        types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)


def _values(column: Any, where: str, first: int) -> Array | list[Array]:
    """Return the values of an Arrow array: [k, *shape], or k arrays where its field is ragged."""
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        return _values(column.dictionary_decode(), where, first)
    if column.null_count:
        bad = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"{where}, row {first + bad}: there is no value (null). Fill it in, or leave the column out.")
    if types.is_struct(kind):
        return _values(column.field("bytes"), where, first)
    if _is_bytes(kind):
        return [np.frombuffer(value.as_buffer(), np.uint8) for value in column]
    if types.is_list(kind) or types.is_large_list(kind):
        items = np.asarray(_values(column.flatten(), where, first))
        ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
        return np.split(items, ends[:-1])
    if types.is_fixed_size_list(kind):
        items = np.asarray(_values(column.flatten(), where, first))
        return items.reshape(len(column), kind.list_size, *items.shape[1:])
    return np.asarray(column.to_numpy(zero_copy_only=False))
