"""Handing out the parameters that servers have changed: to every member, by memory within a node, else by messages."""

import numpy as np

from hpcvol import tracing
from hpcvol.collectives import Algorithm, Vector, broadcast
from hpcvol.collectives.calling import calling
from hpcvol.collectives.direct import SharedVector
from hpcvol.comm.calls import Call
from hpcvol.comm.messages import Messages
from hpcvol.strategies.held_sums import nodes_of
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.shards import Shards


class Pull:
    """The way of parameters from the first holder of each shard to all members. Made collectively.

    Args:
        shards: who holds what.
        layout: of the parameters.
        memory: of this member's parameters.
        algorithm: as `comm.algorithm`: whether memory may be used.
    """

    def __init__(self, shards: Shards, layout: Layout, memory: Memory, algorithm: Algorithm) -> None:
        group = shards.group
        self._group = group
        self._algorithm: Algorithm = algorithm
        self._memory = memory
        self._portions = layout.portions(shards.number)
        self._sources = [ranks[0] for ranks in shards.ranks]
        direct = algorithm in ("auto", "hierarchical") and memory.numel > 0
        self._shared: SharedVector | None = memory.shared_over(group) if direct else None
        self._nodes = nodes_of(group)
        self._here = next(ranks for ranks in self._nodes if group.rank in ranks)

    def __call__(self) -> None:
        """Have every member's vector hold the parameters of all shards. Collective; may be repeated."""
        with tracing.span("pull", nbytes=self._memory.mine.nbytes):
            if self._shared is None:
                self._broadcast()
            else:
                self._hand_out(self._shared)

    def _broadcast(self) -> None:
        mine = self._memory.mine
        for portion, source in zip(self._portions, self._sources, strict=True):
            flat = np.concatenate([mine[part] for part in portion]) if portion else mine[:0]
            broadcast(self._group, flat, source)
            if source != self._group.rank:
                for part in portion:
                    mine[part], flat = flat[: part.stop - part.start], flat[part.stop - part.start :]

    def _hand_out(self, shared: SharedVector) -> None:
        group, mine = self._group, shared.mine
        with calling(group, "all_gather", mine, mine.size):
            # Copies of a shard are computed where they lie, and must not be written to meanwhile.
            shared.arrive(Call.of("all_gather", mine.dtype, mine.size))
            self._spread(shared, [shard for shard, source in enumerate(self._sources) if source == group.rank])
            if len(self._nodes) > 1:
                self._exchange(shared)
            shared.depart()

    def _exchange(self, shared: SharedVector) -> None:
        """Send each shard to one rank of every other node, which spreads it there."""
        me, mine = self._group.rank, shared.mine
        with Messages(self._group) as messages:
            arriving = {}
            for shard, source in enumerate(self._sources):
                if source not in self._here and self._here[shard % len(self._here)] == me:
                    arriving[shard] = [messages.receive(part, source) for part in self._parts(mine, shard)]
            for shard, source in enumerate(self._sources):
                if source == me:
                    for ranks in self._nodes:
                        if me not in ranks:
                            for part in self._parts(mine, shard):
                                messages.send(part, ranks[shard % len(ranks)])
            for shard, expected in arriving.items():
                for message in expected:
                    messages.wait(message)
                self._spread(shared, [shard])

    def _parts(self, vector: Vector, shard: int) -> list[Vector]:
        return [vector[part] for part in self._portions[shard] if part.start < part.stop]

    def _spread(self, shared: SharedVector, shards: list[int]) -> None:
        for vector in shared.of:
            if vector is not shared.mine:
                for shard in shards:
                    for part in self._portions[shard]:
                        vector[part] = shared.mine[part]
