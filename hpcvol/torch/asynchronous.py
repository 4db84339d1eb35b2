"""A run under bounded staleness: each step is computed by one worker, and applied by whoever holds the parameters.

A worker claims a step, pulls parameters, computes all of the step's units, and pushes the mean gradient; the next one
does the same meanwhile. So there are as many updates as in a synchronous run, each of a whole batch, and the learning
rate of a step is that of its number.

References:
    Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", NIPS 2013.
    Zhang et al., "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI 2016: a rate divided by staleness.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hpcvol import tracing
from hpcvol.collectives import Vector
from hpcvol.comm import Group
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.feedback import Feedback
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.reducer import FloatReducer
from hpcvol.strategies.sequencer import Version
from hpcvol.strategies.shards import Shards
from hpcvol.strategies.store import Part, Store
from hpcvol.torch.counted import CountedStep
from hpcvol.torch.float_sum import FloatGradients
from hpcvol.torch.sharded_optimizer import Flat, Held, Place, ShardedOptimizer, State
from hpcvol.torch.step import Share


@dataclass(frozen=True)
class Pushed:
    """What a worker tells of a step that it pushes.

    Attributes:
        member: its id.
        units: of the step.
        epoch: of the step.
        weight: of the step.
        num_samples: of the step.
        loss: mean.
        metrics: means.
        seconds: from the claim to the push.
        gradient_norm: before clipping.
        hyperparameters: of the optimizer, by group, as they were for this step.
        unused: parameters that no unit used.
    """

    member: int
    units: Sequence[int]
    epoch: int
    weight: int
    num_samples: int
    loss: float
    metrics: Mapping[str, float]
    seconds: float
    gradient_norm: float
    hyperparameters: Sequence[Mapping[str, Any]]
    unused: frozenset[int]


def counted(version: Version, number: int) -> CountedStep:
    """Return what a push was, as the step of this number."""
    told: Pushed = version.record
    return CountedStep(
        number,
        version.step,
        told.epoch,
        told.loss,
        told.metrics,
        told.weight,
        told.num_samples,
        told.gradient_norm,
        [Share(told.member, told.num_samples, told.seconds, told.units)],
        version.missed,
        version.behind,
    )


class OwnSums(AllReduce):
    """Sums over nobody: a worker's gradients are its own. Their memory is open to the node.

    Attributes:
        memories: of gradients, by vector.
    """

    def __init__(self, group: Group, bucket_nbytes: int) -> None:
        super().__init__(group, bucket_nbytes=bucket_nbytes)
        self.memories: list[Memory] = []

    def floats(self, layout: Layout, vector: Memory, feedback: Feedback | None = None, *_: Any) -> FloatReducer:
        """As `AllReduce`."""
        del layout, feedback
        vector.shared_over(self.group)
        if vector not in self.memories:
            self.memories.append(vector)
        return _OwnFloats(vector.mine)


class _OwnFloats:
    """Floats of this member alone."""

    def __init__(self, vector: Vector) -> None:
        self.vector = vector

    def push(self, bucket: int) -> None:
        """Nothing."""

    def finish(self, weight: int, own: int) -> None:
        """Divide."""
        del own
        self.vector /= weight

    def drop(self) -> None:
        """Nothing was combined."""


class AsynchronousParameters:
    """What a run needs of servers that wait for nobody. Made collectively.

    Args:
        shards: who holds what.
        spec: how stale parameters may be, and what becomes of stale gradients.
        parameters: names and parameters that require a gradient, in an order that is the same on every member.
        optimizer: of them.
        gradients: of this member's units.
        sums: where those lie.
    """

    def __init__(
        self,
        shards: Shards,
        spec: ParameterServer,
        parameters: Sequence[tuple[str, torch.nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        gradients: FloatGradients,
        sums: OwnSums,
    ) -> None:
        self.shards = shards
        self.optimizer = ShardedOptimizer(optimizer, parameters)
        self._spec = spec
        self._gradients = gradients
        self._sums = sums
        self._flats = [
            Flat(indices, [parameter for _, parameter in parameters], layout) for indices, layout in gradients.layouts
        ]
        for flat in self._flats:
            flat.move_in()
        vectors = [flat.memory.mine for flat in self._flats]
        layouts = [flat.layout for flat in self._flats]
        self.store = Store(shards, layouts, sums.memories, vectors, self._change, spec.max_staleness)
        self._inherited: dict[Place, State] = {}
        self._taking_over: set[int] = set()
        self.take_state()

    def begin(self, first: int, until: int, done: Collection[int]) -> None:
        """Let the workers do steps, from the parameters that the model has. Collective.

        Args:
            first: step.
            until: behind the last one.
            done: steps among these that are done.
        """
        self.optimizer.take_loaded()
        for flat in self._flats:
            flat.all_to_vector()
        self.store.begin(self.workers, first, until, done)

    def finish(self) -> list[Version]:
        """Return what counts of the steps since `begin`, in order; all members have its parameters. Collective."""
        with tracing.span("meet"):
            log = self.store.finish()
        for flat in self._flats:
            flat.to_parameters()
        return log

    def claim(self) -> int | None:
        """Return the step that this member is to do, its parameters being in the model; None at the end. Local."""
        with tracing.span("claim"):
            step = self.store.claim()
        for flat in self._flats:
            flat.to_parameters()
        return step

    def push(self, told: Pushed) -> None:
        """Push the gradients that this member has computed. Local."""
        with tracing.span("push"):
            self.store.push(told)

    def scale(self, factor: float) -> None:
        """Multiply the gradients that this member has computed. Local."""
        for memory in self._sums.memories:
            memory.mine[:] *= memory.dtype.type(factor)

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

    def rebuild(self) -> None:
        """As `hpcvol.elastic.membership.Part`: what counts is with all members, and shards with those that live."""
        self.store.settle_knowledge()
        self.shards.settle(self.optimizer.shards | self._taking_over)
        lines = self.shards.plan(set())
        states = {**self._inherited, **self.optimizer.copied(self.shards, lines)}
        self.shards.copied(lines)
        self.store.reopen()
        for flat in self._flats:
            flat.to_parameters()
        self.optimizer.hold(self._pieces(self.store.parts), states)
        self._inherited, self._taking_over = {}, set()

    def close(self) -> None:
        """End the thread that serves, and let the parameters go. Local."""
        self.store.close()
        for flat in self._flats:
            flat.move_out()

    @property
    def workers(self) -> list[int]:
        """The ranks that compute."""
        members = self.shards.group.members
        serving = self.shards.servers if self.shards.dedicated else ()
        return [rank for rank, member in enumerate(members) if member not in serving]

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
        del parts
        told: Pushed = version.record
        hyperparameters = told.hyperparameters
        if self._spec.rate_by_staleness:
            hyperparameters = [{**group, "lr": group["lr"] / (1 + version.missed)} for group in hyperparameters]

        def gradient_of(piece: Held) -> torch.Tensor | None:
            if piece.parameter in told.unused:
                return None
            number, begin = self._place_of[piece.place]
            return torch.from_numpy(pushed[number])[begin : begin + piece.stop - piece.start]

        self.optimizer.apply(gradient_of, hyperparameters)
