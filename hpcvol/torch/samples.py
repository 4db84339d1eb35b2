"""Where a unit's samples come from, as a batch of torch tensors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from hpcvol.data import Dataset, Split, order
from hpcvol.errors import DataError

Batch = dict[str, Any]
Transform = Callable[[Batch, np.random.Generator], Mapping[str, Any]]


@runtime_checkable
class Samples(Protocol):
    """A finite set of samples that can be fetched by index."""

    background: bool
    """Whether `fetch` may run in a prefetch thread: it draws no numbers from global generators."""

    def __len__(self) -> int: ...

    def order(self, seed: int, epoch: int, position: int, count: int) -> NDArray[np.int64]:
        """Return the samples at positions `position` .. `position + count - 1` of an epoch of `len(self)` samples."""
        return order(len(self), seed, epoch, position, count)

    def fetch(self, indices: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        """Return the samples as one batch, transformed, on the CPU."""


class ShardSamples:
    """Samples of a split of an hpcvol dataset.

    Args:
        split: the split to read.
        transform: called as `transform(batch, rng)` with torch tensors and the unit's own NumPy generator; returns the
            batch.
    """

    background = True

    def __init__(self, split: Split, transform: Transform | None = None) -> None:
        self._split = split
        self._transform = transform

    def __len__(self) -> int:
        return self._split.order.num_samples

    def order(self, seed: int, epoch: int, position: int, count: int) -> NDArray[np.int64]:
        """See `Samples`: what the split says, which may be a mixture of datasets."""
        return self._split.order(seed, epoch, position, count)

    def fetch(self, indices: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        """Gather rows into memory of torch, aligned to 64 bytes: alignment can change the bits of a product."""
        arrays = self._split.take(indices, allocate=_allocate)
        batch: Batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return _transformed(batch, self._transform, generator)


class MapSamples:
    """Samples of a map-style torch dataset, used as it is.

    Its own augmentation draws from the global generators, so it is called in the thread that computes, after they were
    seeded for the unit. Samples that are pairs become the fields `x` and `y`; other samples must be mappings.
    """

    background = False

    def __init__(self, dataset: Any, transform: Transform | None = None) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError(
                f"data: {type(dataset).__name__} is not a map-style dataset: it needs __len__ and __getitem__"
            )
        self._dataset = dataset
        self._transform = transform

    def __len__(self) -> int:
        return len(self._dataset)

    def order(self, seed: int, epoch: int, position: int, count: int) -> NDArray[np.int64]:
        """See `Samples`: every sample once."""
        return order(len(self._dataset), seed, epoch, position, count)

    def fetch(self, indices: NDArray[np.int64], generator: np.random.Generator) -> Batch:
        """Collate samples with torch's default rules."""
        samples = [self._dataset[int(i)] for i in indices]
        batch = default_collate(samples)
        if isinstance(batch, Mapping):
            return _transformed(dict(batch), self._transform, generator)
        if isinstance(batch, (list, tuple)) and len(batch) == 2:
            return _transformed({"x": batch[0], "y": batch[1]}, self._transform, generator)
        raise DataError(
            f"a sample of {type(self._dataset).__name__} is a {type(samples[0]).__name__}: expected a mapping of field "
            "names to tensors, or a pair (x, y)"
        )


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    return torch.empty(shape, dtype=torch_dtype(dtype)).numpy()


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """Return the torch dtype of a NumPy dtype."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _transformed(batch: Batch, transform: Transform | None, generator: np.random.Generator) -> Batch:
    if transform is None:
        return batch
    result = transform(batch, generator)
    if not isinstance(result, Mapping):
        raise DataError(
            f"data.transform returned a {type(result).__name__}: expected the batch, a mapping of "
            "field names to tensors"
        )
    return {name: _aligned(value) if isinstance(value, np.ndarray) else value for name, value in result.items()}


def _aligned(array: NDArray[Any]) -> torch.Tensor:
    """Copy a NumPy result, whatever its strides (a flipped picture has negative ones), to aligned memory of torch."""
    return torch.tensor(array.copy())


def open_samples(data: Any, split: str = "train", transform: Transform | None = None) -> Samples:
    """Return samples of a dataset folder's split, of an open split, or of a map-style torch dataset. Local.

    Args:
        data: a folder, a `Split`, a map-style dataset, or samples, which come back as they are.
        split: the split of a folder.
        transform: see `ShardSamples`.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, (str, Path)):
        data = Dataset.open(data).split(split)
    return ShardSamples(data, transform) if isinstance(data, Split) else MapSamples(data, transform)
