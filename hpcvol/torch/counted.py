"""A step that took effect, as all members come to know of it when they meet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcvol.torch.step import Share


@dataclass(frozen=True)
class CountedStep:
    """A step that took effect, as `hpcvol.torch.step.Step`.

    Attributes:
        number: of the version that it made: how many steps count with it.
        missed: pushes that took effect between what it was computed from and its own; None where no step is stale.
        behind: by how many pushes the slowest worker was behind its worker, when it began.
    """

    number: int
    index: int
    epoch: int
    loss: float
    metrics: Mapping[str, float]
    weight: int
    num_samples: int
    gradient_norm: float
    shares: Sequence[Share]
    missed: int | None = None
    behind: int = 0
