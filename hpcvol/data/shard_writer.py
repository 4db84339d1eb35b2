"""Writing one shard."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from hpcvol.data.manifest import BLOCK_NBYTES, Field, Shard, offsets_name
from hpcvol.durable import publish

Array = NDArray[Any]
Chunk = Mapping[str, Array | Sequence[Array]]  # some samples: [k, *shape] a field, or k arrays of a ragged one

_PIECE_NBYTES = 1 << 23
_CACHE_LINE_NBYTES = 64  # rows that straddle a line more than they must are slower to gather


class ShardWriter:
    """Collects samples in plain files beside the shard, and makes an HDF5 file of them when their number is known.

    Contiguous HDF5 arrays have a fixed size from the start and cannot grow; the detour keeps memory small.

    Args:
        folder: for the shard and the files beside it; nobody else writes there.
        split: of the shard.
        number: of the section of the input that the shard holds.
        fields: of every sample.
    """

    def __init__(self, folder: Path, split: str, number: int, fields: Mapping[str, Field]) -> None:
        self._folder = folder
        self._name = f"{split}-{number:05d}"
        self._fields = fields
        self._rows = 0
        self._columns: dict[str, _Column] = {}
        for name, field in fields.items():
            self._columns[name] = _Column(folder / f"{self._name}.{name}", field.dtype, field.shape)
            if field.ragged:
                offsets = _Column(folder / f"{self._name}.{offsets_name(name)}", np.dtype("<i8"), ())
                offsets.write(np.zeros(1, "<i8"))
                self._columns[offsets_name(name)] = offsets

    def append(self, chunk: Chunk) -> None:
        """Add samples."""
        for name, field in self._fields.items():
            values = chunk[name]
            column = self._columns[name]
            if field.ragged:
                lengths = np.array([len(value) for value in values], np.int64)
                self._columns[offsets_name(name)].write(column.items + np.cumsum(lengths))
                for value in values:
                    column.write(value)
            else:
                column.write(np.asarray(values))
        self._rows += len(chunk[next(iter(self._fields))])

    def finish(self) -> Shard:
        """Write the shard, durably."""
        import h5py  # here, since readers never need it and start faster without

        aside = self._folder / f"{self._name}.aside"
        offsets: dict[str, int] = {}
        with h5py.File(aside, "w", locking=False, alignment_threshold=1, alignment_interval=_CACHE_LINE_NBYTES) as file:
            for name, column in self._columns.items():
                offsets[name] = column.copy_into(file, name)
        digest = content_digest({name: column.digest for name, column in self._columns.items()})
        self.close()
        blocks = block_checksums(aside)
        # The name tells the content: a rebuilt dataset never changes a file that somebody has open.
        file_name = f"{self._name}-{digest[:8]}.h5"
        nbytes = aside.stat().st_size
        publish(aside, self._folder / file_name)
        items = {name: self._columns[name].items for name, field in self._fields.items() if field.ragged}
        return Shard(file_name, self._rows, nbytes, offsets, items, digest, blocks)

    def close(self) -> None:
        """Close and remove the files beside the shard."""
        for column in self._columns.values():
            column.remove()


class _Column:
    """One array of the shard while it grows."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._path = path
        self._dtype = dtype
        self._shape = shape
        self._file: IO[bytes] = path.open("wb")
        self._hash = xxhash.xxh3_128()
        self.items = 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, values: Array) -> None:
        """Add values [k, *shape]."""
        data = np.ascontiguousarray(values, self._dtype)
        if data.size:
            data_bytes = data.reshape(-1).view(np.uint8).data
            self._file.write(data_bytes)
            self._hash.update(data_bytes)
        self.items += len(data)

    def copy_into(self, file: Any, name: str) -> int:
        """Write the array `name` of the open HDF5 `file`; return where its data begins in it (0 if it has none)."""
        self._file.close()
        dataset = file.create_dataset(name, (self.items, *self._shape), self._dtype)
        if dataset.size == 0:
            return 0
        item_size = math.prod(self._shape)
        step = max(1, _PIECE_NBYTES // (item_size * self._dtype.itemsize))
        with self._path.open("rb") as values:
            for begin in range(0, self.items, step):
                piece = np.fromfile(values, self._dtype, min(step, self.items - begin) * item_size)
                dataset[begin : begin + step] = piece.reshape(-1, *self._shape)
        file.flush()
        return int(dataset.id.get_offset())

    def remove(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def content_digest(digests: Mapping[str, str]) -> str:
    """Return the digest of a shard, from the xxh3_128 of the values of each of its arrays."""
    return xxhash.xxh3_128_hexdigest("".join(f"{name} {digest}\n" for name, digest in digests.items()).encode())


def block_checksums(path: Path) -> str:
    """Return the checksums of a file's blocks, see `Shard`."""
    with path.open("rb", buffering=0) as file:
        return "".join(map(xxhash.xxh3_64_hexdigest, iter(lambda: file.read(BLOCK_NBYTES), b"")))
