"""Summing gradients in floating point: within a node where they lie, between nodes while others are computed."""

from functools import partial

from hpcvol import tracing
from hpcvol.collectives import Algorithm, Vector, allreduce
from hpcvol.collectives.calling import calling
from hpcvol.collectives.direct import SharedVector
from hpcvol.comm import Group
from hpcvol.strategies.between import Between
from hpcvol.strategies.reducer import Buckets


class PlainFloats:
    """By one all-reduce a bucket, at the end: where nodes cannot share memory, or an algorithm was asked for."""

    def __init__(self, group: Group, algorithm: Algorithm, vector: Vector, buckets: Buckets) -> None:
        self.vector = vector
        self._group = group
        self._algorithm = algorithm
        self._buckets = buckets

    def push(self, bucket: int) -> None:
        """Nothing: all is combined at the end."""

    def finish(self, weight: int, own: int) -> None:
        """Sum bucket by bucket, and divide."""
        del own
        for bucket, (start, stop) in enumerate(self._buckets):
            with tracing.span("all-reduce sum", bucket=bucket):
                allreduce(self._group, self.vector[start:stop], "sum", self._algorithm)
        self.vector /= weight

    def drop(self) -> None:
        """Nothing was combined."""


class NodeFloats:
    """Of the ranks of one node: each takes the mean of its slice of all vectors, where they lie."""

    def __init__(self, shared: SharedVector) -> None:
        self.vector = shared.mine
        self._shared = shared

    def push(self, bucket: int) -> None:
        """Nothing: memory is as fast at the end."""

    def finish(self, weight: int, own: int) -> None:
        """Sum and divide in one pass, this rank's slice of all vectors."""
        del own
        with tracing.span("all-reduce sum", nbytes=self.vector.nbytes):
            self._shared.allreduce("mean", divisor=weight)

    def drop(self) -> None:
        """Nothing was combined."""


class FloatsBetween:
    """Of several nodes: a bucket is combined within each node, slice by slice between them, and spread in each.

    Each rank of a node carries its own slice between nodes.
    """

    def __init__(self, shared: SharedVector, between: Between, buckets: Buckets) -> None:
        self.vector = shared.mine
        self._shared = shared
        self._between = between
        self._buckets = buckets

    def push(self, bucket: int) -> None:
        """Let the bucket be combined."""
        self._between.give(bucket, partial(self._combine, *self._buckets[bucket]))

    def finish(self, weight: int, own: int) -> None:
        """Wait for all buckets, and divide."""
        del own
        self._between.wait()
        self.vector /= weight

    def drop(self) -> None:
        """Wait for all buckets."""
        self._between.wait()

    def _combine(self, start: int, stop: int) -> None:
        group, shared = self._between.group, self._shared
        with calling(group, "allreduce", shared.mine, stop - start, "sum"):
            self._between.sum(shared.reduce_slice("sum", start, stop, group.carriers.number))
            shared.spread_slice()
