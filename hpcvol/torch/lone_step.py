"""A step that one worker computes alone, while others are at others."""

import time
from collections.abc import Iterator

from hpcvol import tracing
from hpcvol.errors import HpcvolError, ModelError
from hpcvol.torch.asynchronous import AsynchronousParameters, Pushed
from hpcvol.torch.float_sum import FloatGradients
from hpcvol.torch.gradients import clip, gradient_norm
from hpcvol.torch.loader import Unit
from hpcvol.torch.step import Share, Step


class LoneStep(Step):
    """A step of a run whose parameters may be stale: all of its units are this member's.

    Loss, metrics and shares are of this member alone, and known when the step is pushed; whether it counts is known
    when all members meet.
    """

    def __iter__(self) -> Iterator[Unit]:
        try:
            yield from self._computed()
        except HpcvolError as error:
            if error.everywhere:  # nobody else has it, here
                raise type(error)(str(error)) from None
            raise

    def _computed(self) -> Iterator[Unit]:
        if self._begun:
            raise ModelError(f"step {self.index} is iterated over a second time: its units are pushed once")
        self._begun = True
        run = self._run
        served, gradients = run.asynchronous, run.gradients
        assert served is not None
        assert isinstance(gradients, FloatGradients)
        began_ns, began = tracing.now(), time.monotonic()
        self.attempts += 1
        gradients.reset()
        run.buffers.reset()
        spans = run.in_passes(self._units)
        for number, span in enumerate(spans):
            self._last = number == len(spans) - 1
            yield from self._offer(span)
            if self._failure is not None:
                raise self._failure
        self._check_losses(self._records)
        self._average(self._records)
        run.buffers.refuse_changes()
        seconds = time.monotonic() - began
        self.shares = [Share(run.member, self.num_samples, seconds, [span.index for span in self._units])]
        self._push(served, gradients, seconds)
        tracing.record("step", began_ns, step=self.index)

    def _push(self, served: AsynchronousParameters, gradients: FloatGradients, seconds: float) -> None:
        run = self._run
        gradients.agree([gradients.tell()])
        gradients.finish(max(self.weight, 1))
        parameters = [parameter for _, parameter in run.parameters]
        self.gradient_norm = gradient_norm(parameters)
        run.check_gradients(self)
        limit = run.settings.clip_norm
        scale = 1.0 if limit is None else min(1.0, limit / max(self.gradient_norm, limit))
        unused = frozenset(i for i, parameter in enumerate(parameters) if parameter.grad is None or not self.weight)
        if served.trains_apart:
            if self.weight:
                if limit is not None:
                    clip(parameters, self.gradient_norm, limit)
                run.step_optimizer()
            served.draw_together()
            scale, unused = 1.0, frozenset()
        for parameter in parameters:
            parameter.grad = None  # others read it
        hyperparameters = served.optimizer.hyperparameters()
        served.push(
            Pushed(
                run.member,
                [span.index for span in self._units],
                self.epoch,
                self.weight,
                self.num_samples,
                self.loss,
                self.metrics,
                seconds,
                self.gradient_norm,
                scale,
                hyperparameters,
                unused,
            )
        )
