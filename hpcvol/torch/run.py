"""A run: one model trained by all members, step by step."""

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hpcvol import tracing
from hpcvol.codecs import parse as parse_codec
from hpcvol.collectives import Algorithm
from hpcvol.comm import Group, together
from hpcvol.elastic.bag import Bag
from hpcvol.elastic.claiming import dealing_of
from hpcvol.elastic.dealing import Done, Terms
from hpcvol.elastic.membership import Membership, Replacing
from hpcvol.elastic.speed import SlowMembers
from hpcvol.elastic.units import Batching, UnitSpan, merge
from hpcvol.errors import CheckpointError, ConfigError, ModelError
from hpcvol.guarantees import require, require_dealing, require_units, require_verifiable
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.combinations import parse
from hpcvol.strategies.feedback import Feedback
from hpcvol.strategies.reducer import BUCKET_NBYTES
from hpcvol.strategies.verified_exact import VerifiedAllReduce
from hpcvol.torch.buffers import Buffers
from hpcvol.torch.evaluation import Evaluation, evaluate
from hpcvol.torch.exact import ExactSum
from hpcvol.torch.float_sum import FloatGradients
from hpcvol.torch.gradients import ExactGradients, Gradients, clip, gradient_norm
from hpcvol.torch.loader import Loader, Unit
from hpcvol.torch.numerics import agree_on
from hpcvol.torch.samples import Samples, open_samples
from hpcvol.torch.seeding import BETWEEN_STEPS, seed_generators
from hpcvol.torch.staging import broadcast_tensor
from hpcvol.torch.step import Step, not_finite
from hpcvol.torch.verification import Verification

logger = logging.getLogger("hpcvol")

_EQUAL = Terms("equal")

# What members say with the records of a step.
_RESIDUAL = "residual_norm"


@dataclass(frozen=True)
class Settings:
    """How a run trains, besides its model, optimizer and data.

    Args:
        batch_size: samples a step, whatever the number of workers.
        unit_size: samples a unit at most.
        sum: "exact": the same bits whichever members computed the units; "float": faster, other bits at other counts.
        seed: decides sample order and random numbers.
        clip_norm: largest 2-norm of a step's gradient; None does not clip.
        algorithm: as for `hpcvol.collectives.allreduce`.
        bucket_nbytes: how many bytes of gradients are combined at once.
        elastic: whether the run goes on without members that die, where the MPI can.
        combine: what becomes of members' gradients under the float sum, as `strategy.combine`.
        codec: what they are encoded by, as `strategy.codec`.
        verify_share: of units that two members compute, to be compared (`elastic.verify_share`).
        dealing: which member computes what.
    """

    batch_size: int
    unit_size: int
    sum: str = "exact"
    seed: int = 0
    clip_norm: float | None = None
    algorithm: Algorithm = "auto"
    bucket_nbytes: int = BUCKET_NBYTES
    elastic: bool = True
    combine: str = "mean"
    codec: str = "none"
    verify_share: float = 0.0
    dealing: Terms = _EQUAL

    def __post_init__(self) -> None:
        robust = parse(self.combine) is not None
        parse_codec(self.codec)
        require("run", self.sum, robust=robust, encoded=self.codec != "none")
        require_verifiable(self.sum, self.verify_share)
        require_dealing(self.sum, self.dealing.kind, robust=robust)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed = {self.seed}: expected a number from 0 to 2^63 - 1")


