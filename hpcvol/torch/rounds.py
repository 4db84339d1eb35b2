"""Rounds of supernodes: each group trains for a period, and all go on from the mean of what came of it.

A round takes effect on all members or on none: where one dies, those that live go back to where it began, and begin it
again. So between two rounds all members have the same parameters and buffers. What an optimizer keeps is its group's
own, as it would cost as much again to send; where it has to be one, for a checkpoint or because the groups change, it
becomes the mean too.

References:
    Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023, algorithm 1 (state of
    the optimizer is each worker's own; here the mean is taken over as it is).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hpcvol import tracing
from hpcvol.comm import Group
from hpcvol.elastic.ledger import ranges
from hpcvol.elastic.units import Batching
from hpcvol.errors import MemberError
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.supernodes import Grouping
from hpcvol.torch.buffers import Buffers
from hpcvol.torch.counted import CountedStep
from hpcvol.torch.float_sum import FlatSum, summed_in
from hpcvol.torch.local_optimizer import copied_state, restore_state, unite_states
from hpcvol.torch.means import weighted_mean
from hpcvol.torch.step import Share
from hpcvol.torch.team_step import TeamStep


@dataclass(frozen=True)
class _Told:
    """What a group tells of one of its steps."""

    weight: int
    num_samples: int
    loss: float
    metrics: Mapping[str, float]
    gradient_norm: float
    shares: Sequence[Mapping[str, Any]]


class Rounds:
    """The mean of what groups have trained. One a run, the same calls on all members.

    Args:
        group: all members.
        grouping: of them.
        model: its parameters and buffers change in place.
        parameters: names and parameters that require a gradient.
        optimizer: of these.
        buffers: of the model.
        strategy: sums over all members.
        batching: how samples become steps and units.
        device: where the model is.
        survives: whether members outlive others, and what the optimizer keeps has to be kept twice.

    Attributes:
        feedbacks: what this member has not sent, by dtype.
        told: what members said at the end of the last round, by id.
    """

    def __init__(
        self,
        group: Group,
        grouping: Grouping,
        parameters: Sequence[tuple[str, torch.nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        buffers: Buffers,
        strategy: AllReduce,
        batching: Batching,
        device: torch.device,
        *,
        survives: bool,
    ) -> None:
        self._group = group
        self._grouping = grouping
        self._parameters = [parameter for _, parameter in parameters]
        self._optimizer = optimizer
        self._buffers = buffers
        self._strategy = strategy
        self._batching = batching
        self._survives = survives
        by_dtype: dict[torch.dtype, list[int]] = {}
        for i, parameter in enumerate(self._parameters):
            by_dtype.setdefault(summed_in(parameter), []).append(i)
        self._flats = [
            (FlatSum([parameters[i] for i in indices], dtype, strategy, device), indices)
            for dtype, indices in by_dtype.items()
        ]
        self.feedbacks = {flat.dtype_name: flat.feedback for flat, _ in self._flats if flat.feedback is not None}
        self.told: dict[int, dict[str, Any]] = {}
        self._begin: list[torch.Tensor] = []
        self._buffers_before: dict[str, torch.Tensor] = {}
        self._state: dict[torch.Tensor, dict[str, Any]] = {}
        self.take()

    def take(self) -> None:
        """Begin the next round from what there is: the same parameters on all members. Local."""
        if not self._begin:
            self._begin = [parameter.detach().clone() for parameter in self._parameters]
        with torch.no_grad():
            for before, parameter in zip(self._begin, self._parameters, strict=True):
                before.copy_(parameter)
        self._buffers_before = {name: buffer.clone() for name, buffer in self._buffers.committed.items()}
        if self._survives:
            self._state = copied_state(self._optimizer)

    def commit(self) -> None:
        """The round took effect. Local."""
        for feedback in self.feedbacks.values():
            feedback.commit()
        self.take()

    def restore(self) -> None:
        """Go back to where the round began. Local."""
        with torch.no_grad():
            for before, parameter in zip(self._begin, self._parameters, strict=True):
                parameter.copy_(before)
        self._buffers.put({name: buffer.clone() for name, buffer in self._buffers_before.items()})
        if self._survives:
            restore_state(self._optimizer, self._state)

    def rebuild(self) -> None:
        """Go back to where the round began, with the groups that there are now. Collective."""
        for flat, _ in self._flats:
            flat.rebuild()
        self.unite()

    def abandon(self) -> None:
        """Give up what is on its way. Local."""
        self._strategy.abandon()

    def close(self) -> None:
        """Give up what is still on its way after an error. Local."""
        self._strategy.close()

    def combine(self, first: int, steps: Sequence[TeamStep], saying: Mapping[str, Any]) -> list[CountedStep]:
        """Replace parameters and buffers by the means over groups, by the weights that these have summed. Collective.

        Args:
            first: index of the round's first step.
            steps: this group's.
            saying: what this member tells the others.

        Raises:
            LostMemberError: a member has died.
            MemberError: the groups have not computed each unit once; on all members.
        """
        for step in steps:
            if step.lost is not None:
                self._group.give_up()
                raise step.lost
        grouping = self._grouping
        mine = [_tell(step) for step in steps] if grouping.is_leader else None
        changed = [name for name in self._buffers.averaged if self._has_changed(name)]
        counters = {
            name: self._buffers.committed[name].cpu()
            for name in (self._buffers.counted if grouping.is_leader else ())
            if self._has_changed(name)
        }
        with tracing.span("gather records"):
            everybody = self._group.gather_objects((grouping.index, mine, dict(saying), changed, counters))
        self.told = {member: said for member, (_, _, said, *_) in zip(self._group.members, everybody, strict=True)}
        leading = sorted((one for one in everybody if one[1] is not None), key=lambda one: one[0])
        by_team = [told for _, told, *_ in leading]
        counted = [self._count(first + place, told) for place, told in enumerate(zip(*by_team, strict=True))]
        weights = [sum(one.weight for one in told) for told in by_team]
        if len(grouping.teams) > 1 and (total := sum(weights)):
            share = weights[grouping.index] / total if grouping.is_leader else 0.0
            with tracing.span("average"), torch.no_grad():
                self._average_parameters(share)
                names = sorted({name for *_, names, _ in everybody for name in names})
                # A group that had no unit of a step has not counted it.
                most = sorted(range(len(weights)), key=lambda index: (weights[index], -index))
                found = {name: value for index in most for name, value in leading[index][-1].items()}
                self._average_buffers(names, share, found)
        return counted

    def unite(self) -> None:
        """Make one what groups keep apart: of what optimizers keep, the mean over members that have it. Collective."""
        with tracing.span("unite"), torch.no_grad():
            self._unite()

    def _unite(self) -> None:
        group = self._group
        # Exponents of buffers follow from what a group has seen.
        self._buffers.total.load_exponents(group.broadcast_object(self._buffers.total.exponents()))
        unite_states(group, self._parameters, self._optimizer, self._strategy.sum)

    def _average_parameters(self, share: float) -> None:
        for flat, indices in self._flats:
            for place, i in enumerate(indices):
                view = flat.view(place)
                if share:
                    view.copy_(self._parameters[i])
                    view.sub_(self._begin[i]).mul_(share)
                else:
                    view.zero_()
            for bucket in range(len(flat.layout.buckets)):
                flat.push(bucket)
            flat.finish(1, 1)
            for place, i in enumerate(indices):
                self._parameters[i].copy_(self._begin[i] + flat.view(place))

    def _has_changed(self, name: str) -> bool:
        return not torch.equal(self._buffers_before[name], self._buffers.committed[name])

    def _average_buffers(self, names: Sequence[str], share: float, counters: Mapping[str, torch.Tensor]) -> None:
        found = dict(self._buffers.committed)
        for name, value in counters.items():
            found[name] = value.to(found[name].device)
        for name in names:
            before = self._buffers_before[name]
            change = torch.zeros(before.shape, dtype=torch.float64)
            if share:
                change += (found[name].double() - before.double()).cpu() * share
            self._strategy.sum(change.view(-1).numpy())
            found[name] = (before.double() + change.to(before.device)).to(before.dtype)
        self._buffers.put(found)

    def _count(self, index: int, told: Sequence[_Told]) -> CountedStep:
        """Return what groups tell of a step as one.

        Raises:
            MemberError: units are missing, or there twice; on all members.
        """
        shares = [Share(**share) for one in told for share in one.shares]
        expected = [span.index for span in self._batching.units(index)]
        if sorted(unit for share in shares for unit in share.units) != expected:
            said = "; ".join(f"member {share.member}: {ranges(share.units) or 'none'}" for share in shares)
            raise MemberError(
                f"step {index}: expected each of its {len(expected)} units once, and groups reported {said}: let all "
                "members run the same program; the run goes on from its last checkpoint",
                everywhere=True,
            )
        counted = [one for one in told if one.weight]
        weight = sum(one.weight for one in counted)
        names = {name: None for one in counted for name in one.metrics}
        return CountedStep(
            index + 1,
            index,
            self._batching.epoch(index),
            weighted_mean((one.loss, one.weight) for one in counted),
            {
                name: weighted_mean((one.metrics[name], one.weight) for one in counted if name in one.metrics)
                for name in names
            },
            weight,
            sum(one.num_samples for one in told),
            math.sqrt(weighted_mean((one.gradient_norm**2, one.weight) for one in counted)) if weight else math.nan,
            shares,
        )


def _tell(step: TeamStep) -> _Told:
    shares = [asdict(share) for share in step.shares]
    return _Told(step.weight, step.num_samples, step.loss, step.metrics, step.gradient_norm, shares)
