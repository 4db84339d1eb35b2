"""Epochs of several datasets, each taken with a weight."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcvol.data.cached import CachedSplit
from hpcvol.data.dataset import Dataset, EpochOrder, Split
from hpcvol.data.manifest import fields_in_words
from hpcvol.data.mapped import MappedShards
from hpcvol.data.order import order
from hpcvol.data.read_ahead import ReadAhead
from hpcvol.data.windowed import FollowedOrder, WindowedOrder
from hpcvol.errors import DataError
from hpcvol.kernels.permutation import permute_at

# Epochs never get here: the numbers from here on tell the permutations of the datasets' extras apart.
_EXTRAS_EPOCH = 1 << 62
_MAX_WEIGHT = 1e6
_MAX_SAMPLES = 1 << 62


def mix(weights: Mapping[str | Path, float], split: str = "train") -> Split:
    """Open split `split` of several datasets as one.

    Its rows are those of all datasets, one after the other, each once. Its epochs take them with weights: see
    `MixedOrder`.

    Args:
        weights: by folder: how often the samples of that dataset are taken in an epoch; above 0, at most a million.
        split: of each dataset.

    Raises:
        DataError: datasets with other fields, a split that one of them has not, or a weight that gives no sample.
    """
    datasets = [Dataset.open(path) for path in weights]
    check_same_fields(datasets)
    rows = [dataset.require(split) for dataset in datasets]
    return concatenate(datasets, split, MixedOrder(rows, list(weights.values())))


def concatenate(
    datasets: Sequence[Dataset], split: str, order: EpochOrder | None = None, cache: Path | None = None
) -> Split:
    """Return split `split` of datasets of the same fields, one after the other.

    Args:
        datasets: at least one.
        split: of those that have it.
        order: what training visits; every row once by default.
        cache: folder of the node's own copies, see `CachedSplit`.
    """
    files = [file for dataset in datasets for file in dataset.files(split)]
    if cache is not None:
        return CachedSplit(files, split, datasets[0].fields, order, cache)
    if isinstance(order, WindowedOrder):
        order = FollowedOrder(order, ReadAhead([path for path, _ in files]).want)
    return Split(MappedShards(files, split), datasets[0].fields, order)


def check_same_fields(datasets: Sequence[Dataset]) -> None:
    """Refuse datasets whose samples cannot stand in one batch.

    Raises:
        DataError: names two of them.
    """
    first = datasets[0]
    for dataset in datasets:
        if dataset.fields != first.fields:
            raise DataError(
                f"Datasets that are mixed need the same fields: {first.path} has {fields_in_words(first.fields)}; "
                f"{dataset.path} has {fields_in_words(dataset.fields)}. Build one of them again."
            )


class MixedOrder:
    """The order in which epochs visit the rows of several datasets.

    A dataset of n rows with weight w gives m = round(w * n) samples to every epoch, q = m // n times each of its rows
    and once more r = m % n of them: each row is taken q or q + 1 times an epoch. Which rows get the extra turn goes
    round through all of the dataset, so that also after any number of epochs no row was taken more than once more often
    than another of its dataset. With weight 1 that is every row exactly once. All of an epoch is shuffled together.

    A pure function of (seed, epoch, position), in memory that does not depend on the number of rows.

    Args:
        rows: of each dataset.
        weights: of each dataset.

    Attributes:
        num_samples: in every epoch.

    Raises:
        DataError: a weight that is not above 0 and at most a million, or so small that it gives no sample; an epoch of
            more samples than can be counted.
    """

    def __init__(self, rows: Sequence[int], weights: Sequence[float]) -> None:
        for weight in weights:
            if not (math.isfinite(weight) and 0 < weight <= _MAX_WEIGHT):
                raise DataError(
                    f"A weight of a dataset is {weight:g}, expected a number above 0 and at most {_MAX_WEIGHT:g}: how "
                    "often its samples are taken in an epoch."
                )
        taken = [round(weight * count) for count, weight in zip(rows, weights, strict=True)]
        for count, weight, samples in zip(rows, weights, taken, strict=True):
            if samples < 1:
                raise DataError(
                    f"A weight of {weight:g} takes {samples} of the {count} samples of a dataset in an epoch; expected "
                    "at least one. Raise the weight, or leave the dataset out."
                )
        if sum(taken) > _MAX_SAMPLES:
            raise DataError(f"The weights make an epoch of {sum(taken)} samples, expected at most 2^62. Lower them.")
        self._rows = np.array(rows, np.int64)
        self._first_rows = np.cumsum([0, *rows[:-1]], dtype=np.int64)
        self._starts = np.cumsum([0, *taken], dtype=np.int64)
        self._repeats, self._extras = np.divmod(np.array(taken, np.int64), self._rows)
        self.num_samples = int(self._starts[-1])

    def __call__(self, seed: int, epoch: int, position: int, count: int) -> NDArray[np.int64]:
        """Return the rows at positions `position` .. `position + count - 1` of an epoch, as `order` does."""
        drawn = order(self.num_samples, seed, epoch, position, count)
        part = np.searchsorted(self._starts, drawn, side="right") - 1
        turn, row = np.divmod(drawn - self._starts[part], self._rows[part])
        for index in np.unique(part[turn == self._repeats[part]]).tolist():
            extra = (part == index) & (turn == self._repeats[index])
            row[extra] = self._extra_rows(index, row[extra], seed, epoch)
        return row + self._first_rows[part]

    def _extra_rows(self, index: int, numbers: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
        """Return the rows that have an extra turn, of those numbered 0 .. extras - 1 in this epoch."""
        rows, extras = int(self._rows[index]), int(self._extras[index])
        places = (numbers + epoch * extras % rows) % rows  # Python's integers: the product may be large
        out = np.empty(len(places), np.int64)
        permute_at(rows, seed, _EXTRAS_EPOCH + index, places, out)
        return out
