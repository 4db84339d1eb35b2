"""From a unit's name to its batch on the device, ahead of time where the samples allow it."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvol import tracing
from hpcvol.elastic.units import UnitSpan
from hpcvol.torch.samples import Batch, Samples
from hpcvol.torch.seeding import EVALUATION, TRANSFORM, seed_generators, unit_generator


class Unit(Mapping[str, Any]):
    """One work unit's samples: a mapping of field names to tensors on the member's device.

    Attributes:
        step: the step it belongs to, from 0.
        index: its place in the step's bag, from 0.
        epoch: the epoch its samples belong to, from 0.
        num_samples: how many samples it holds.
    """

    def __init__(self, batch: Batch, span: UnitSpan) -> None:
        self._batch = batch
        self.step = span.step
        self.index = span.index
        self.epoch = span.epoch
        self.num_samples = span.count

    def __getitem__(self, field: str) -> Any:
        return self._batch[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)


class Loader:
    """Loads units of one set of samples, in the order that (seed, epoch) gives, or in the order of the split.

    Args:
        samples: where samples come from.
        seed: the run's seed.
        device: where batches go.
        shuffle: False reads samples in their stored order (evaluation).
    """

    def __init__(self, samples: Samples, seed: int, device: torch.device, *, shuffle: bool = True) -> None:
        self.samples = samples
        self._seed = seed
        self._device = device
        self._shuffle = shuffle
        self._ahead: dict[UnitSpan, Future[Batch]] = {}
        # Two loaders may be at work at a time, each with a name that tells which: a trace has a track for each name.
        name = "hpcvol-prefetch" if shuffle else "hpcvol-prefetch-evaluation"
        self._thread = ThreadPoolExecutor(1, name) if samples.background else None

    def prefetch(self, spans: Iterable[UnitSpan]) -> None:
        """Begin to fetch units that will be asked for soon."""
        if self._thread is None:
            return
        for span in spans:
            if span not in self._ahead:
                self._ahead[span] = self._thread.submit(self._fetch, span)

    def load(self, span: UnitSpan) -> Unit:
        """Return one unit: its batch is a function of its name alone.

        What runs in the prefetch thread always does, so that the probe meets samples as training does. What does not is
        called with the global generators seeded for the unit.
        """
        with tracing.span("data wait"):
            batch = self._batch(span)
        moved = {name: self._to_device(value) for name, value in batch.items()}
        return Unit(moved, span)

    def forget(self, but: Iterable[UnitSpan] = ()) -> None:
        """Let go of what was fetched ahead, except for `but`: others may be asked for now."""
        for span in self._ahead.keys() - set(but):
            self._ahead.pop(span).cancel()

    def close(self) -> None:
        """Stop the prefetch thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _batch(self, span: UnitSpan) -> Batch:
        if self._thread is None:
            seed_generators(self._seed, span.step, span.index, TRANSFORM if self._shuffle else EVALUATION)
            return self._fetch(span)
        self.prefetch([span])
        return self._ahead.pop(span).result()

    def _fetch(self, span: UnitSpan) -> Batch:
        generator = unit_generator(self._seed, span.step, span.index, TRANSFORM if self._shuffle else EVALUATION)
        with tracing.span("fetch", step=span.step, unit=span.index):
            return self.samples.fetch(self._indices(span), generator)

    def _indices(self, span: UnitSpan) -> NDArray[np.int64]:
        if self._shuffle:
            return self.samples.order(self._seed, span.epoch, span.position, span.count)
        return np.arange(span.position, span.position + span.count)

    def _to_device(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or self._device.type == "cpu":
            return value
        return value.pin_memory().to(self._device, non_blocking=True)
