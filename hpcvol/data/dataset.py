"""Reading a dataset: any samples, in any order, as fast as memory gives them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcvol.data.manifest import Field, Manifest, read_manifest
from hpcvol.data.mapped import MappedShards
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
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.id = manifest.id
        self.fields: Mapping[str, Field] = manifest.fields
        self.splits: Mapping[str, int] = {name: manifest.rows(name) for name in manifest.splits}
        self._manifest = manifest

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
        if not self.splits.get(name):
            known = ", ".join(f"{split} ({rows} samples)" for split, rows in self.splits.items())
            what = "is empty" if name in self.splits else "does not exist"
            raise DataError(
                f"Split {name!r} of dataset {self.path} {what}; it has {known}. Name another split, or build the "
                f"dataset again with a larger share for {name!r} (--split)."
            )
        return Split(MappedShards(self.path, name, self._manifest.splits[name]), self.fields)


class Split:
    """The samples of one split; `len(split)` of them. Safe to use from several threads.

    Attributes:
        fields: the parts of every sample, by name.
    """

    def __init__(self, shards: MappedShards, fields: Mapping[str, Field]) -> None:
        rows = Rows(shards)
        self.fields = fields
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
                f"Sample {indices[bad]} was asked for (entry {bad} of the indices); split {self._shards.split!r} of "
                f"{self._shards.folder} has samples 0 to {self._length - 1}."
            )
        batch: dict[str, Array] = {}
        for field in self._readers:
            field.take(indices, allocate, batch)
        return batch
