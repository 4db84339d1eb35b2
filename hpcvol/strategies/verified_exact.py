"""The exact sum where it is looked at who added what: `elastic.verify_share`."""

import numpy as np
from numpy.typing import NDArray

from hpcvol import tracing
from hpcvol.collectives import Vector
from hpcvol.collectives.all_gather import gather_slices
from hpcvol.collectives.calling import calling
from hpcvol.collectives.exchange import exchange
from hpcvol.collectives.slices import Bounds, even_bounds
from hpcvol.comm import Group
from hpcvol.kernels import fixed_point
from hpcvol.kernels.fingerprint import fingerprint
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.reducer import Blocks

# A step's units add up to no more: `hpcvol.torch.exact`.
_LARGEST = 2**62


class VerifiedAllReduce(AllReduce):
    """All-reduce whose exact sums tell what each member added."""

    def exact(self, layout: Layout, totals: Memory, means: Memory) -> "VerifiedExact":
        """As `AllReduce.exact`."""
        del layout
        return VerifiedExact(self.group, totals.mine, means.mine)


class VerifiedExact:
    """Each rank receives its slice of every member's totals, adds them, and gives the sum to all.

    Cost: as an all-reduce in bytes, and memory for a slice of each member's totals and the sum.
    """

    def __init__(self, group: Group, totals: NDArray[np.int64], means: Vector) -> None:
        self.totals = totals
        self.means = means
        self._group = group
        self._bounds: Bounds = even_bounds(totals.size, group.size)
        self._received = np.zeros((group.size, 0), np.int64)
        self._sum = np.zeros_like(totals)

    def push(self, bucket: int) -> None:
        """Nothing: units are added when they are complete."""

    def finish(self, blocks: Blocks, weight: int) -> None:
        """Exchange slices, add them, spread the sum, and read the means."""
        group, bounds = self._group, self._bounds
        with tracing.span("all-reduce sum", nbytes=self.totals.nbytes):
            mine = slice(*bounds[group.rank])
            self._received = np.tile(self.totals[mine], (group.size, 1))
            with calling(group, "all_to_all", self.totals):
                exchange(group, lambda rank: self.totals[slice(*bounds[rank])], lambda rank: self._received[rank])
            self._received.sum(axis=0, out=self._sum[mine])
            with calling(group, "all_gather", self._sum):
                gather_slices(group, self._sum, bounds)
        fixed_point.means(self._sum, *blocks.table, float(weight), self.means)

    def drop(self) -> None:
        """Nothing was combined."""

    def received(self, key: int) -> list[int]:
        """Return the fingerprints of this rank's slice of what each member added, by rank. Local."""
        first = self._bounds[self._group.rank][0]
        return [int(fingerprint(part, np.uint64(first), np.uint64(key))) for part in self._received]

    def out_of_range(self) -> list[bool]:
        """Return by rank whether it added to this rank's slice what no sum of units can be. Local.

        Fingerprints hardly see differences of high powers of two.
        """
        return [bool(part.size and (part.min() < -_LARGEST or part.max() > _LARGEST)) for part in self._received]

    def summed(self, key: int) -> list[int]:
        """Return the fingerprints of each rank's slice of the sum, by rank, as this rank has it. Local."""
        return [
            int(fingerprint(self._sum[start:stop], np.uint64(start), np.uint64(key))) for start, stop in self._bounds
        ]
