"""Rows of existing HDF5 files, referenced where they lie."""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import xxhash

from hpcvol.data.manifest import Field, Shard
from hpcvol.data.shard_writer import block_checksums, content_digest
from hpcvol.data.sources.files import signature_of
from hpcvol.data.sources.source import LinkedSection
from hpcvol.errors import DataError

_PIECE_NBYTES = 1 << 23
_REMEDY = "Build without --link, which copies the rows."


class LinkedFiles:
    """A source that copies nothing: each shard is a range of rows of a file, which the manifest points to.

    The rows of a file are divided by position, its beginning to the first split and so on, because they stay where they
    are. Sections are files; the file's checksums are computed once.

    Args:
        files: the names of the datasets, by field, in each file.
        shares: of the splits.

    Raises:
        DataError: a dataset that cannot be mapped: chunked, compressed, in another file, of another byte order or type.
    """

    def __init__(self, files: Mapping[Path, Mapping[str, str]], shares: Mapping[str, float]) -> None:
        self.signature = signature_of(list(files))
        self._files = {path.resolve(): _Layout(path, datasets) for path, datasets in files.items()}
        self._shares = shares
        first_path, first = next(iter(self._files.items()))
        self.fields: Mapping[str, Field] = first.fields
        for path, layout in self._files.items():
            if layout.fields != self.fields:
                raise DataError(f"{path} has {layout.fields}, {first_path} has {self.fields}: expected the same.")
        self.expected_rows: int | None = self.num_rows()

    def num_rows(self) -> int:
        """Return the number of rows."""
        return sum(layout.rows for layout in self._files.values())

    def sections(self, wanted: Callable[[int], bool]) -> Iterator[LinkedSection]:
        """Yield a section for each wanted file."""
        for number, (path, layout) in enumerate(self._files.items()):
            if wanted(number):
                yield LinkedSection(number, list(self._shards(path, layout)))

    def _shards(self, path: Path, layout: "_Layout") -> Iterator[tuple[str, Shard]]:
        stat = path.stat()
        blocks = block_checksums(path)
        bounds = [round(min(share, 1.0) * layout.rows) for share in accumulate(self._shares.values(), initial=0)]
        for split, begin, end in zip(self._shares, bounds, bounds[1:], strict=False):
            if end > begin:
                offsets = {name: at + begin * self.fields[name].item_nbytes for name, at in layout.offsets.items()}
                digest = content_digest(
                    {
                        name: _digest(path, at, (end - begin) * self.fields[name].item_nbytes)
                        for name, at in offsets.items()
                    }
                )
                yield (
                    split,
                    Shard(str(path), end - begin, stat.st_size, offsets, {}, digest, blocks, stat.st_mtime_ns),
                )


class _Layout:
    """Where the rows of each field lie in a file."""

    def __init__(self, path: Path, datasets: Mapping[str, str]) -> None:
        self.fields: dict[str, Field] = {}
        self.offsets: dict[str, int] = {}
        self.rows = 0
        with h5py.File(path, "r", locking=False) as file:
            for field, name in datasets.items():
                dataset = file[name]
                problem = _problem(dataset)
                if problem:
                    raise DataError(f"{path}: dataset {name!r} cannot be linked: {problem}. {_REMEDY}")
                self.fields[field] = Field(dataset.dtype, dataset.shape[1:])
                self.offsets[field] = dataset.id.get_offset() or 0
                self.rows = len(dataset)


def _problem(dataset: Any) -> str:
    if dataset.dtype.kind not in "biuf" or dataset.dtype.itemsize > 8:
        return f"its dtype is {dataset.dtype}, expected bool, integers or floats of at most 64 bits"
    if dataset.dtype != dataset.dtype.newbyteorder("<"):
        return "its numbers are big-endian"
    if dataset.is_virtual or dataset.external:
        return "its rows lie in other files"
    if dataset.chunks is not None:
        how = f"compressed ({dataset.compression})" if dataset.compression else "in chunks"
        return f"it is stored {how}, expected contiguous rows"
    if dataset.size and dataset.id.get_offset() is None:
        return "it has no place of its own in the file (compact, or never written)"
    return ""


def _digest(path: Path, begin: int, nbytes: int) -> str:
    hashed = xxhash.xxh3_128()
    with path.open("rb") as file:
        file.seek(begin)
        for done in range(0, nbytes, _PIECE_NBYTES):
            hashed.update(file.read(min(_PIECE_NBYTES, nbytes - done)))
    return hashed.hexdigest()
