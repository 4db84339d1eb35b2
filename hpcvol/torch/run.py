"""A run: one model trained by all members, step by step."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from hpcvol import tracing
from hpcvol.comm import Group, together
from hpcvol.elastic.bag import Bag
from hpcvol.elastic.claiming import dealing_of
from hpcvol.elastic.dealing import Dealing, Done, Terms
from hpcvol.elastic.membership import Membership, Replacing
from hpcvol.elastic.speed import SlowMembers
from hpcvol.elastic.units import Batching, UnitSpan, merge
from hpcvol.errors import CheckpointError, ModelError
from hpcvol.guarantees import require_units
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.combinations import parse
from hpcvol.strategies.shards import ServedSums, Shards
from hpcvol.strategies.supernodes import Grouping
from hpcvol.strategies.verified_exact import VerifiedAllReduce
from hpcvol.torch.apart import Apart, InRounds, WithServers
from hpcvol.torch.asynchronous import AsynchronousParameters, OwnSums
from hpcvol.torch.buffers import Buffers
from hpcvol.torch.checks import check_momentum, check_optimizer, check_parameters
from hpcvol.torch.counted import CountedStep
from hpcvol.torch.evaluation import Evaluation, evaluate
from hpcvol.torch.exact import ExactSum
from hpcvol.torch.float_sum import FloatGradients
from hpcvol.torch.gradients import ExactGradients, Gradients, clip, gradient_norm
from hpcvol.torch.loader import Loader, Unit
from hpcvol.torch.numerics import agree_on
from hpcvol.torch.residuals import Residuals
from hpcvol.torch.rounds import Rounds
from hpcvol.torch.samples import Samples, open_samples
from hpcvol.torch.seeding import BETWEEN_STEPS, seed_generators
from hpcvol.torch.served import ServedParameters
from hpcvol.torch.settings import Settings
from hpcvol.torch.sharded_optimizer import check_served
from hpcvol.torch.staging import broadcast_tensor
from hpcvol.torch.step import Step, left_early, not_finite
from hpcvol.torch.verification import Verification

logger = logging.getLogger("hpcvol")


class Run:
    """One model trained by all members of a group. Made by `hpcvol.start`.

    Attributes:
        model, optimizer: what is trained, replicated on every member.
        parameters: names and parameters that require a gradient.
        settings: how.
        group: the live ranks.
        team: those that compute a step together: all of them, or a group that they form.
        membership: who they are, and what becomes of the run when one dies.
        verification: of units, by a second member; None where no share of them is to be verified.
        dealing: which of the team computes what of its part.
        dealing_to_all: which of all members does what where all are together.
        slow: names of the members that were found slow, in order, and how many times as long as the median they took.
        device: where this member computes.
        step: steps committed so far, over the life of the model (a resumed run goes on counting).
        batching: how samples become steps and units.
        member: this process's id, never reused.
        facts: what decides the weights besides code and data, as it was at the start.
        replacing: has members that died replaced, where there is one.
        apart: the steps of members that meet seldom; None where they are together after each.
        residuals: what members have not sent of their gradients.
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
        *,
        joins: bool = False,
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
        self.parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._known = [(name, parameter, parameter.requires_grad) for name, parameter in model.named_parameters()]
        with together(group, "starting the run"):
            check_parameters(model)
            check_optimizer(model, optimizer)
            check_momentum(optimizer, settings.codec)
            if settings.supernodes is not None:
                check_momentum(optimizer, settings.supernodes.codec)
            if settings.servers is not None:
                check_served(self.parameters, None if settings.workers_train_apart else optimizer)
        self.facts = self._facts(len(samples))
        agree_on(group, self.facts, "make the same model, optimizer and run on every member")
        self.shards = None if settings.servers is None else Shards(group, settings.servers, joins=joins)
        self.grouping = self._form_groups(joins)
        self.team = group if self.grouping is None else self.grouping.team
        strategy = VerifiedAllReduce if settings.verify_share else AllReduce
        combination = parse(settings.combine)
        if combination is not None:
            # The last step of an epoch is the shortest.
            fewest = len(self.batching.units(self.batching.steps_per_epoch - 1))
            require_units(settings.combine, combination.least_members, fewest)
        self.strategy = strategy(
            self.team,
            settings.algorithm,
            settings.bucket_nbytes,
            combination,
            settings.codec_of_gradients,
            settings.seed,
        )
        self._applying = False
        self._guard = optimizer.register_step_pre_hook(self._refuse_step)
        self.gradients = self._make_gradients()
        self.buffers = Buffers(model, self.batching.units_per_step, self.strategy, device)
        self.rounds = self._make_rounds()
        feedbacks = self.gradients.feedbacks if isinstance(self.gradients, FloatGradients) else {}
        self.residuals = Residuals(group, feedbacks if self.rounds is None else self.rounds.feedbacks)
        self.verification: Verification | None = None
        if settings.verify_share and isinstance(self.gradients, ExactGradients):
            sums = [*self.gradients.sums, self.buffers.total]
            self.verification = Verification(settings.verify_share, group, sums)
        terms = settings.dealing if self.grouping is not None else self._without_servers(settings.dealing)
        self.dealing = dealing_of(self.team, terms, settings.sum)
        self.dealing_to_all = (
            self.dealing
            if self.grouping is None
            else Dealing(group, self._without_servers(replace(settings.dealing, kind="equal")))
        )
        self.slow: list[tuple[str, float]] = []
        self._slow_members = SlowMembers()
        if self.is_first and (unknown := settings.dealing.unknown(group)):
            logger.warning(
                "elastic.priorities or elastic.limits name %s: no member has that id, or is on a host of that name",
                ", ".join(map(repr, unknown)),
            )
        self.served, self.asynchronous = self._serve(), self._serve_asynchronously()
        if joins and self.asynchronous is not None:
            self.asynchronous.store.close()  # nobody asks it for anything yet
        self.apart = self._train_apart()
        self.broadcast_model()
        self.membership.add(self)
        self.replacing: Replacing | None = None

    @property
    def member(self) -> int:
        """This process's id."""
        return self.group.members[self.group.rank]

    @property
    def meets_seldom(self) -> bool:
        """Whether members are together between two calls of `steps` (or after a round) only, not after each step."""
        return self.apart is not None

    @property
    def is_first(self) -> bool:
        """Whether this member writes and prints for all."""
        return self.group.rank == 0

    @property
    def counted(self) -> list[CountedStep]:
        """Where members meet seldom: the steps that took effect in the last call of `steps`, in order."""
        return [] if self.apart is None else self.apart.counted

    def describe_batch(self) -> str:
        """Return what a batch is, as in `batch 64 = 8 units of 8 over 3 workers`."""
        units, workers = self.batching.units_per_step, self.num_workers
        batch, size = self.settings.batch_size, self.settings.unit_size
        each = f"at most {size}" if batch % size else f"{size}"
        return (
            f"batch {batch} = {units} {'unit' if units == 1 else 'units'} of {each} over "
            f"{workers} {'worker' if workers == 1 else 'workers'}"
        )

    def steps(self, until: int) -> Iterator[Step]:
        """Yield the steps that are left to number `until`, counted since the model was new.

        Where members are apart (supernodes, steps that may be stale) these are the steps that this member computes, and
        `step` stands still meanwhile; they end where all have met, before `until` if one of them has called `meet` or
        leaves.

        Raises:
            ModelError: the loop left a step before its units were all computed; a frozen parameter was thawed, or a
                parameter replaced.
            SystemExit: this member left (`leave`), and the others have gone on.
        """
        if self.apart is not None:
            yield from self.apart.steps(until)
            return
        self.warn_about_idle_workers()
        while self.step < until:
            self.check_model()
            if self.replacing is not None:
                self.replacing.between_steps()
            index = self.step
            yield Step(self, index)
            if self.step == index:
                raise left_early(index)
            self.membership.at_boundary()

    def meet(self) -> None:
        """Where members are not together after each step, have `steps` end on all when they next are. Local.

        Between two calls of `steps` members are together: they can evaluate, and all have the same parameters.
        They are where parameters may be stale and the steps at hand are done, and after each round of supernodes.
        Otherwise they are after every step, and this does nothing.
        """
        if self.apart is not None:
            self.apart.meet()

    def leave(self) -> None:
        """Have the others go on without this member: its process ends when the step at hand is over. Local.

        What it computed of that step counts. Its process ends by SystemExit, out of the loop over `steps`.

        Raises:
            CommError: members of this run cannot part: the MPI cannot, or there is only one.
        """
        self.membership.leave()
        if self.apart is not None:
            self.apart.stop()

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
        self.check_together("run.evaluate")

        def opened() -> Samples:
            with together(self.group, "opening the data"):
                return open_samples(data, split)

        samples = self.membership.attempt(opened)
        return self.membership.attempt(lambda: evaluate(self, function, samples))

    def roles(self) -> dict[str, Any]:
        """Return who does what, as a ledger's line tells it: see `hpcvol.elastic.roles.tree`. Local."""
        found: dict[str, Any] = {"members": self.group.members, "hosts": self.group.hosts}
        if self.grouping is not None and self.settings.supernodes is not None:
            found["groups"] = self.grouping.teams
        if (shards := self.shards) is not None:
            held = {one: [i for i, by in enumerate(shards.holders) if one in by] for one in self.group.members}
            found["shards"] = {str(member): ids for member, ids in held.items() if ids}
            found["computes"] = [member for member in self.group.members if member not in shards.serving]
        return found

    def units(self, index: int) -> list[UnitSpan]:
        """Return the units of a step that this member's team computes. Local."""
        units = self.batching.units(index)
        return units if self.grouping is None or self.rounds is None else self.grouping.part(units)

    def deal(self, spans: list[UnitSpan]) -> list[UnitSpan]:
        """Return this worker's share of a step's units, in proportion or as many as others. Local."""
        return self.in_passes(self.dealing.share(spans))

    def known_ahead(self, spans: list[UnitSpan]) -> list[UnitSpan]:
        """Return which units of a step this worker will surely compute. Local."""
        return self.in_passes(self.dealing.known_ahead(spans))

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
        """Clip, and let the optimizer change the parameters, the same on every member, after `sum`.

        Local; with servers collective, since the parameters come from them.
        """
        if step.weight:
            self.buffers.finish()
            self._applying = True
            if self.served is None:
                self._apply_everything(step)
            else:
                self.served.apply(step.gradient_norm, self.settings.clip_norm)
            self._applying = False
        else:
            self.buffers.prepare()
        self.gradients.commit()
        self.buffers.commit()
        if self.served is not None and step.weight:
            self.membership.attempt(self.served.pull)
        if self.rounds is None:
            self.residuals.committed(step.told, self.membership.saying)
        self.learn_speeds(step)
        self.step += 1
        # Units left the generators where this worker's last unit put them; what is drawn between steps must not tell.
        seed_generators(self.settings.seed, self.step, 0, BETWEEN_STEPS)

    def measure(self, step: Step) -> None:
        """Find the norm of a step's gradient, where servers hold it, before the step takes effect. Collective."""
        if self.served is not None:
            step.gradient_norm = self.served.norm(step.index)

    def _apply_everything(self, step: Step) -> None:
        parameters = [parameter for _, parameter in self.parameters]
        step.gradient_norm = gradient_norm(parameters)
        self.check_gradients(step)
        if self.settings.clip_norm is not None:
            clip(parameters, step.gradient_norm, self.settings.clip_norm)
        with tracing.span("optimizer"):
            self.optimizer.step()

    def step_optimizer(self) -> None:
        """Have this member's optimizer apply the gradients that it has. Local."""
        self._applying = True
        with tracing.span("local optimizer"):
            self.optimizer.step()
        self._applying = False

    def gather_optimizer(self, *, here: bool = True) -> None:
        """Give `optimizer` its whole state, up to the next step, where members have parts of it. Collective.

        Of supernodes it becomes the mean of what the groups have. Otherwise it is there anyway, and this does nothing.
        For checkpoints of a loop of your own.

        Args:
            here: whether on this member: a state takes memory.
        """
        self.check_together("run.gather_optimizer")
        if self.rounds is not None:
            self.membership.attempt(self.rounds.unite)
            self.rounds.take()
        if self.shards is not None:
            self.membership.attempt(lambda: self.gather_shards(here=here))

    def gather_shards(self, *, here: bool) -> None:
        """As `gather_optimizer` of what servers have, once. Collective."""
        served = self.served or self.asynchronous
        if self.shards is not None and served is not None:
            served.optimizer.gather(self.shards, here=here)

    def abandon(self) -> None:
        """As `hpcvol.elastic.membership.Part`."""
        if self.grouping is not None:
            self.team.give_up()
        self.strategy.abandon()
        if self.rounds is not None:
            self.rounds.abandon()
        if self._served_sums is not None:
            self._served_sums.abandon()
        if self.asynchronous is not None:
            self.asynchronous.abandon()

    def can_spare(self, leaving: set[int]) -> bool:
        """As `hpcvol.elastic.membership.Part`: all there is but residuals every member has."""
        rest = bool(set(self.group.members) - leaving)
        return rest and (self.shards is None or self.shards.can_spare(leaving))

    def inherit(self, leaving: set[int]) -> None:
        """As `hpcvol.elastic.membership.Part`: what they have not sent of their gradients, and the shards they hold."""
        self.residuals.inherit(leaving)
        if served := self.served or self.asynchronous:
            served.inherit(leaving)

    def hand_over(self) -> None:
        """As `hpcvol.elastic.membership.Part`: the others have all there is."""

    def rebuild(self) -> None:
        """As `hpcvol.elastic.membership.Part`."""
        self.loader.forget()
        if self.shards is not None:
            self.shards.welcome()
        if self.rounds is not None:
            self.rounds.restore()
        if self.grouping is not None:
            self.grouping.rebuild()
        if self.served is not None:
            self.served.rebuild()
        if self.asynchronous is not None:
            self.asynchronous.settle()
        self.gradients.rebuild()
        if self.rounds is not None:
            self.rounds.rebuild()
        self.residuals.rebuild()
        self.buffers.rebuild()
        if self.asynchronous is not None:
            self.asynchronous.rebuild()
        self.dealing.rebuild()
        if self.dealing_to_all is not self.dealing:
            self.dealing_to_all.rebuild()
        # A member that is new has seen nothing yet, and all have to tell of the same ones.
        self._slow_members = SlowMembers()
        if self.apart is not None:
            self.apart.slow = []

    def broadcast_model(self, root: int = 0) -> None:
        """Give every member the parameters and buffers of the one at rank `root`. Collective."""
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            broadcast_tensor(self.group, tensor, root)
        self.buffers.take_current()
        if self.rounds is not None:
            self.rounds.take()

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
        if served := self.served or self.asynchronous:
            served.take_state()
        if self.rounds is not None:
            self.rounds.take()

    def close(self) -> None:
        """End the threads that fetch and communicate, and let the model and the optimizer go."""
        self.loader.close()
        self.strategy.close()
        if self.rounds is not None:
            self.rounds.close()
        if self._served_sums is not None:
            self._served_sums.close()
        if self.asynchronous is not None:
            self.asynchronous.close()
        self.gradients.close()
        if self.served is not None:
            self.served.close()
        self._guard.remove()
        if self.replacing is not None:
            self.replacing.close()

    def in_passes(self, mine: list[UnitSpan]) -> list[UnitSpan]:
        """Return units as they are computed: one by one, or merged where their gradients need not be kept apart."""
        return mine if self.gradients.separate else merge(mine)

    def learn_speeds(self, step: Step) -> None:
        """Let the next step be dealt by what this one told, and tell of members that are slow."""
        num_units = len(self.units(step.index))
        if not num_units:
            return  # there are more groups than units
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
            (self.slow if self.apart is None else self.apart.slow).append((who, slow.times))
            if self.team.rank == 0:
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
        settings, sums = self.settings, self.strategy
        self._served_sums: ServedSums | OwnSums | None = None
        if self.shards is not None and settings.servers is not None:
            sums = self._served_sums = (
                OwnSums(
                    self.group,
                    self.grouping,
                    self.strategy,
                    settings.codec_of_pushes,
                    at_once=not settings.workers_train_apart,
                    keeps=not settings.servers.elastic_averaging,
                )
                if self.grouping is not None
                else ServedSums(
                    self.shards,
                    settings.algorithm,
                    settings.bucket_nbytes,
                    None,
                    settings.codec_of_gradients,
                    settings.seed,
                )
            )
        if settings.sum == "float":
            return FloatGradients(self.parameters, sums, self.device)
        units = self.batching.units_per_step
        return ExactGradients(self.parameters, lambda terms, dtype: ExactSum(terms, units, sums, self.device, dtype))

    def _form_groups(self, joins: bool) -> Grouping | None:
        spec, group = self.settings.supernodes, self.group
        if self.settings.is_asynchronous:
            dealing = Dealing(group, self._without_servers(self.settings.dealing))

            def apart() -> list[int]:
                return [member for rank, member in enumerate(group.members) if not dealing.limit(rank, 1)]

            return Grouping(group, spec, apart, joins=joins)
        return Grouping(group, spec, joins=joins) if spec is not None and spec.average else None

    def _make_rounds(self) -> Rounds | None:
        spec, settings, group = self.settings.supernodes, self.settings, self.group
        if self.grouping is None or spec is None or settings.is_asynchronous:
            return None
        return Rounds(
            group,
            self.grouping,
            self.parameters,
            self.optimizer,
            self.buffers,
            AllReduce(group, settings.algorithm, settings.bucket_nbytes, None, spec.codec, settings.seed),
            self.batching,
            self.device,
            survives=self.membership.survives,
        )

    def _serve_asynchronously(self) -> AsynchronousParameters | None:
        spec, sums = self.settings.servers, self._served_sums
        if self.shards is None or spec is None or self.grouping is None or not isinstance(sums, OwnSums):
            return None
        assert isinstance(self.gradients, FloatGradients)
        return AsynchronousParameters(
            self.shards,
            spec,
            self.grouping,
            self.settings.period,
            self.parameters,
            self.optimizer,
            self.gradients,
            sums,
            self.settings.seed,
            survives=self.membership.survives,
        )

    def _train_apart(self) -> Apart | None:
        if self.grouping is not None and self.rounds is not None:
            return InRounds(self, self.grouping, self.rounds)
        if self.grouping is not None and self.asynchronous is not None:
            return WithServers(self, self.grouping, self.asynchronous)
        return None

    def _serve(self) -> ServedParameters | None:
        if self.shards is None or not isinstance(self._served_sums, ServedSums):
            return None
        return ServedParameters(self.shards, self.parameters, self.optimizer, self.gradients, self._served_sums)

    def _without_servers(self, terms: Terms) -> Terms:
        """Return the terms where servers that do nothing else get no units."""
        return replace(terms, idle=self._serving)

    def _serving(self) -> tuple[int, ...]:
        """Return ids of servers that do nothing else."""
        return () if self.shards is None else self.shards.serving

    @property
    def num_workers(self) -> int:
        """How many members compute units."""
        return len(set(self.group.members).difference(self._serving()))

    def check_gradients(self, step: Step) -> None:
        """Refuse what the float sum lets through: the exact sum has looked at every term."""
        if not math.isfinite(step.gradient_norm):
            for name, parameter in self.parameters:
                gradient = parameter.grad
                if gradient is not None and not bool(gradient.isfinite().all()):
                    value = float(gradient[~gradient.isfinite()][0])
                    raise not_finite(step.index, f"gradient {name}", value)

    def check_model(self) -> None:
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

    def check_together(self, what: str) -> None:
        """Refuse what takes all members where they are not together."""
        if self.apart is not None and self.apart.is_under_way:
            raise ModelError(
                f"{what} was called in the loop over run.steps(n), where members are not together (supernodes, or "
                "strategy.max_staleness above 0): let the loop run to its end, which run.meet() brings about, and call "
                "it then"
            )

    def warn_about_idle_workers(self) -> None:
        """Say where a step has fewer units than there are workers. Local."""
        units, workers = self.batching.units_per_step, self.num_workers
        if self.grouping is not None and self.asynchronous is not None:
            workers = max(map(len, self.grouping.teams), default=0)  # each step is computed by one group
        if units < workers and self.is_first:
            logger.warning(
                "a step has %d units and there are %d workers: %d of them idle; lower train.unit_size or raise "
                "train.batch_size",
                units,
                workers,
                workers - units,
            )
