"""From sample numbers to one field of a batch: gathers over the mapped shards of a split."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcvol.data.manifest import BLOCK_SHIFT, Field, offsets_name
from hpcvol.data.mapped import MappedShards
from hpcvol.errors import DataError
from hpcvol.kernels.gather import bucket_table, gather_ragged, gather_rows, unchecked_blocks

Array = NDArray[Any]
Indices = NDArray[np.int64]
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], Array]

_OFFSET_NBYTES = 8


class Rows:
    """Which shard of a split holds which rows."""

    def __init__(self, shards: MappedShards) -> None:
        self.shards = shards
        self.starts: Indices = np.cumsum([0, *(shard.rows for shard in shards.shards)], dtype=np.int64)
        self.buckets, self.shift = bucket_table(self.starts)


class Reader(Protocol):
    """One field of a split."""

    def take(self, indices: Indices, allocate: Allocate, batch: dict[str, Array]) -> None:
        """Put the field of samples `indices` (all in range) into `batch`."""


def reader(name: str, field: Field, rows: Rows) -> Reader:
    """Return the reader of `field`."""
    return RaggedReader(name, field, rows) if field.ragged else FixedReader(name, field, rows)


class FixedReader:
    """A field whose samples all have the same shape."""

    def __init__(self, name: str, field: Field, rows: Rows) -> None:
        self._name = name
        self._field = field
        self._nbytes = field.item_nbytes
        self._values = _Array(name, self._nbytes, rows)
        self._span = np.array([[0, self._nbytes]], np.int64)

    def take(self, indices: Indices, allocate: Allocate, batch: dict[str, Array]) -> None:
        """Put `name`: [k, *shape] into `batch`."""
        out = allocate((len(indices), *self._field.shape), self._field.dtype)
        self._values.check(indices, self._span)
        self._values.gather(indices, self._nbytes, _as_bytes(out, len(indices) * self._nbytes))
        batch[self._name] = out


class RaggedReader:
    """A field whose samples differ in their first dimension: all items of a shard, and where each sample begins."""

    def __init__(self, name: str, field: Field, rows: Rows) -> None:
        self._name = name
        self._field = field
        self._offsets = _Array(offsets_name(name), _OFFSET_NBYTES, rows)
        self._values = _Array(name, 0, rows)
        # Offset i and offset i + 1 lie side by side: a row of two that overlaps the next.
        self._span = np.array([[0, 2 * _OFFSET_NBYTES]], np.int64)

    def take(self, indices: Indices, allocate: Allocate, batch: dict[str, Array]) -> None:
        """Put `name`: [k, longest, *shape] and `name_length`: int64[k] into `batch`."""
        bounds = np.empty((len(indices), 2), np.int64)
        self._offsets.check(indices, self._span)
        self._offsets.gather(indices, 2 * _OFFSET_NBYTES, _as_bytes(bounds, bounds.nbytes))
        self._values.check(indices, bounds * self._field.item_nbytes)
        lengths = allocate((len(indices),), np.dtype(np.int64))
        np.subtract(bounds[:, 1], bounds[:, 0], out=lengths)
        shape = (len(indices), int(lengths.max(initial=0)), *self._field.shape)
        out = allocate(shape, self._field.dtype)
        nbytes = shape[0] * shape[1] * self._field.item_nbytes
        self._values.gather_ragged(indices, self._field.item_nbytes, bounds, _as_bytes(out, nbytes))
        batch[self._name] = out
        batch[f"{self._name}_length"] = lengths


class _Array:
    """One array of the shards: where its rows are, and the check of the blocks that they lie in."""

    def __init__(self, name: str, stride: int, rows: Rows) -> None:
        self._shards = rows.shards
        self._stride = stride
        self._bases = rows.shards.addresses(name)
        self._positions = rows.shards.positions(name)
        self._where = (rows.starts, rows.buckets, rows.shift)

    def check(self, indices: Indices, spans: NDArray[np.int64]) -> None:
        """Check the blocks that bytes `spans` of rows `indices` lie in; spans int64[1, 2] or int64[k, 2]."""
        if self._shards.complete:
            return
        longest = int((spans[:, 1] - spans[:, 0]).max(initial=0))
        out = np.empty(len(indices) * ((longest >> BLOCK_SHIFT) + 2), np.int64)
        checked = self._shards.checked
        found = unchecked_blocks(self._positions, *self._where, self._stride, indices, spans, BLOCK_SHIFT, checked, out)
        if found:
            self._shards.check(out[:found])

    def gather(self, indices: Indices, row_nbytes: int, out: Array) -> None:
        gather_rows(self._bases, *self._where, self._stride, row_nbytes, indices, out)

    def gather_ragged(self, indices: Indices, item_nbytes: int, bounds: NDArray[np.int64], out: Array) -> None:
        gather_ragged(self._bases, *self._where, item_nbytes, indices, bounds, out)


def _as_bytes(out: Array, nbytes: int) -> Array:
    # The kernels write to a bare address: a short or strided array would be written past its end.
    if out.nbytes != nbytes or not out.flags.c_contiguous:
        raise DataError(
            f"allocate() returned an array of shape {out.shape}, dtype {out.dtype}; expected a C-contiguous one of "
            f"{nbytes} bytes, of the shape and dtype that it was asked for."
        )
    return np.frombuffer(out, np.uint8)
