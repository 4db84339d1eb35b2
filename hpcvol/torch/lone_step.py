"""A step that one worker computes, a member or a group of them, while others are at others."""

from hpcvol.elastic.units import UnitSpan
from hpcvol.errors import ModelError
from hpcvol.torch.asynchronous import AsynchronousParameters, Pushed
from hpcvol.torch.counted import CountedStep
from hpcvol.torch.gradients import clip, gradient_norm
from hpcvol.torch.seeding import BETWEEN_STEPS, seed_generators
from hpcvol.torch.team_step import TeamStep


class LoneStep(TeamStep):
    """A step of a run whose parameters may be stale: all of its units are this member's, or its group's.

    Loss, metrics and shares are known when the step is over; whether it counts is known when all members meet.

    Attributes:
        is_pushed: whether it is the last one before what the worker did is pushed.
    """

    is_pushed = True

    def _next_units(self) -> list[UnitSpan]:
        return [] if self.is_pushed else super()._next_units()

    def _sum(self) -> bool:
        try:
            self._run.buffers.refuse_changes()
        except ModelError as error:
            self.fail(error)
        return super()._sum()

    def _agree(self) -> bool:
        return self._run.gradients.agree(self._told_by_gradients)

    def _combine(self) -> None:
        self._run.gradients.finish(self.weight)  # what has no weight is pushed too, as nothing

    def _take_effect(self) -> None:
        run, served = self._run, self._run.asynchronous
        assert served is not None
        parameters = [parameter for _, parameter in run.parameters]
        self.gradient_norm = gradient_norm(parameters)
        run.check_gradients(self)
        limit = run.settings.clip_norm
        scale = 1.0 if limit is None else min(1.0, limit / max(self.gradient_norm, limit))
        unused = frozenset(i for i, parameter in enumerate(parameters) if parameter.grad is None or not self.weight)
        # Where they are by now is each member's own.
        seed_generators(run.settings.seed, self.index + 1, 0, BETWEEN_STEPS)
        if served.trains_apart:
            if self.weight:
                if limit is not None:
                    clip(parameters, self.gradient_norm, limit)
                run.step_optimizer()
            scale, unused = 1.0, frozenset()
        for parameter in parameters:
            parameter.grad = None  # others read it
        run.learn_speeds(self)
        self._tell(served, scale, unused)

    def _tell(self, served: AsynchronousParameters, scale: float, unused: frozenset[int]) -> None:
        """Count this step, and push what the worker has done if it is time. Collective over its members."""
        served.steps.append(
            CountedStep(
                0,
                self.index,
                self.epoch,
                self.loss,
                self.metrics,
                self.weight,
                self.num_samples,
                self.gradient_norm,
                self.shares,
            )
        )
        if self.is_pushed:
            served.push(Pushed(tuple(served.steps), scale, served.optimizer.hyperparameters(), unused))
