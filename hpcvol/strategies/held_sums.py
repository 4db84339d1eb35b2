"""Sums of vectors that end with those who hold a portion: within a node where they lie, between nodes by messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcvol import tracing
from hpcvol.collectives import Vector
from hpcvol.collectives.calling import calling
from hpcvol.collectives.direct import SharedVector
from hpcvol.collectives.exact_mean import spread_means
from hpcvol.collectives.narrow import NarrowMessages
from hpcvol.comm import Group
from hpcvol.comm.calls import Call
from hpcvol.comm.messages import Messages
from hpcvol.strategies.between import Between
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.reducer import Blocks

Holders = Sequence[Sequence[int]]
"""Ranks of the members that hold each portion."""


def nodes_of(group: Group) -> list[list[int]]:
    """Return the ranks of each node, in the order of their first ranks. Collective."""
    nodes: dict[Any, list[int]] = {}
    for rank, first in enumerate(group.gather_objects(group.node.members[0])):
        nodes.setdefault(first, []).append(rank)
    return list(nodes.values())


@dataclass(frozen=True)
class _Route:
    """One rank's part in the ways that portions go between nodes.

    Attributes:
        held: portions that this rank holds, ascending.
        added: those whose sum over its node it makes, to hold or to send, ascending.
        sent: (portion, rank of the holder) on other nodes, by portion.
        received: by node, in order, for each portion that this rank holds the rank that sends it; None for its own.
    """

    held: tuple[int, ...]
    added: tuple[int, ...]
    sent: tuple[tuple[int, int], ...]
    received: tuple[dict[int, int] | None, ...]

    @classmethod
    def of(cls, group: Group, nodes: list[list[int]], holders: Holders) -> "_Route":
        me = group.rank
        held = tuple(portion for portion, ranks in enumerate(holders) if me in ranks)
        here = next(ranks for ranks in nodes if me in ranks)
        carried = [portion for portion in range(len(holders)) if here[portion % len(here)] == me]
        sent = tuple((portion, rank) for portion in carried for rank in holders[portion] if rank not in here)
        added = tuple(sorted({*held, *(portion for portion, _ in sent)}))
        received = tuple(
            None if ranks is here else {portion: ranks[portion % len(ranks)] for portion in held} for ranks in nodes
        )
        return cls(held, added, sent, received)


class HeldSums:
    """Each member has a vector; the sums of a portion come to be with its holders. Made collectively.

    The rank of a node whose turn it is adds up the node's vectors and sends one to each holder elsewhere, so that a
    portion crosses from a node to a holder once, however many ranks the node has.

    Args:
        group: the ranks; where there are several nodes, those of the thread that communicates.
        vectors: of int64 or floats; only read.
        between: the steps between nodes; None on one.
        layout: of the vectors.
        holders: of each portion of `layout.portions`.

    Attributes:
        vectors: the same.
        parts: of the vector, those that this member holds.
    """

    def __init__(
        self, group: Group, vectors: SharedVector, between: Between | None, layout: Layout, holders: Holders
    ) -> None:
        self.vectors = vectors
        self._group = group
        self._between = between
        self._buckets = layout.buckets
        self._portions = layout.portions(len(holders))
        self._route = _Route.of(group, nodes_of(group), holders)
        self.parts = [part for portion in self._route.held for part in self._portions[portion]]
        self._address = np.array([vectors.mine.ctypes.data], np.int64)
        self._exchanging = NarrowMessages if vectors.mine.dtype == np.int64 else Messages
        # In a run of one node nothing is kept: integers are read where they lie, and means of floats come to lie there.
        # Only where others read the same elements, because they hold them too, they are kept apart for a while.
        self._sums: dict[tuple[int, int], Vector] = {}
        dtype = vectors.mine.dtype
        several = any(len(ranks) > 1 for ranks in holders)
        if between is not None or (several and dtype != np.int64):
            self._sums = {
                (portion, bucket): np.zeros(part.stop - part.start, dtype)
                for portion in self._route.added
                for bucket, part in enumerate(self._portions[portion])
            }

    def push(self, bucket: int) -> None:
        """Let a bucket be combined. Local."""
        if self._between is not None:
            self._between.give(bucket, partial(self._combine, bucket))

    def finish(self) -> list[tuple[NDArray[np.int64], slice]]:
        """Wait for all sums. Collective.

        Returns:
            For each of `parts` the addresses of vectors whose sum is wanted, and the part.
        """
        if self._between is None:
            return [(self.vectors.addresses, part) for part in self.parts]
        self._between.wait()
        held = [(portion, bucket) for portion in self._route.held for bucket in range(len(self._buckets))]
        return [(beginning(self._sums[key], part.start), part) for key, part in zip(held, self.parts, strict=True)]

    def means(self, weight: int) -> None:
        """Have the sums of `parts`, divided by `weight`, in this member's vector, of floats. Collective."""
        if self._between is None:
            self._node_means(weight)
            return
        self.finish()
        for key, part in self._kept():
            np.divide(self._sums[key], weight, out=self.vectors.mine[part])

    def drop(self) -> None:
        """Wait for what is on its way."""
        if self._between is not None:
            self._between.wait()

    def _kept(self) -> list[tuple[tuple[int, int], slice]]:
        """Return where the sum of each of `parts` is kept."""
        return [
            ((portion, bucket), part)
            for portion in self._route.held
            for bucket, part in enumerate(self._portions[portion])
        ]

    def _node_means(self, weight: int) -> None:
        """Add up and divide in one pass, where all vectors can be read."""
        vectors = self.vectors
        call = Call.of("reduce_scatter", vectors.mine.dtype, vectors.mine.size, "sum")
        with tracing.span("all-reduce sum", nbytes=vectors.mine.nbytes):
            vectors.arrive(call)
            for key, part in self._kept():
                target = beginning(self._sums[key], part.start) if self._sums else self._address
                combine_node(vectors, part, target, weight)
            vectors.depart()
            if self._sums:
                for key, part in self._kept():
                    vectors.mine[part] = self._sums[key]

    def _combine(self, bucket: int) -> None:
        start, stop = self._buckets[bucket]
        with calling(self._group, "reduce_scatter", self.vectors.mine, stop - start, "sum"):
            self._add_up_node(bucket)
            self._exchange(bucket)

    def _add_up_node(self, bucket: int) -> None:
        start, stop = self._buckets[bucket]
        vectors = self.vectors
        vectors.arrive(Call.of("reduce_scatter", vectors.mine.dtype, stop - start, "sum"))
        for portion in self._route.added:
            part = self._portions[portion][bucket]
            combine_node(vectors, part, beginning(self._sums[portion, bucket], part.start), None)
        vectors.depart()

    def _exchange(self, bucket: int) -> None:
        """Send the node's sums to holders elsewhere, and add those of other nodes in the order of nodes."""
        route = self._route
        with self._exchanging(self._group) as messages:
            arriving = {
                (node, portion): (messages.receive(vector, source), vector)
                for node, sources in enumerate(route.received)
                for portion, source in (sources or {}).items()
                if (vector := np.empty_like(self._sums[portion, bucket])).size
            }
            for portion, rank in route.sent:
                if (mine := self._sums[portion, bucket]).size:
                    messages.send(mine, rank)
            for portion in route.held:
                total = self._sums[portion, bucket]
                terms = []
                for node, sources in enumerate(route.received):
                    if sources is None:
                        terms.append(total.copy())
                    elif total.size:
                        message, vector = arriving[node, portion]
                        messages.wait(message)
                        terms.append(vector)
                # What was sent from here lies in memory of its own once it is changed.
                added = terms[0]
                for term in terms[1:]:
                    added = np.add(added, term, out=added)
                self._sums[portion, bucket] = added


