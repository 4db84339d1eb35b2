"""NumPy's .npz files: arrays of equal first dimension become fields."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from hpcvol.data.manifest import Field
from hpcvol.data.shard_writer import Array, Chunk
from hpcvol.data.sources.file_windows import FileWindows, ReadRows
from hpcvol.data.sources.files import find_files
from hpcvol.data.sources.options import Options
from hpcvol.data.sources.rows import RowSource
from hpcvol.data.sources.source import Source
from hpcvol.errors import DataError

_UNREADABLE = (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError)


def npz_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the rows of the .npz files at `paths`, one file after the other.

    Rows are read as they are needed; an array in Fortran's order is read whole, because its rows lie scattered.

    Options: those of `RowSource`.
    """
    files = [_NpzFile(path) for path in find_files(paths, (".npz",), "a .npz file of NumPy")]
    return RowSource(FileWindows(files), shares, options)


class _NpzFile:
    """See `RowFile`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.declared: Mapping[str, Field] = {}
        with _reporting(path), zipfile.ZipFile(path) as archive, ExitStack() as streams:
            arrays = _open_arrays(archive, streams)
        if not arrays:
            raise DataError(f"{path} holds no arrays.")
        lengths = {name: array.shape[0] if array.shape else None for name, array in arrays.items()}
        if None in lengths.values() or len(set(lengths.values())) > 1:
            raise DataError(
                f"{path}: the arrays have {lengths} rows (first dimension); expected the same number in each. "
                "Leave arrays that are not samples out of the file."
            )
        self.fields = frozenset(arrays)
        self.num_rows: int = next(iter(arrays.values())).shape[0]

    @contextmanager
    def open(self) -> Iterator[ReadRows]:
        """See `RowFile`."""
        with _reporting(self.path), zipfile.ZipFile(self.path) as archive, ExitStack() as streams:
            arrays = _open_arrays(archive, streams)

            def read(begin: int, end: int) -> Chunk:
                with _reporting(self.path):
                    return {name: array.rows(begin, end) for name, array in arrays.items()}

            yield read


class _StreamedArray:
    """One array of an archive, whose rows are read in their order."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"array {name} has a header of version {version}: it is no array of plain numbers")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, self._by_columns, self._dtype = header(stream)
        if self._dtype.hasobject:
            raise ValueError(f"array {name} holds Python objects")
        self._begin = stream.tell()
        self._row_nbytes = math.prod(self.shape[1:]) * self._dtype.itemsize
        self._whole: Array | None = None

    def rows(self, begin: int, end: int) -> Array:
        if self._by_columns and len(self.shape) > 1:
            if self._whole is None:
                self._whole = self._read(math.prod(self.shape)).reshape(self.shape, order="F")
            return self._whole[begin:end]
        target = self._begin + begin * self._row_nbytes
        if self._stream.tell() != target:
            self._stream.seek(target)
        return self._read((end - begin) * math.prod(self.shape[1:])).reshape(end - begin, *self.shape[1:])

    def _read(self, count: int) -> Array:
        data = self._stream.read(count * self._dtype.itemsize)
        if len(data) < count * self._dtype.itemsize:
            raise EOFError("an array ends before its last row")
        return np.frombuffer(data, self._dtype, count)


def _open_arrays(archive: zipfile.ZipFile, streams: ExitStack) -> dict[str, Any]:
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    return {
        name.removesuffix(".npy"): _StreamedArray(streams.enter_context(archive.open(name)), name) for name in names
    }


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as a .npz file of numbers: {error}.") from error
