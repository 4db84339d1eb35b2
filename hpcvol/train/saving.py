"""Making checkpoints behind training, which stops for a copy in memory only."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch

from hpcvol import tracing
from hpcvol.comm import doing
from hpcvol.errors import CheckpointError
from hpcvol.train.background import Background
from hpcvol.train.cadence import Cadence
from hpcvol.train.checkpoint import Checkpoints
from hpcvol.train.snapshot import Snapshot

logger = logging.getLogger("hpcvol")


class Saver:
    """Makes the checkpoints of one member. Local, as all of its methods are.

    A checkpoint that comes due while the one before is being written waits for it: where steps between checkpoints were
    asked for, that many are never exceeded. Two intervals at most are lost, even with a disk that stands still.

    Args:
        checkpoints: where they go; None on a member that keeps none.
        cadence: takes note of what they cost.

    Attributes:
        step: the steps made before the last checkpoint that was asked for; None where none was.
    """

    def __init__(self, checkpoints: Checkpoints | None, cadence: Cadence) -> None:
        self._checkpoints = checkpoints
        self._cadence = cadence
        self.step: int | None = None
        self._snapshot = Snapshot()
        self._copied_step: int | None = None
        self._writer = Background("hpcvol-checkpoint")
        self._news: str | None = None

    def take_over(self, checkpoints: Checkpoints) -> None:
        """Make checkpoints from now on, in the place of one that died or left, which may not have finished its last."""
        self._checkpoints = checkpoints
        self.step = self._copied_step = None
        self._cadence.hurry()

    def hand_over(self) -> None:
        """Wait for what is being written, and make no more: another member will."""
        self.close()
        self._checkpoints = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writer.busy

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be made, and `wait` has not said so yet."""
        return self._writer.failed

    def save(
        self,
        step: int,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        residuals: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        *,
        best: bool,
    ) -> None:
        """Copy model and optimizer after `step` steps, and have the copy written. What goes wrong is kept for `wait`.

        Args:
            step: steps made.
            model: on any device.
            optimizer: of that model.
            residuals: what members have not sent of their gradients.
            state: all else that the checkpoint holds.
            best: whether no other has a lower validation loss.
        """
        self._cadence.begun()
        self.step = step
        if self._checkpoints is None:
            return
        checkpoints, snapshot = self._checkpoints, self._snapshot
        try:
            with tracing.span("checkpoint wait"), doing("waiting for the checkpoint before, which is being written"):
                self._writer.wait()
            copying = time.perf_counter()
            if step != self._copied_step:
                self._copied_step = None
                with tracing.span("checkpoint copy"):
                    snapshot.take(model, optimizer, residuals)
                self._copied_step = step
            copied = time.perf_counter()
        except CheckpointError as error:
            self._writer.fail(error)
            return
        except (MemoryError, RuntimeError) as error:
            self._writer.fail(
                CheckpointError(
                    f"no memory for the copy that the checkpoint of step {step} is written from: {error}. It takes as "
                    "much main memory as the parameters and the optimizer's state do; checkpoints written before are "
                    "whole"
                )
            )
            return

        def write() -> None:
            began = time.perf_counter()
            with tracing.span("checkpoint write", step=step):
                checkpoints.write(step, snapshot, state, best=best)
            self._news = self._cadence.measured(copied - copying, time.perf_counter() - began) or self._news

        self._writer.start(write)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            CheckpointError: it could not be.
        """
        with tracing.span("checkpoint wait"):
            self._writer.wait()

    def news(self) -> str | None:
        """Return what there is to tell of the interval, once."""
        news, self._news = self._news, None
        return news

    def close(self, seconds: float | None = None) -> None:
        """Wait for what is being written, at most `seconds`; nobody is left to raise its error, which is logged."""
        try:
            self._writer.wait(seconds)
        except CheckpointError as error:
            logger.error("%s", error)