def combine_node(vectors: SharedVector, part: slice, target: NDArray[np.int64], weight: int | None) -> None:
    """Add up a part of a node's vectors, and divide, to where `target` says that such a vector begins. Local."""
    from hpcvol.kernels.combine import KINDS, MEAN, SUM, combine

    if part.start < part.stop:
        sources, dtype = vectors.addresses, vectors.mine.dtype
        low, high = part.start * dtype.itemsize, part.stop * dtype.itemsize
        addresses = sources.ctypes.data, sources.size, target.ctypes.data
        op, divisor = (SUM, 1) if weight is None else (MEAN, weight)
        combine(KINDS[dtype.name], op, *addresses, 1, divisor, low, high)


def beginning(vector: Vector, first: int) -> NDArray[np.int64]:
    """Return where a vector would begin whose element `first` is the first one of `vector`."""
    return np.array([vector.ctypes.data - first * vector.itemsize], np.int64)


class HeldExact:
    """Integers, read as weighted means by those who hold a portion."""

    def __init__(self, sums: HeldSums, means: SharedVector) -> None:
        self.totals: NDArray[np.int64] = sums.vectors.mine
        self.means = means.mine
        self._sums = sums
        self._means = means

    def push(self, bucket: int) -> None:
        """Let the bucket be combined."""
        self._sums.push(bucket)

    def finish(self, blocks: Blocks, weight: int) -> None:
        """Wait for all buckets, and write the means of what this member holds."""
        spread_means(self._means, self._sums.finish(), blocks.table, weight, alone=True)

    def drop(self) -> None:
        """Wait for all buckets."""
        self._sums.drop()


class HeldFloats:
    """Floats, divided by those who hold a portion."""

    def __init__(self, sums: HeldSums) -> None:
        self.vector = sums.vectors.mine
        self._sums = sums

    def push(self, bucket: int) -> None:
        """Let the bucket be combined."""
        self._sums.push(bucket)

    def finish(self, weight: int, own: int) -> None:
        """Wait for all buckets, and divide what this member holds."""
        del own
        self._sums.means(weight)

    def drop(self) -> None:
        """Wait for all buckets."""
        self._sums.drop()
