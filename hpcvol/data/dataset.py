"""Reading a dataset: any samples, in any order, as fast as memory gives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpcvol.data.manifest import Field, Manifest, Shard, read_manifest
from hpcvol.data.mapped import MappedShards
from hpcvol.data.order import order
from hpcvol.data.readers import Allocate, Array, Rows, reader
from hpcvol.errors import DataError
from hpcvol.kernels.gather import first_outside


class Dataset:
    """A folder of shards and their manifest, as `build_dataset` makes it.

        train = Dataset.open("data/").split("train")
        batch = train.take(order(len(train), seed=0, epoch=0, position=0, count=64))

    Attributes:
        path: the folder.
        id: digest of the content, 32 hexadecimal digits.
        fields: the parts of every sample, by name.
        splits: number of samples of each split, by name.

    Args:
        path: the folder, here or on another host.
        manifest: what it holds.
        elsewhere: where shards lie that do not lie in the folder, by the name that the manifest has for them.
    """

    def __init__(self, path: Path, manifest: Manifest, elsewhere: Mapping[str, Path] | None = None) -> None:
        self.path = path
        self.id = manifest.id
        self.fields: Mapping[str, Field] = manifest.fields
        self.splits: Mapping[str, int] = {name: manifest.rows(name) for name in manifest.splits}
        self._manifest = manifest
        self._elsewhere = elsewhere or {}

    @classmethod
    def open(cls, path: str | Path) -> "Dataset":
        """Open the dataset in folder `path`; reads the manifest only.

        Raises:
            DataError: there is no dataset, or its manifest is damaged.
        """
        return cls(Path(path), read_manifest(Path(path)))

    def split(self, name: str) -> "Split":
        """Map the shards of split `name`.

        Raises:
            DataError: no such split, a split without samples, or a shard that is not what the manifest says.
        """
        self.require(name)
        return Split(MappedShards(self.files(name), name), self.fields)

    def require(self, split: str) -> int:
        """Return the number of samples of `split`.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        if not self.splits.get(split):
            known = ", ".join(f"{name} ({rows} samples)" for name, rows in self.splits.items())
            what = "is empty" if split in self.splits else "does not exist"
            raise DataError(
                f"Split {split!r} of dataset {self.path} {what}; it has {known}. Name another split, or build the "
                f"dataset again with a larger share for {split!r} (--split)."
            )
        return self.splits[split]

    def files(self, split: str) -> list[tuple[Path, Shard]]:
        """Return the shards of split `split`, in the order of their rows, and where each lies."""
        shards = self._manifest.splits.get(split, ())
        return [(self._elsewhere.get(shard.file, self.path / shard.file), shard) for shard in shards]


class EpochOrder(Protocol):
    """Which rows of a split an epoch visits, and in which order.

    Attributes:
        num_samples: in every epoch.
    """

    num_samples: int

    def __call__(self, seed: int, epoch: int, position: int, count: int) -> NDArray[np.int64]:
        """Return the rows at positions `position` .. `position + count - 1` of an epoch: a pure function."""


@dataclass(frozen=True)
class Shuffled:
    """Every row once an epoch: see `hpcvol.data.order`."""

    num_samples: int

    def __call__(self, seed: int, epoch: int, position: int, count: int) -> NDArray[np.int64]:
        """See `EpochOrder`."""
        return order(self.num_samples, seed, epoch, position, count)


class Split:
    """The samples of one split; `len(split)` of them. Safe to use from several threads.

    Attributes:
        fields: the parts of every sample, by name.
        order: what training visits.
    """

    def __init__(self, shards: MappedShards, fields: Mapping[str, Field], order: EpochOrder | None = None) -> None:
        rows = Rows(shards)
        self.fields = fields
        self.order = order or Shuffled(int(rows.starts[-1]))
        self._shards = shards
        self._length = int(rows.starts[-1])
        self._readers = [reader(name, field, rows) for name, field in fields.items()]

    def __len__(self) -> int:
        return self._length

    def take(self, indices: NDArray[np.int64], allocate: Allocate = np.empty) -> dict[str, Array]:
        """Return the samples `indices`, in that order.

        The copy runs without the GIL. A block of a shard is checked against its checksum when it is first touched.

        Args:
            indices: int64[k], each in 0..len-1, repeats allowed.
            allocate: called as allocate(shape, dtype) for each returned array, which has to be C-contiguous; lets the
                caller supply memory that is aligned, reused or pinned.

        Returns:
            For each field `f` an array [k, *shape]; for a ragged one [k, longest, *shape], padded with zeros to the
            longest of these samples, and `f_length`: int64[k].

        Raises:
            DataError: an index out of range, or a damaged shard.
        """
        indices = np.ascontiguousarray(indices, np.int64)
        bad = first_outside(indices, self._length)
        if bad >= 0:
            raise DataError(
                f"Sample {indices[bad]} was asked for (entry {bad} of the indices); split "
                f"{self._shards.split!r} of {self._shards.paths[0].parent} has samples 0 to {self._length - 1}."
            )
        batch: dict[str, Array] = {}
        for field in self._readers:
            field.take(indices, allocate, batch)
        return batch
