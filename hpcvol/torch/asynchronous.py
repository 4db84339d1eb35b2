"""A run under bounded staleness: each step is computed by one worker, and applied by whoever holds the parameters.

A worker claims a step, pulls parameters, computes all of the step's units, and pushes the mean gradient; the next one
does the same meanwhile. So there are as many updates as in a synchronous run, each of a whole batch, and the learning
rate of a step is that of its number.

A worker is a member, or a group of them (a supernode): its first member claims, pulls for all and pushes what they have
combined. With a period above 1 a worker claims so many steps, applies the optimizer by itself, and pushes what became
of the parameters.

References:
    Dean et al., "Large Scale Distributed Deep Networks", NIPS 2012, section 4.1 (Downpour SGD: fetch and push every few
    steps).
    Liu et al., "Asynchronous Local-SGD Training for Language Modeling", 2024, algorithm 1.
    Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", NIPS 2013.
    Zhang et al., "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI 2016: a rate divided by staleness.
    Zhang, Choromanska, LeCun: "Deep Learning with Elastic Averaging SGD", NIPS 2015, algorithm 1.
    Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay Compensation", ICML 2017, algorithm 2.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hpcvol import tracing
from hpcvol.codecs import AnyCodec, Cast, LowRank, parse
from hpcvol.collectives import Vector, broadcast
from hpcvol.comm import Group
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.feedback import Feedback
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.reducer import FloatReducer
from hpcvol.strategies.sequencer import Version
from hpcvol.strategies.shards import Shards
from hpcvol.strategies.store import Store
from hpcvol.strategies.supernodes import Grouping
from hpcvol.strategies.wire import Part
from hpcvol.torch.counted import CountedStep
from hpcvol.torch.float_sum import FloatGradients
from hpcvol.torch.local_optimizer import LocalOptimizer, copied_state, restore_state
from hpcvol.torch.sharded_optimizer import Flat, Held, Place, ShardedOptimizer, State


@dataclass(frozen=True)
class Pushed:
    """What a worker tells of what it pushes.

    Attributes:
        steps: that it has computed since it pushed last; without a number.
        scale: by which gradients are clipped.
        hyperparameters: of the optimizer, by group, as they were for this step.
        unused: parameters that no unit used.
    """

    steps: Sequence[CountedStep]
    scale: float
    hyperparameters: Sequence[Mapping[str, Any]]
    unused: frozenset[int]


def counted(versions: Sequence[Version], first: int) -> list[CountedStep]:
    """Return the steps that took effect with pushes, in their order, from number `first` on."""
    found: list[CountedStep] = []
    for version in versions:
        told: Pushed = version.record
        for step in told.steps:
            found.append(replace(step, number=first + len(found), missed=version.missed, behind=version.behind))
    return found


class OwnSums(AllReduce):
    """Sums over a worker's members, whose first one pushes them: encoded as they will be pushed, and open to the node.

    Args:
        group: all members.
        grouping: which of them are a worker.
        team: sums over those of this worker.
        codec: of what is pushed.
        at_once: whether means of gradients are what is pushed, and encoded as soon as they are there. Otherwise it is
            what the worker has made of parameters.
        keeps: whether what is not sent is added the next time. Otherwise it is still there between a worker and
            servers, and is kept nowhere else.

    Attributes:
        memories: of gradients, by vector.
        codec: of what is pushed; None: as it is.
        store: into which is pushed; None before there is one.
        weight: of what this member has summed; set with the store.
    """

    def __init__(
        self, group: Group, grouping: Grouping, team: AllReduce, codec: AnyCodec, *, at_once: bool, keeps: bool
    ) -> None:
        super().__init__(group, bucket_nbytes=team.bucket_nbytes, codec=codec)
        self._grouping = grouping
        self._team = team
        self._feedbacks: dict[int, Feedback | None] = {}
        self.at_once = at_once
        self._keeps = keeps
        self.memories: list[Memory] = []
        parsed = parse(codec)
        assert not isinstance(parsed, LowRank)
        self.codec = parsed
        self.store: Store | None = None
        self.weight: Callable[[], int] = lambda: 0

    def feedback(self, numel: int, dtype: "np.dtype[Any]") -> Feedback | None:
        """As `AllReduce`."""
        found = super().feedback(numel, dtype)
        return found if found is None or self._keeps else Feedback(numel, dtype, rows=0)

    def floats(self, layout: Layout, vector: Memory, feedback: Feedback | None = None, *_: Any) -> FloatReducer:
        """As `AllReduce`."""
        if vector.shared_over(self.group) is None:
            assert vector.mine is not None  # shared with nobody from now on: not with this worker's members either
        if vector not in self.memories:
            self.memories.append(vector)
        if feedback is not None:
            leaders = self._grouping.leaders
            whole = [slice(0, vector.numel)] if self.group.rank in leaders else []
            feedback.place(self.group, whole, 0, owns=self.group.rank in leaders[:1])
        number = self.memories.index(vector)
        self._feedbacks[number] = feedback
        alone = self._team.group.size == 1
        return _OwnFloats(self, number, layout, None if alone else self._team.floats(layout, vector))

    def encode_vector(self, number: int, *, counts: bool = True) -> None:
        """Encode what lies in a vector, which becomes what it stands for, if this member pushes it. Local.

        Args:
            number: which.
            counts: whether this is to change anything; else what was not sent stays as it is.
        """
        feedback, memory = self._feedbacks[number], self.memories[number]
        if feedback is None or self.codec is None or not self._grouping.is_leader:
            return
        if counts and self._keeps:
            residual, _ = feedback.begin()
        else:
            rows = self.codec.residual_rows
            residual = np.zeros(rows * memory.numel, memory.dtype) if rows else None
        if self.store is not None:
            self.store.encode(number, residual)


class _OwnFloats:
    """Floats of a worker: of one member, or the sums over several."""

    def __init__(self, sums: OwnSums, number: int, layout: Layout, team: FloatReducer | None) -> None:
        self._sums = sums
        self._number = number
        self._layout = layout
        self._team = team
        self.vector = sums.memories[number].mine if team is None else team.vector

    def push(self, bucket: int) -> None:
        """Let a bucket be combined; of one member it is final, and pushed while others are computed."""
        if self._team is not None:
            self._team.push(bucket)
            return
        if self._layout.buckets:  # tensors without elements have none, and are pushed all the same
            start, stop = self._layout.buckets[bucket]
            self.vector[start:stop] /= max(self._sums.weight(), 1)
            if self._sums.at_once and self._sums.store is not None:
                self._sums.store.push_early(self._number, bucket)

    def finish(self, weight: int, own: int) -> None:
        """Have the means, and encode them."""
        if self._team is not None:
            self._team.finish(max(weight, 1), own)
        if self._sums.at_once:
            self._sums.encode_vector(self._number, counts=weight > 0)

    def drop(self) -> None:
        """Wait for what is on its way."""
        if self._team is not None:
            self._team.drop()


class AsynchronousParameters:
    """What a run needs of servers that wait for nobody. Made collectively.

    Args:
        shards: who holds what.
        spec: how stale parameters may be, and what becomes of stale gradients.
        grouping: which members are a worker.
        period: steps from one push of a worker to the next; above 1 it applies the optimizer by itself.
        parameters: names and parameters that require a gradient, in an order that is the same on every member.
        optimizer: of them.
        gradients: of this member's units.
        sums: where those lie.
        seed: of what a codec draws.
        survives: whether members outlive others, so that several steps of a worker may come to nothing.

    Attributes:
        steps: that this member's worker has computed since it pushed last.
    """

    def __init__(
        self,
        shards: Shards,
        spec: ParameterServer,
        grouping: Grouping,
        period: int,
        parameters: Sequence[tuple[str, torch.nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        gradients: FloatGradients,
        sums: OwnSums,
        seed: int,
        *,
        survives: bool,
    ) -> None:
        self.shards = shards
        self._spec = spec
        self._grouping = grouping
        self._period = period
        self.steps: list[CountedStep] = []
        self._undoes = survives and period > 1
        self._before: dict[torch.Tensor, dict[str, Any]] | None = None
        self._claimed = -1, -1  # by which rank, and the first step
        self._user_optimizer = optimizer
        self._gradients = gradients
        self._sums = sums
        everything = [parameter for _, parameter in parameters]
        self.optimizer: ShardedOptimizer | LocalOptimizer = (
            LocalOptimizer(optimizer, everything, shards.group, sums.sum)
            if self.trains_apart
            else ShardedOptimizer(optimizer, parameters)
        )
        self._flats = [Flat(indices, everything, layout) for indices, layout in gradients.layouts]
        for flat in self._flats:
            flat.move_in()
        vectors = [flat.memory.mine for flat in self._flats]
        # What servers have, as far as this worker has pulled it, where its own parameters are others.
        self._centres = [vector.copy() for vector in vectors] if self.trains_apart else []
        self._pulled = self._centres or vectors
        layouts = [flat.layout for flat in self._flats]
        # What gradients were computed from, as long as they may be read: what is pulled next comes to lie elsewhere.
        self._origins = [Memory(one.numel, one.dtype) for one in sums.memories] if spec.compensation else []
        pull = parse(spec.pull if spec.pull != "exact" else "none")
        assert pull is None or isinstance(pull, Cast)
        self.store = Store(
            shards,
            layouts,
            sums.memories,
            self._pulled,
            self._change,
            spec.max_staleness,
            codec=sums.codec,
            seed=seed,
            along=self._origins,
            pull=pull,
        )
        self.store.counts = gradients.commit
        sums.store, sums.weight = self.store, lambda: gradients.weight
        self._inherited: dict[Place, State] = {}
        self._taking_over: set[int] = set()
        self.take_state()

    @property
    def trains_apart(self) -> bool:
        """Whether workers apply optimizers of their own, and push what came of it."""
        return not self._sums.at_once

    @property
    def _keeps_own(self) -> bool:
        """Whether what a worker pulls does not become its parameters."""
        return self._spec.elastic_averaging > 0

    def begin(self, first: int, until: int, done: Collection[int]) -> None:
        """Let the workers do steps, from the parameters that the model has. Collective.

        Args:
            first: step.
            until: behind the last one.
            done: steps among these that are done.
        """
        self.optimizer.take_loaded()
        for feedback in self._gradients.feedbacks.values():
            feedback.take_up()
        self._take_model()
        self.store.begin(self._grouping.leaders, first, until, done, self._period)

    def finish(self) -> list[Version]:
        """Return what counts of the steps since `begin`, in order; all members have its parameters. Collective."""
        with tracing.span("meet"):
            log = self.store.finish()
        self._before = None
        self._take_stored()
        return log

    def claim(self, known: Callable[[int], None]) -> int | None:
        """Return the first step that this worker is to do next, with parameters in the model; None at the end.

        Collective over the members of the worker.

        Args:
            known: called with the step before parameters are pulled for it.

        Raises:
            LostMemberError: a member of the worker died, or servers that others cannot replace.
        """
        self.steps = []
        others = [rank for rank in self._grouping.ranks if rank != self.shards.group.rank]
        with tracing.span("claim"):
            if self._grouping.team.rank == 0:
                step = self.store.claim(known, others)
            else:
                step = self.store.follow(self._grouping.ranks)
                if step is not None:
                    known(step)
            if others and step is not None:
                for vector in self._pulled:
                    broadcast(self._grouping.team, vector, 0)
        if not self._keeps_own:
            self._take_stored()
        for origin, flat in zip(self._origins, self._flats, strict=False):
            origin.mine[:] = flat.memory.mine
        if self._undoes and step is not None:  # what was done before counts by now
            self._claimed = self._grouping.ranks[0], step
            self._before = copied_state(self._user_optimizer)
        return step

    def push(self, told: Pushed) -> None:
        """Push the means of gradients, or what this worker has made of parameters. Collective over its members."""
        if self.trains_apart:
            self._take_changes()
        with tracing.span("push"):
            if self._grouping.is_leader:
                self.store.push(told)

    def give_up(self) -> None:
        """Have this worker do nothing more, as one of its members has died, until all meet. Local."""
        if self._grouping.team.size > 1:
            self._grouping.team.give_up()
        self.store.give_up()

    def _take_changes(self) -> None:
        """Have what the worker's optimizer has changed where it is pushed from, where gradients were.

        With elastic averaging it is a part of what is between a worker and servers, by which both are drawn together.
        """
        for number, (flat, centre) in enumerate(zip(self._flats, self._centres, strict=True)):
            flat.all_to_vector()
            own, change = flat.memory.mine, self._sums.memories[number].mine
            np.subtract(own, centre, out=change)
            if self._keeps_own:
                change *= change.dtype.type(self._spec.elastic_averaging)
            self._sums.encode_vector(number)
            if self._keeps_own:
                if self._sums.codec is not None and self._grouping.team.size > 1:
                    broadcast(self._grouping.team, change, 0)
                own -= change
                flat.to_parameters()

    def take_state(self) -> None:
        """Take over the optimizer's state, as it is loaded or new: of what this member holds. Local."""
        self.optimizer.hold(self._pieces(self.store.parts))

    def inherit(self, leaving: set[int]) -> None:
        """As `hpcvol.elastic.membership.Part`: the shards of which they have the only copy, or one of several."""
        lines = self.shards.plan(leaving)
        self._inherited = self.optimizer.copied(self.shards, lines)
        me = self.shards.group.members[self.shards.group.rank]
        self._taking_over = {shard for shard, _, new in lines if new == me}
        self.shards.copied(lines)

    def abandon(self) -> None:
        """As `hpcvol.elastic.membership.Part`."""
        self.store.abandon()

    def settle(self) -> None:
        """Have with all members what counts of what was pushed. Collective; `rebuild` comes next."""
        self.store.settle_knowledge()
        counts = any((one.rank, one.step) == self._claimed for one in self.store.salvaged.values())
        if self._before is not None and not counts:
            restore_state(self._user_optimizer, self._before)
        self._before = None

    def rebuild(self) -> None:
        """As `hpcvol.elastic.membership.Part`: shards are with those that live."""
        self.shards.settle(self.optimizer.shards | self._taking_over, [flat.layout for flat in self._flats])
        lines = self.shards.plan(set())
        states = {**self._inherited, **self.optimizer.copied(self.shards, lines)}
        self.shards.copied(lines)
        if not self.store.has_begun:  # what the model has counts, unless others know better
            self._take_model()
        self.store.reopen()
        self._take_stored()
        self.optimizer.hold(self._pieces(self.store.parts), states)
        self._inherited, self._taking_over = {}, set()
        if self.trains_apart and self.shards.group.any(self._grouping.team.size > 1):
            self.optimizer.gather(
                self.shards, here=True
            )  # members of a worker have the same, and its members are others

    def close(self) -> None:
        """End the thread that serves, and let the parameters go. Local."""
        self.store.close()
        for flat in self._flats:
            flat.move_out()

    def _take_model(self) -> None:
        """Have what the model has where it is stored from, or pulled to. Local."""
        for flat in self._flats:
            flat.all_to_vector()
        for centre, flat in zip(self._centres, self._flats, strict=False):
            centre[:] = flat.memory.mine

    def _take_stored(self) -> None:
        """Have in the model what was pulled. Local."""
        for centre, flat in zip(self._centres, self._flats, strict=False):
            flat.memory.mine[:] = centre
        for flat in self._flats:
            flat.to_parameters()

    def _pieces(self, parts: Sequence[Part]) -> list[Held]:
        self._place_of: dict[tuple[int, int, int], tuple[int, int]] = {}
        found = []
        for number, part in enumerate(parts):
            flat = self._flats[part.vector]
            values = torch.from_numpy(part.values)
            for piece in flat.layout.pieces(part.place):
                index = flat.indices[piece.tensor]
                begin = piece.place - part.place.start
                own = values[begin : begin + piece.stop - piece.start]
                held = Held(index, piece.start, piece.stop, part.shard, torch.nn.Parameter(own))
                self._place_of[held.place] = number, begin
                found.append(held)
        return found

    def _change(self, parts: Sequence[Part], pushed: Sequence[Vector], version: Version) -> None:
        """Apply the optimizer to what this member holds; in the thread that serves."""
        told: Pushed = version.record
        hyperparameters, scale = told.hyperparameters, told.scale
        if self._spec.rate_by_staleness and self.trains_apart:
            scale /= 1 + version.missed
        elif self._spec.rate_by_staleness:
            hyperparameters = [{**group, "lr": group["lr"] / (1 + version.missed)} for group in hyperparameters]

        def gradient_of(piece: Held) -> torch.Tensor | None:
            if piece.parameter in told.unused:
                return None
            number, begin = self._place_of[piece.place]
            here = slice(begin, begin + piece.stop - piece.start)
            gradient = torch.from_numpy(pushed[number])[here]
            if scale != 1:
                gradient = gradient * scale
            if self._spec.compensation:
                origin = torch.from_numpy(pushed[len(parts) + number])[here]
                moved = piece.values.data - origin
                gradient = gradient + self._spec.compensation * gradient * gradient * moved
            return gradient

        self.optimizer.apply(gradient_of, hyperparameters)
