"""Summing gradients in integers: accumulators stay as they are, and the means are written beside them."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from hpcvol import tracing
from hpcvol.collectives import Algorithm, Vector, allreduce
from hpcvol.collectives.calling import calling
from hpcvol.collectives.direct import SharedVector
from hpcvol.collectives.exact_mean import add_slice, beginning, spread_means
from hpcvol.comm import Group
from hpcvol.kernels import fixed_point
from hpcvol.strategies.between import Between
from hpcvol.strategies.reducer import Blocks, Buckets


class PlainExact:
    """By one all-reduce a bucket, of a copy, at the end: where nodes cannot share memory."""

    def __init__(
        self, group: Group, algorithm: Algorithm, totals: NDArray[np.int64], means: Vector, buckets: Buckets
    ) -> None:
        self.totals = totals
        self.means = means
        self._group = group
        self._algorithm = algorithm
        self._buckets = buckets

    def push(self, bucket: int) -> None:
        """Nothing: all is combined at the end."""

    def finish(self, blocks: Blocks, weight: int) -> None:
        """Sum bucket by bucket, and read the means."""
        for bucket, (start, stop) in enumerate(self._buckets):
            total = self.totals[start:stop].copy()
            with tracing.span("all-reduce sum", bucket=bucket):
                allreduce(self._group, total, "sum", self._algorithm)
            first, last = np.searchsorted(blocks.starts, [start, stop])
            part = slice(int(first), int(last))
            starts = blocks.starts[part] - start
            means = self.means[start:stop]
            fixed_point.means(total, starts, blocks.numels[part], blocks.scales[part], float(weight), means)

    def drop(self) -> None:
        """Nothing was combined."""


class NodeExact:
    """Of the ranks of one node: each adds its slice of all totals, and writes its means to all, where they lie."""

    def __init__(self, totals: SharedVector, means: SharedVector) -> None:
        self.totals: NDArray[np.int64] = totals.mine
        self.means = means.mine
        self._totals = totals
        self._means = means

    def push(self, bucket: int) -> None:
        """Nothing: memory is as fast at the end."""

    def finish(self, blocks: Blocks, weight: int) -> None:
        """Add and spread this rank's slice."""
        part = self._means.slice_of(self._means.node.rank, 0, self.means.size)
        with tracing.span("all-reduce sum", nbytes=self.totals.nbytes):
            spread_means(self._means, [(self._totals.addresses, part)], blocks.table, weight)

    def drop(self) -> None:
        """Nothing was combined."""


class ExactBetween:
    """Of several nodes: slices are added within each node and between them, and kept until their weight is known."""

    def __init__(self, totals: SharedVector, means: SharedVector, between: Between, buckets: Buckets) -> None:
        self.totals: NDArray[np.int64] = totals.mine
        self.means = means.mine
        self._totals = totals
        self._means = means
        self._between = between
        carriers = between.group.carriers.number
        self._slices = [means.slice_of(means.node.rank, start, stop, carriers) for start, stop in buckets]
        self._buckets = buckets
        self._sums = [np.zeros(part.stop - part.start, np.int64) for part in self._slices]

    def push(self, bucket: int) -> None:
        """Let the bucket be combined."""
        self._between.give(bucket, partial(self._combine, bucket))

    def finish(self, blocks: Blocks, weight: int) -> None:
        """Wait for all buckets, and spread the means."""
        self._between.wait()
        sums = [(beginning(sums, part.start), part) for sums, part in zip(self._sums, self._slices, strict=True)]
        spread_means(self._means, sums, blocks.table, weight)

    def drop(self) -> None:
        """Wait for all buckets."""
        self._between.wait()

    def _combine(self, bucket: int) -> None:
        start, stop = self._buckets[bucket]
        with calling(self._between.group, "allreduce", self.totals, stop - start, "sum"):
            add_slice(self._totals, self._slices[bucket], self._sums[bucket], stop - start)
            self._between.sum(self._sums[bucket])