class Run:
    """One model trained by all members of a group. Made by `hpcvol.start`.

    Attributes:
        model, optimizer: what is trained, replicated on every member.
        settings: how.
        group: the live ranks.
        membership: who they are, and what becomes of the run when one dies.
        verification: of units, by a second member; None where no share of them is to be verified.
        dealing: which of them computes what.
        slow: names of the members that were found slow, in order, and how many times as long as the median they took.
        device: where this member computes.
        step: steps committed so far, over the life of the model (a resumed run goes on counting).
        batching: how samples become steps and units.
        member: this process's id, never reused.
        facts: what decides the weights besides code and data, as it was at the start.
        replacing: has members that died replaced, where there is one.
        lost_residuals: of members that died: id, and the norm of what it had not sent of its gradients, as it had told.
        residual_norms: of what members have not sent, by id, as they told last; the same on all members.
        is_first: whether this is the member that writes and prints for all.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        samples: Samples,
        settings: Settings,
        group: Group,
        device: torch.device,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.settings = settings
        self.group = group
        self.device = device
        self.step = 0
        self.batching = Batching(len(samples), settings.batch_size, settings.unit_size)
        self.loader = Loader(samples, settings.seed, device)
        self.needs_probe = settings.sum == "exact"
        self.membership = Membership(group, enabled=settings.elastic)
        self._parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._known = [(name, parameter, parameter.requires_grad) for name, parameter in model.named_parameters()]
        with together(group, "starting the run"):
            _check_parameters(model)
            _check_optimizer(model, optimizer)
        self.facts = self._facts(len(samples))
        agree_on(group, self.facts, "make the same model, optimizer and run on every member")
        strategy = VerifiedAllReduce if settings.verify_share else AllReduce
        combination = parse(settings.combine)
        if combination is not None:
            # The last step of an epoch is the shortest.
            fewest = len(self.batching.units(self.batching.steps_per_epoch - 1))
            require_units(settings.combine, combination.least_members, fewest)
        self.strategy = strategy(
            group,
            settings.algorithm,
            settings.bucket_nbytes,
            combination,
            settings.codec,
            settings.seed,
        )
        self._applying = False
        self._guard = optimizer.register_step_pre_hook(self._refuse_step)
        self.gradients = self._make_gradients()
        self.buffers = Buffers(model, self.batching.units_per_step, self.strategy, device)
        self.verification: Verification | None = None
        if settings.verify_share and isinstance(self.gradients, ExactGradients):
            sums = [*self.gradients.sums, self.buffers.total]
            self.verification = Verification(settings.verify_share, group, sums)
        self.dealing = dealing_of(group, settings.dealing, settings.sum)
        self.slow: list[tuple[str, float]] = []
        self._slow_members = SlowMembers()
        if self.is_first and (unknown := settings.dealing.unknown(group)):
            logger.warning(
                "elastic.priorities or elastic.limits name %s: no member has that id, or is on a host of that name",
                ", ".join(map(repr, unknown)),
            )
        self.lost_residuals: list[tuple[int, float]] = []
        self.residual_norms: dict[int, float] = {}
        self.broadcast_model()
        self.membership.add(self)
        self.replacing: Replacing | None = None

    @property
    def member(self) -> int:
        """This process's id."""
        return self.group.members[self.group.rank]

    @property
    def is_first(self) -> bool:
        """Whether this member writes and prints for all."""
        return self.group.rank == 0

    def describe_batch(self) -> str:
        """Return what a batch is, as in `batch 64 = 8 units of 8 over 3 workers`."""
        units, workers = self.batching.units_per_step, self.group.size
        batch, size = self.settings.batch_size, self.settings.unit_size
        each = f"at most {size}" if batch % size else f"{size}"
        return (
            f"batch {batch} = {units} {'unit' if units == 1 else 'units'} of {each} over "
            f"{workers} {'worker' if workers == 1 else 'workers'}"
        )

    def steps(self, until: int) -> Iterator[Step]:
        """Yield the steps that are left to number `until`, counted since the model was new.

        Raises:
            ModelError: the loop left a step before its units were all computed; a frozen parameter was thawed, or a
                parameter replaced.
            SystemExit: this member left (`leave`), and the others have gone on.
        """
        self._warn_about_idle_workers()
        while self.step < until:
            self._check_model()
            if self.replacing is not None:
                self.replacing.between_steps()
            index = self.step
            yield Step(self, index)
            if self.step == index:
                raise ModelError(
                    f"step {index} was left before its bag was empty: let `for unit in step` run to its end, also "
                    "after `continue`"
                )
            self.membership.at_boundary()

    def leave(self) -> None:
        """Have the others go on without this member: its process ends when the step at hand is over. Local.

        What it computed of that step counts. Its process ends by SystemExit, out of the loop over `steps`.

        Raises:
            CommError: members of this run cannot part: the MPI cannot, or there is only one.
        """
        self.membership.leave()

    def evaluate(self, function: Callable[[Unit], Any], data: Any, split: str = "val") -> Evaluation:
        """Average `function(unit)` over samples, each once, shared out over the workers. Collective.

        Args:
            function: returns a unit's mean loss, or a mapping with `loss`, optionally `weight`, and metrics. The model
                is in evaluation mode and no gradients are kept.
            data: what to evaluate on, as for `hpcvol.start`; read in stored order.
            split: the split, where `data` is a folder.

        Returns:
            The means; the same bits on every member and at any number of members.
        """

        def opened() -> Samples:
            with together(self.group, "opening the data"):
                return open_samples(data, split)

        samples = self.membership.attempt(opened)
        return self.membership.attempt(lambda: evaluate(self, function, samples))

    def deal(self, spans: list[UnitSpan]) -> list[UnitSpan]:
        """Return this worker's share of a step's units, in proportion or as many as others. Local."""
        return self._in_passes(self.dealing.share(spans))

    def known_ahead(self, spans: list[UnitSpan]) -> list[UnitSpan]:
        """Return which units of a step this worker will surely compute. Local."""
        return self._in_passes(self.dealing.known_ahead(spans))

    def bag(self, spans: list[UnitSpan]) -> Bag:
        """Return the bag of what this worker computes of a step's units. Local; the same calls on all members."""
        if self.gradients.separate:
            return self.dealing.bag(spans, self.loader.prefetch)
        mine = self.deal(spans)
        self.loader.prefetch(mine)
        return Bag(mine)

    def prepare(self, span: UnitSpan) -> Unit:
        """Make ready for one unit: its samples, committed buffers, no gradients, seeded generators. Local."""
        unit = self.loader.load(span)
        self.buffers.prepare()
        self.gradients.prepare()
        seed_generators(self.settings.seed, span.step, span.index)
        return unit

    def apply(self, step: Step) -> None:
        """Clip, and let the optimizer change the parameters, the same on every member, after `sum`. Local."""
        if step.weight:
            self.buffers.finish()
            parameters = [parameter for _, parameter in self._parameters]
            step.gradient_norm = gradient_norm(parameters)
            self._check_gradients(step)
            if self.settings.clip_norm is not None:
                clip(parameters, step.gradient_norm, self.settings.clip_norm)
            self._applying = True
            with tracing.span("optimizer"):
                self.optimizer.step()
            self._applying = False
        else:
            self.buffers.prepare()
        self.gradients.commit()
        self.buffers.commit()
        if self._feedbacks:
            self.residual_norms = {member: said.get(_RESIDUAL, 0.0) for member, said in step.told.items()}
            self.membership.saying[_RESIDUAL] = math.hypot(*(feedback.norm for feedback in self._feedbacks.values()))
        self._learn_speeds(step)
        self.step += 1
        # Units left the generators where this worker's last unit put them; what is drawn between steps must not tell.
        seed_generators(self.settings.seed, self.step, 0, BETWEEN_STEPS)

    def abandon(self) -> None:
        """As `hpcvol.elastic.membership.Part`."""
        self.strategy.abandon()

    def can_spare(self, leaving: set[int]) -> bool:
        """As `hpcvol.elastic.membership.Part`: all there is but residuals every member has."""
        return bool(set(self.group.members) - leaving)

    def inherit(self, leaving: set[int]) -> None:
        """As `hpcvol.elastic.membership.Part`: what they have not sent of their gradients."""
        for feedback in self._feedbacks.values():
            feedback.inherit(self.group, leaving)

    def hand_over(self) -> None:
        """As `hpcvol.elastic.membership.Part`: the others have all there is."""

    def rebuild(self) -> None:
        """As `hpcvol.elastic.membership.Part`."""
        self.loader.forget()
        self.gradients.rebuild()
        gone = self.residual_norms.keys() - set(self.group.members)
        lost = gone.difference(*(feedback.inherited for feedback in self._feedbacks.values()))
        self.lost_residuals += [(one, self.residual_norms[one]) for one in sorted(lost) if self.residual_norms[one]]
        self.residual_norms = {one: norm for one, norm in self.residual_norms.items() if one not in gone}
        self.buffers.rebuild()
        self.dealing.rebuild()
        # A member that is new has seen nothing yet, and all have to tell of the same ones.
        self._slow_members = SlowMembers()

    def broadcast_model(self, root: int = 0) -> None:
        """Give every member the parameters and buffers of the one at rank `root`. Collective."""
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            broadcast_tensor(self.group, tensor, root)
        self.buffers.take_current()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides the model and the optimizer, as plain numbers and names."""
        exponents = self.gradients.exponents() if isinstance(self.gradients, ExactGradients) else {}
        return {"step": self.step, "exponents": exponents, "buffer_exponents": self.buffers.total.exponents()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, after model and optimizer were loaded. Local; the same on every member.

        Raises:
            CheckpointError: the state is not of this model.
        """
        try:
            self.step = int(state["step"])
            if isinstance(self.gradients, ExactGradients):
                self.gradients.load_exponents(state["exponents"])
            self.buffers.total.load_exponents(state["buffer_exponents"])
        except KeyError as error:
            raise CheckpointError(
                f"the checkpoint's state has no entry {error}: it was not written by this version"
            ) from None
        self.buffers.take_current()

    def residuals(self) -> dict[str, torch.Tensor]:
        """Return the sums of what members have not sent of their gradients, by dtype: for a checkpoint. Collective.

        Where members have sent all there is nothing.
        """
        sums = {name: one.gathered(self.group) for name, one in self._feedbacks.items()}
        return {name: torch.from_numpy(one) for name, one in sums.items() if one is not None}

    def load_residuals(self, stored: Mapping[str, torch.Tensor]) -> bool:
        """Go on from what `residuals` returned, after `load_state`. Local; the same on every member.

        Returns:
            Whether all of it will be sent: not so where `strategy.codec` keeps nothing any more.

        Raises:
            CheckpointError: they are of another model.
        """
        for name, feedback in self._feedbacks.items():
            try:
                feedback.load(None if name not in stored else stored[name].numpy(), self.step)
            except ValueError as error:
                raise CheckpointError(f"the checkpoint's residuals are not of this model: {error}") from None
        return all(name in self._feedbacks and self._feedbacks[name].keeps for name in stored)

    @property
    def _feedbacks(self) -> dict[str, Feedback]:
        return self.gradients.feedbacks if isinstance(self.gradients, FloatGradients) else {}

    def close(self) -> None:
        """End the threads that fetch and communicate, and let the model and the optimizer go."""
        self.loader.close()
        self.strategy.close()
        self.gradients.close()
        self._guard.remove()
        if self.replacing is not None:
            self.replacing.close()

    def _in_passes(self, mine: list[UnitSpan]) -> list[UnitSpan]:
        return mine if self.gradients.separate else merge(mine)

    def _learn_speeds(self, step: Step) -> None:
        """Let the next step be dealt by what this one told, and tell of members that are slow."""
        num_units = len(self.batching.units(step.index))
        done = Done(
            {one.member: one.sample_seconds for one in step.shares if one.sample_seconds is not None},
            frozenset(one.member for one in step.shares if not one.num_samples),
            num_units,
            step.num_samples / num_units,
            max(one.seconds for one in step.shares),
        )
        self.dealing.committed(done)
        for slow in self._slow_members.look(done.seconds, done.unit_samples):
            who = self.group.name_of(self.group.members.index(slow.member))
            self.slow.append((who, slow.times))
            if self.is_first:
                logger.warning(
                    "%s takes %.1f times as long for a sample as the median member%s",
                    who,
                    slow.times,
                    self.dealing.consequence(slow),
                )

    def _facts(self, num_samples: int) -> dict[str, str]:
        """Return what decides the weights besides code and data: it has to be the same on every member."""
        hyperparameters = [
            {name: value for name, value in parameters.items() if isinstance(value, (bool, int, float, str, tuple))}
            for parameters in self.optimizer.param_groups
        ]
        return {
            "the number of samples": str(num_samples),
            "the run": str(self.settings),
            "the optimizer": f"{type(self.optimizer).__name__} {hyperparameters}",
            **{
                f"parameter {name}": f"{list(p.shape)} {p.dtype}{'' if p.requires_grad else ', frozen'}"
                for name, p in self.model.named_parameters()
            },
            **{f"buffer {name}": f"{list(b.shape)} {b.dtype}" for name, b in self.model.named_buffers()},
        }

    def _refuse_step(self, *_: Any) -> None:
        if not self._applying:
            raise ModelError(
                "optimizer.step() was called by the loop: a step of the run applies the optimizer itself, with the "
                "gradients of all members; take the call out"
            )

    def _make_gradients(self) -> Gradients:
        if self.settings.sum == "float":
            return FloatGradients(self._parameters, self.strategy, self.device)
        units = self.batching.units_per_step
        return ExactGradients(
            self._parameters, lambda terms, dtype: ExactSum(terms, units, self.strategy, self.device, dtype)
        )

    def _check_gradients(self, step: Step) -> None:
        """Refuse what the float sum lets through: the exact sum has looked at every term."""
        if not math.isfinite(step.gradient_norm):
            for name, parameter in self._parameters:
                gradient = parameter.grad
                if gradient is not None and not bool(gradient.isfinite().all()):
                    value = float(gradient[~gradient.isfinite()][0])
                    raise not_finite(step.index, f"gradient {name}", value)

    def _check_model(self) -> None:
        """Refuse to train parameters that are not those whose gradients are summed."""
        now = list(self.model.parameters())
        for index, (name, parameter, trained) in enumerate(self._known):
            if index >= len(now) or now[index] is not parameter:
                raise ModelError(
                    f"parameter {name!r} of the model is another object than when the run began, and is not part of "
                    "its sum: copy values into the parameter that is there (load_state_dict without assign=True), or "
                    "start the run afterwards"
                )
            if parameter.requires_grad and not trained:
                raise ModelError(
                    f"parameter {name!r} requires a gradient since the run began, and is not part of its sum: let it "
                    "require one from the start (with a learning rate of 0 until it should move), or start a new run"
                )

    def _warn_about_idle_workers(self) -> None:
        units, workers = self.batching.units_per_step, self.group.size
        if units < workers and self.is_first:
            logger.warning(
                "a step has %d units and there are %d workers: %d of them idle; lower train.unit_size or raise "
                "train.batch_size",
                units,
                workers,
                workers - units,
            )


def _check_parameters(model: torch.nn.Module) -> None:
    """Refuse a model that has nothing to train, or parameters that no sum can carry."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("the model has no parameter that requires a gradient: nothing to train")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.dtype.is_floating_point:
            raise ModelError(
                f"parameter {name!r} is {parameter.dtype}: gradients are summed as real numbers; keep its real and "
                "imaginary parts (torch.view_as_real)"
            )


def _check_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that the step cannot drive, or one of parameters that no sum covers."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    wants_closure = closure is not None and closure.default is inspect.Parameter.empty
    if wants_closure or isinstance(optimizer, torch.optim.SparseAdam):
        needs = "a closure" if wants_closure else "sparse gradients"
        raise ConfigError(
            f"the optimizer is {type(optimizer).__name__}, which needs {needs}, and a step has none: choose another"
        )
    of_model = {id(parameter) for parameter in model.parameters()}
    for parameters in optimizer.param_groups:
        for parameter in parameters["params"]:
            if id(parameter) not in of_model:
                raise ConfigError(
                    f"the optimizer holds a parameter of shape {list(parameter.shape)} that is not the model's: make "
                    "whatever has it (a loss with weights, say) a part of the model, and the optimizer from "
                    "model.parameters()"
                )
