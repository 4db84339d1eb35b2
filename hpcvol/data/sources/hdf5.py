"""HDF5 files that are there already: datasets of equal first dimension become fields."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcvol.data.manifest import Field
from hpcvol.data.shard_writer import Chunk
from hpcvol.data.sources.file_windows import FileWindows, ReadRows
from hpcvol.data.sources.files import find_files
from hpcvol.data.sources.links import LinkedFiles
from hpcvol.data.sources.options import Options, nearest
from hpcvol.data.sources.rows import RowSource
from hpcvol.data.sources.source import Source
from hpcvol.errors import DataError

_SUFFIXES = (".h5", ".hdf5", ".he5", ".hdf")
_CHUNK_CACHE_NBYTES = 1 << 26  # windows of rows ask for the same compressed chunk again and again


def hdf5_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the rows of the HDF5 files at `paths`, one file after the other.

    Every dataset of a file that has a dimension becomes a field, one in a group under the name `group_dataset`. With
    link=true (`--link`) nothing is copied: the files stay where they are and the manifest points to them, see
    `LinkedFiles` for what that asks of them.

    Options: fields (names of the datasets to take, such as "x,labels/fine"; all by default), link (false), and those of
    `RowSource` where rows are copied.
    """
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  # registers the compressors that h5py itself has not
    wanted = options.names("fields")
    files = [_Hdf5File(path, wanted) for path in find_files(paths, _SUFFIXES, "an HDF5 file")]
    if options.flag("link", False):
        return LinkedFiles({file.path: file.datasets for file in files}, shares)
    return RowSource(FileWindows(files), shares, options)


class _Hdf5File:
    """See `RowFile`. `datasets` are the names in the file by field."""

    def __init__(self, path: Path, wanted: Sequence[str]) -> None:
        self.path = path
        self.declared: Mapping[str, Field] = {}
        with _opened(path) as file:
            found: dict[str, Any] = {}
            file.visititems(lambda name, item: found.update({name: item}) if _has_rows(item) else None)
            for name in wanted:
                if name not in found:
                    raise DataError(
                        f"{path} has no dataset {name!r} (option fields); it has {', '.join(found) or 'none'}."
                        f"{nearest(name, found)}"
                    )
            chosen = {name: found[name] for name in (wanted or found)}
            if not chosen:
                raise DataError(f"{path} holds no datasets with rows.")
            lengths = {name: len(dataset) for name, dataset in chosen.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"{path}: the datasets have {lengths} rows (first dimension); expected the same number in each. Name "
                "those that are samples with option fields=..."
            )
        self.datasets = {name.replace("/", "_"): name for name in chosen}
        self.fields = frozenset(self.datasets)
        self.num_rows = next(iter(lengths.values()))

    @contextmanager
    def open(self) -> Iterator[ReadRows]:
        """See `RowFile`."""
        with _opened(self.path) as file:

            def read(begin: int, end: int) -> Chunk:
                try:
                    return {field: np.asarray(file[name][begin:end]) for field, name in self.datasets.items()}
                except OSError as error:
                    raise DataError(
                        f"{self.path}, rows {begin} to {end - 1}: cannot be read: {error}. Copy the file again, or "
                        "where a compressor is missing `pip install hdf5plugin`."
                    ) from error

            yield read


def _has_rows(item: Any) -> bool:
    return isinstance(item, h5py.Dataset) and item.shape is not None and len(item.shape) > 0


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=_CHUNK_CACHE_NBYTES, rdcc_w0=1.0)
    except OSError as error:
        raise DataError(f"{path} cannot be read as an HDF5 file: {error}.") from error
    with file:
        yield file
