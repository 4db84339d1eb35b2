"""hpcvol datasets for a stock `torch.utils.data.DataLoader`, map-style and iterable.

    loader = DataLoader(MapDataset("data/"), batch_size=256, shuffle=True, num_workers=2)
    loader = DataLoader(IterableDataset("data/", batch_size=256), batch_size=None, num_workers=2)

A whole batch is gathered in one call and handed over from worker processes without being sent (`handoff`). Both pickle
as a path and a few numbers and map the shards where they are first read, so they work under fork, spawn and forkserver.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data
from numpy.typing import NDArray
from torch.utils.data import get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from hpcvol.data import Dataset, Split, order
from hpcvol.errors import ConfigError
from hpcvol.torch import handoff
from hpcvol.torch.samples import Batch, ShardSamples, Transform
from hpcvol.torch.seeding import unit_generator


class MapDataset(torch.utils.data.Dataset[Batch]):
    """A split as a map-style dataset: the DataLoader's sampler says which samples, `__getitems__` gathers them at once.

    Batches are dictionaries of field names to tensors `[batch, *shape]`; ragged fields are padded to the longest of the
    batch, with lengths in `NAME_length`.

    Args:
        path: the dataset's folder.
        split: which of its splits.
        transform: called as `transform(batch, rng)` on a whole batch, in the worker; `rng` is seeded from torch's
            generator, which the DataLoader seeds in each worker. Where workers are spawned it has to be importable.

    Raises:
        DataError: no such dataset or split.
    """

    def __init__(self, path: str | Path, split: str = "train", transform: Transform | None = None) -> None:
        self._shards = _Shards(path, split, transform)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Batch:
        """Return one sample."""
        sample: Batch = _Gathered(self._fetch([index], whole=False), 1)[0]
        return sample

    def __getitems__(self, indices: Sequence[int]) -> "_Gathered":
        """Return samples, gathered in one call; torch's default collating leaves them together."""
        return _Gathered(self._fetch(indices, whole=True), len(indices))

    def _fetch(self, indices: Sequence[int], *, whole: bool) -> Batch:
        seed = int(torch.randint(2**62, ())) if self._shards.transform is not None else 0
        return self._shards.fetch(np.asarray(indices, np.int64), np.random.default_rng(seed), whole=whole)


class IterableDataset(torch.utils.data.IterableDataset[Batch]):
    """A split as an iterable dataset of whole batches, every sample exactly once an epoch; for `batch_size=None`.

    The order follows from (seed, epoch). Workers take batches in turn, so that the DataLoader delivers the same batches
    in the same order whatever the number of workers. Call `set_epoch` before each epoch, as with torch's
    DistributedSampler; it reaches persistent workers too.

    Args:
        path: the dataset's folder.
        split: which of its splits.
        batch_size: samples a batch.
        seed: of the order.
        shuffle: False reads samples as they are stored.
        drop_last: leave out the last samples where they do not give every reader a full batch. Otherwise the last batch
            may be short, and one reader may have a batch more than another.
        part: (index, count): this is reader `index` of `count`, such as (rank, world size); they share out the batches.
        transform: called as `transform(batch, rng)` on a whole batch, in the worker; `rng` follows from (seed, epoch,
            batch). Where workers are spawned it has to be importable.

    Raises:
        DataError: no such dataset or split. ConfigError: numbers that cannot be.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        part: tuple[int, int] = (0, 1),
        transform: Transform | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}: expected one or more samples a batch")
        if not 0 <= part[0] < part[1]:
            raise ConfigError(f"part = {part}: expected (index, count) with an index from 0 to count - 1")
        self._shards = _Shards(path, split, transform)
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._part = part
        # Shared, so that workers that persist see it change.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of `epoch`, 0 or more: another order, other random numbers for transforms."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        """Return the number of batches of this reader, over all of its workers."""
        return len(self._batches())

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch = int(self._epoch[0])
        for batch in self._batches()[first::step]:
            yield _to_training(self._fetch(epoch, batch))

    def _batches(self) -> range:
        """The batches of this reader: numbers through the whole epoch."""
        index, count = self._part
        if self._drop_last:
            full_rounds = len(self._shards) // (self._batch_size * count)
            return range(index, full_rounds * count, count)
        return range(index, -(-len(self._shards) // self._batch_size), count)

    def _fetch(self, epoch: int, batch: int) -> Batch:
        begin = batch * self._batch_size
        end = min(begin + self._batch_size, len(self._shards))
        if self._shuffle:
            indices = order(len(self._shards), self._seed, epoch, begin, end - begin)
        else:
            indices = np.arange(begin, end)
        return self._shards.fetch(indices, unit_generator(self._seed, epoch, batch), whole=True)


class _Shards:
    """Samples of one split, mapped in each process that reads them when it first does."""

    def __init__(self, path: str | Path, split: str, transform: Transform | None) -> None:
        self._path = Path(path).absolute()  # a worker may be started in another folder
        self._split = split
        self.transform = transform
        self._opened: Split | None = None
        self._length = len(self._rows)

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def fetch(self, indices: NDArray[np.int64], generator: np.random.Generator, *, whole: bool) -> Batch:
        """Return samples as one batch, transformed; a worker's `whole` batch, untransformed, in memory to hand over."""
        if whole and self.transform is None and get_worker_info() is not None:
            arrays = self._rows.take(indices, allocate=handoff.allocate)
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        return ShardSamples(self._rows, self.transform).fetch(indices, generator)

    @property
    def _rows(self) -> Split:
        if self._opened is None:
            self._opened = Dataset.open(self._path).split(self._split)
        return self._opened


class _Sample(dict[str, Any]):
    """One sample of a gathered batch, its fields views of the batch's."""


class _Gathered(Sequence[_Sample]):
    """A batch that looks like a list of samples, for whoever wants samples, and is one piece for torch's collating."""

    def __init__(self, batch: Batch, num_samples: int) -> None:
        self.batch = batch
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(self._num_samples)[index]]
        if not -self._num_samples <= index < self._num_samples:
            raise IndexError(index)
        return _Sample({name: value[index] for name, value in self.batch.items()})


def _collate(samples: Sequence[_Sample], *, collate_fn_map: Any) -> Any:
    """Collate as torch does, but for samples that were gathered together, which are a batch already."""
    if isinstance(samples, _Gathered):
        return _to_training(samples.batch)
    plain = [dict(sample) for sample in samples]
    return torch.utils.data._utils.collate.collate(plain, collate_fn_map=collate_fn_map)


def _to_training(batch: Batch) -> Any:
    """Return the batch as it leaves the process: as it is, or in a worker ready for `handoff`."""
    return batch if get_worker_info() is None else handoff.hand_over(batch)


# The extension point that torch.utils.data.default_collate documents.
default_collate_fn_map[_Sample] = _collate
