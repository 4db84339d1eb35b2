"""How far a run has come: what checkpoints carry besides model, optimizer and step."""

from dataclasses import asdict, dataclass, field
from typing import Any

from hpcvol.torch.counted import CountedStep
from hpcvol.torch.evaluation import Evaluation
from hpcvol.torch.step import Step


@dataclass
class Progress:
    """Counters and the course of validation; all of it follows from the samples, so it is the same on every member.

    Attributes:
        samples: used so far, over the whole life of the run.
        seconds: spent on training so far, likewise.
        epoch: the epoch (from 0) that `loss_total` is of.
        loss_total: Σ weight·loss of the epoch's steps so far.
        weight_total: their Σ weight.
        best_loss: lowest validation loss, None before the first validation.
        validations_without_improvement: since then.
        validation: loss and metrics of the last validation.
        validated_step: the step after which that was, None before the first.
    """

    samples: int = 0
    seconds: float = 0.0
    epoch: int = 0
    loss_total: float = 0.0
    weight_total: int = 0
    best_loss: float | None = None
    validations_without_improvement: int = 0
    validation: dict[str, Any] = field(default_factory=dict)
    validated_step: int | None = None

    @property
    def train_loss(self) -> float | None:
        """Mean loss over the last epoch as far as it went, None before the first step."""
        return self.loss_total / self.weight_total if self.weight_total else None

    def count(self, step: Step | CountedStep) -> None:
        """Take in a step."""
        if step.epoch > self.epoch:
            self.epoch, self.loss_total, self.weight_total = step.epoch, 0.0, 0
        self.samples += step.num_samples
        if step.weight and step.epoch == self.epoch:  # a step of the epoch before may be late where none waits
            self.loss_total += step.loss * step.weight
            self.weight_total += step.weight

    def validated(self, step: int, result: Evaluation) -> bool:
        """Take in a validation after step `step`; return whether it is the best so far."""
        self.validated_step = step
        self.validation = {"loss": result.loss, **result.metrics}
        if self.best_loss is None or result.loss < self.best_loss:
            self.best_loss, self.validations_without_improvement = result.loss, 0
            return True
        self.validations_without_improvement += 1
        return False

    def state(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return asdict(self)
