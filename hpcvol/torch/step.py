"""One training step: a bag of units, computed, summed, committed, applied."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hpcvol import tracing
from hpcvol.comm import agree, gather_agreed
from hpcvol.comm.faults import tells_of_loss
from hpcvol.elastic.bag import Bag
from hpcvol.elastic.ledger import ranges
from hpcvol.elastic.membership import MembersChanged
from hpcvol.elastic.units import UnitSpan, covered
from hpcvol.errors import HpcvolError, MemberError, ModelError
from hpcvol.torch.exact import NonFiniteSumError
from hpcvol.torch.gradients import ExactGradients
from hpcvol.torch.loader import Unit
from hpcvol.torch.means import weighted_mean
from hpcvol.torch.outputs import integer_weight, scalar, scalar_loss
from hpcvol.torch.probe import Digests, compare, digest_unit
from hpcvol.torch.verification import Verification

if TYPE_CHECKING:
    from hpcvol.torch.run import Run


# What members say of themselves with the records of a step.
_SPEED = "sample_seconds"


@dataclass(frozen=True)
class UnitRecord:
    """What a unit reports besides its gradient."""

    member: int
    num_samples: int
    weight: int
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """What one member computed of a step.

    Attributes:
        member: its id.
        num_samples: samples of its units.
        seconds: from the step's beginning until it came to sum, its data included; of the last attempt.
        units: indices of its units, in order.
        sample_seconds: that it takes for a sample, the median of its last units; None before it has computed a few.
    """

    member: int
    num_samples: int
    seconds: float
    units: Sequence[int] = ()
    sample_seconds: float | None = None


class Step:
    """A step of a run. Iterate over it once; give each unit's loss to `backward`.

    When the iteration ends the step is over: its units were summed over all workers and the optimizer was applied, the
    same on every member. A unit may come more than once: the probe of a run's first step computes three units that do
    not count, and a step whose gradients left the range of their sum is computed again.

    Attributes:
        index: the step's number, from 0.
        epoch: the epoch (from 0) its samples belong to.
        loss: Σ weight·loss / Σ weight over all units of all workers; known when the step is over, as are the following.
        metrics: the like means of the metrics given to `backward`.
        weight: Σ weight of the step.
        num_samples: samples of the step.
        gradient_norm: 2-norm of the step's gradient, before clipping.
        attempts: how often the units were computed.
        shares: what each member computed, and how long that took.
        told: what each member said with its records (`Membership.saying`), by member.
        lost: where members are not together after each step, why this one counts for nothing: one of those who computed
            it has died.
    """

    lost: BaseException | None = None

    def __init__(self, run: "Run", index: int) -> None:
        self._run = run
        self._units = run.units(index)
        self._begun = False
        self._open: Unit | None = None
        self._forward_ns = 0
        self._failure: Exception | None = None
        self._records: dict[int, UnitRecord] = {}
        self._probed: list[Digests] | None = None
        self._last = False
        self.told: dict[int, dict[str, Any]] = {}
        self._told_by_gradients: list[bytes] = []
        self.index = index
        self.epoch = run.batching.epoch(index)
        self.num_samples = sum(span.count for span in self._units)
        self.loss = math.nan
        self.metrics: dict[str, float] = {}
        self.weight = 0
        self.gradient_norm = math.nan
        self.attempts = 0
        self.shares: list[Share] = []

    def __iter__(self) -> Iterator[Unit]:
        if self._begun:
            raise ModelError(f"step {self.index} is iterated over a second time: its units are summed once")
        self._begun = True
        if self._run.needs_probe:
            yield from self._probe()
        began_ns = tracing.now()
        bag = self._begin()
        while True:
            for span in bag:
                self._last = not bag
                yield from self._offer(span)
                if self._failure is not None:
                    break
            try:
                fits = self._run.membership.settle(self._sum)
                if fits and self._run.verification is not None:
                    yield from self._verify(self._run.verification)
            except MembersChanged:
                bag = self._lost()
                continue
            if fits:
                break
            bag = self._begin()
        self._run.apply(self)
        self._run.membership.told = self.told
        tracing.record("step", began_ns, step=self.index)

    def backward(
        self, loss: torch.Tensor, weight: int | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Differentiate the loss of the unit at hand and take in its gradient. Local.

        Args:
            loss: the unit's mean loss, one element.
            weight: what the mean was taken over (samples by default; say the tokens if it is tokens); 0 leaves the unit
                out.
            metrics: further means over the same, to be averaged over the step.

        Raises:
            ModelError: no unit is at hand, or a loss or weight that cannot be used.
        """
        unit = self._open
        if unit is None:
            raise ModelError(
                f"step {self.index}: backward() was called twice for one unit, or outside `for unit in step`"
            )
        self._open = None
        backward_ns = tracing.now()
        tracing.record("forward", self._forward_ns, backward_ns, unit=unit.index)
        weight = unit.num_samples if weight is None else integer_weight(weight)
        loss = scalar_loss(loss)
        if self._probed is not None:
            with tracing.span("backward", unit=unit.index):
                self._probed.append(self._digest(unit, loss, weight))
            return
        means = {name: scalar(value) for name, value in (metrics or {}).items()}
        record = UnitRecord(self._run.member, unit.num_samples, weight, scalar(loss), means)
        verification = self._run.verification
        with nullcontext(True) if verification is None else verification.watching(unit.index, record) as counts:
            if counts:
                self._records[unit.index] = record
            if weight:
                self._run.gradients.backward(loss, weight, last=self._last and counts)
                self._run.buffers.add(weight)
        tracing.record("backward", backward_ns, unit=unit.index)

    def fail(self, error: Exception) -> None:
        """Say that the unit at hand cannot be computed: the step ends, and all members raise `error`. Local.

        For a loop that wants one error from a run rather than one from each member.
        """
        self._failure = error
        self._open = None

    def _offer(self, span: UnitSpan) -> Iterator[Unit]:
        began = time.monotonic()
        try:
            unit = self._open = self._run.prepare(span)
        except Exception as error:
            self.fail(error)
            return
        self._forward_ns = tracing.now()
        yield unit
        if self._open is not None:
            raise ModelError(f"step {self.index}: unit {span.index} was not given to step.backward()")
        if self._probed is None:
            self._run.dealing.stopwatch.count(time.monotonic() - began, span.count)

    def _begin(self) -> Bag:
        """Begin with no unit computed. Return the bag of this worker's share of all."""
        self.attempts += 1
        self._began = time.monotonic()
        self._records = {}
        self._run.gradients.reset()
        self._run.buffers.reset()
        if self._run.verification is not None:
            self._run.verification.reset()
        return self._deal(self._units)

    def _lost(self) -> Bag:
        """Return the bag of this worker's share of the units that nobody who lives has computed. Collective."""
        run = self._run
        if not run.gradients.separate:
            return self._begin()
        computed = run.membership.attempt(lambda: run.group.gather_objects(list(self._records)))
        known = {index for indices in computed for index in indices}
        return self._deal([span for span in self._units if span.index not in known])

    def _next_units(self) -> list[UnitSpan]:
        """Return the units of the step that surely comes next. Local."""
        return self._run.units(self.index + 1)

    def _deal(self, spans: list[UnitSpan]) -> Bag:
        run = self._run
        ahead = run.known_ahead(self._next_units())
        run.loader.forget(but=[*run.known_ahead(spans), *ahead])
        bag = run.bag(spans)
        run.loader.prefetch(ahead)
        return bag

    def _sum(self) -> bool:
        """Sum what all units found. Collective. False: all units must be computed again."""
        run = self._run
        try:
            records = self._gather()
            fits = self._agree()
        except (HpcvolError, KeyboardInterrupt) as error:
            # All members are here with the same error; what they have begun to send one another has to be received.
            if isinstance(error, KeyboardInterrupt) or (error.everywhere and not tells_of_loss(error)):
                run.gradients.drop()
            if isinstance(error, NonFiniteSumError):
                raise not_finite(self.index, error.name, error.value) from None
            raise
        if not fits:
            run.gradients.drop()
            run.buffers.drop()
            if self.attempts > 2:
                raise ModelError(
                    f"step {self.index}: gradients outgrew the exact sum's range {self.attempts} times at exponents "
                    "that fit their own maximum: the units are not pure functions of the parameters",
                    everywhere=True,
                )
            return False
        self._average(records)
        self._summed = records
        self._combine()
        return True

    def _agree(self) -> bool:
        """Learn what all members have. Collective. False: all units must be computed again."""
        gradients_fit = self._run.gradients.agree(self._told_by_gradients)
        return self._run.buffers.agree() and gradients_fit

    def _combine(self) -> None:
        """Have the means of what was summed, if anything was. Collective."""
        run = self._run
        if self.weight:
            run.gradients.finish(self.weight)
            run.measure(self)
            run.buffers.combine(self.weight)
        else:
            run.gradients.drop()
            run.buffers.drop()

    def _verify(self, verification: Verification) -> Iterator[Unit]:
        """Have a share of the units computed again, and the run go on without who is wrong. Collective."""
        if not self.weight:
            return
        membership, spans = self._run.membership, {span.index: span for span in self._units}
        yield from verification.rounds(
            self._seals, self._summed, membership.settle, lambda unit: self._offer(spans[unit]), lambda: self._failure
        )
        if verification.guilty is not None:
            membership.expel(verification.guilty, f"step {self.index}")
        if isinstance(self._run.gradients, ExactGradients):
            self._run.gradients.hand_over()

    def _gather(self) -> dict[int, UnitRecord]:
        records: dict[int, UnitRecord] = {}
        samples, seconds = sum(one.num_samples for one in self._records.values()), time.monotonic() - self._began
        # Plain tuples: classes would be most of what travels.
        units = [(index, one.num_samples, one.weight, one.loss, one.metrics) for index, one in self._records.items()]
        told = {**self._run.membership.saying, _SPEED: self._run.dealing.stopwatch.sample_seconds}
        seal = None if self._run.verification is None else self._run.verification.seal()
        mine = self._run.member, samples, seconds, units, told, seal, self._run.gradients.tell()
        with tracing.span("gather records"):
            everybody = gather_agreed(self._run.team, mine, self._failure, f"computing step {self.index}")
        self.shares = []
        self.told = {}
        self._seals = {}
        self._told_by_gradients = [one[-1] for one in everybody]
        for member, samples, seconds, units, told, seal, _ in everybody:
            self.told[member] = told
            self._seals[member] = seal
            records |= {index: UnitRecord(member, *values) for index, *values in units}
            spans = [covered(self._units, index, num_samples) for index, num_samples, *_ in units]
            indices = sorted(span.index for part in spans for span in part)
            self.shares.append(Share(member, samples, seconds, indices, told[_SPEED]))
        self._check_shares()
        self._check_losses(records)
        return records

    def _check_shares(self) -> None:
        """Refuse a sum in which a unit is missing, or is there twice."""
        if sorted(unit for share in self.shares for unit in share.units) != [span.index for span in self._units]:
            told = "; ".join(f"member {share.member}: {ranges(share.units) or 'none'}" for share in self.shares)
            raise MemberError(
                f"step {self.index}: expected each of its {len(self._units)} units once, and members reported {told}: "
                "let all members run the same program; the run goes on from its last checkpoint",
                everywhere=True,
            )

    def _check_losses(self, records: Mapping[int, UnitRecord]) -> None:
        for index, record in sorted(records.items()):
            if record.weight and not math.isfinite(record.loss):
                raise ModelError(
                    f"step {self.index}: the loss of unit {index}, computed by member {record.member}, is "
                    f"{record.loss}; lower the learning rate, or look at that unit's samples; checkpoints "
                    "written before are good",
                    everywhere=True,
                )

    def _average(self, records: Mapping[int, UnitRecord]) -> None:
        counted = [record for _, record in sorted(records.items()) if record.weight]
        self.weight = sum(record.weight for record in counted)
        self.loss = weighted_mean((record.loss, record.weight) for record in counted)
        names = {name: None for record in counted for name in record.metrics}
        self.metrics = {
            name: weighted_mean((r.metrics[name], r.weight) for r in counted if name in r.metrics) for name in names
        }

    def _probe(self) -> Iterator[Unit]:
        """Compute one unit, another, and the first again; compare on this member and with the others. Collective."""
        began_ns = tracing.now()
        self._probed = []
        first, other = self._units[0], self._units[-1]
        for span in (first, other, first):
            yield from self._offer(span)
            if self._failure is not None:
                break
        self._run.membership.attempt(self._compare)
        self._probed = None
        self._run.needs_probe = False
        tracing.record("probe", began_ns)

    def _compare(self) -> None:
        agree(self._run.group, self._failure, f"computing step {self.index}")
        assert self._probed is not None
        once, between, again = self._probed
        compare(self._run.group, once, again, between)

    def _digest(self, unit: Unit, loss: torch.Tensor, weight: int) -> Digests:
        if weight:
            loss.backward()  # type: ignore[no-untyped-call]
        digests = digest_unit(unit, loss, self._run.model.named_parameters(), self._run.model.named_buffers())
        self._run.gradients.prepare()
        return digests


def not_finite(step: int, name: str, value: float) -> ModelError:
    """Return the error, the same on every member, for a tensor `name` that holds `value` after `step`."""
    return ModelError(
        f"step {step}: {name} holds {value} although every loss is finite; lower the learning rate, clip gradients "
        "(optimizer.clip_norm), or look for a division by zero or the root of zero in the model",
        everywhere=True,
    )


def left_early(step: int) -> ModelError:
    """Return the error for a loop that has left a step before it was over."""
    return ModelError(
        f"step {step} was left before its bag was empty: let `for unit in step` run to its end, also after `continue`"
    )
