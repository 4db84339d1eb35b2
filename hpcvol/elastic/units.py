"""Which samples belong to which unit: pure arithmetic, the same on every member."""

from dataclasses import dataclass

from hpcvol.errors import ConfigError

UNITS_PER_BATCH = 8


@dataclass(frozen=True)
class UnitSpan:
    """One work unit: `count` samples of epoch `epoch`, from position `position` of its order.

    `(step, index)` names the unit; nothing else may decide what it computes.
    """

    step: int
    index: int
    epoch: int
    position: int
    count: int


@dataclass(frozen=True)
class Batching:
    """How an epoch of samples is cut into steps, and a step into units.

    Each step takes the next `batch_size` samples of the epoch's order, the last step of an epoch what is left, so that
    every sample is used exactly once an epoch whatever the number of workers.

    Args:
        num_samples: samples in an epoch, > 0.
        batch_size: samples a step.
        unit_size: samples a unit at most. Where a step does not divide evenly its units differ by one sample, so that
            none is much smaller than the others (BatchNorm cannot train on one sample).

    Raises:
        ConfigError: a size below one, or no samples.
    """

    num_samples: int
    batch_size: int
    unit_size: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ConfigError("found 0 samples in a split: expected at least one", everywhere=True)
        for key in ("batch_size", "unit_size"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} = {getattr(self, key)}: expected at least 1 sample", everywhere=True)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, the ragged last one included."""
        return -(-self.num_samples // self.batch_size)

    @property
    def units_per_step(self) -> int:
        """Units of a full step: the bound that the exact sum's headroom is computed from."""
        return -(-self.batch_size // self.unit_size)

    def epoch(self, step: int) -> int:
        """Return the epoch (from 0) that step `step` (from 0) belongs to."""
        return step // self.steps_per_epoch

    def units(self, step: int) -> list[UnitSpan]:
        """Return the units of step `step` (from 0), in the order of their index."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        start = step_of_epoch * self.batch_size
        num_samples = min(self.batch_size, self.num_samples - start)
        num_units = -(-num_samples // self.unit_size)
        edges = [start + index * num_samples // num_units for index in range(num_units + 1)]
        return [UnitSpan(step, index, epoch, edge, edges[index + 1] - edge) for index, edge in enumerate(edges[:-1])]


def merge(spans: list[UnitSpan]) -> list[UnitSpan]:
    """Return neighbouring units as one, under the first one's name: the float sum computes a share in one pass."""
    if not spans:
        return []
    first = spans[0]
    return [UnitSpan(first.step, first.index, first.epoch, first.position, sum(span.count for span in spans))]


def covered(spans: list[UnitSpan], index: int, count: int) -> list[UnitSpan]:
    """Return those of neighbouring units that one of `count` samples stands for: itself, or those merged to it.

    Args:
        spans: units of a step, in order, none between them missing.
        index: of the first one that it stands for.
        count: samples.
    """
    found = []
    for span in spans[index - spans[0].index :] if spans else ():
        if count <= 0:
            break
        found.append(span)
        count -= span.count
    return found


def default_unit_size(batch_size: int) -> int:
    """Return an eighth of the batch, rounded up: eight units leave something to deal to up to eight workers."""
    return -(-batch_size // UNITS_PER_BATCH)
