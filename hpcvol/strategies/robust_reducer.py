"""Gradients of members combined so that a few wrong ones cannot decide: `strategy.combine` under the float sum."""

import numpy as np
from numpy.typing import NDArray

from hpcvol import tracing
from hpcvol.collectives import Algorithm, Vector, allreduce
from hpcvol.collectives.all_gather import gather_slices
from hpcvol.collectives.calling import calling
from hpcvol.collectives.exchange import exchange
from hpcvol.collectives.slices import even_bounds
from hpcvol.comm import Group
from hpcvol.errors import ConfigError
from hpcvol.strategies.combinations import Combination


class RobustFloats:
    """Each rank receives its slice of every member's mean gradient, combines it, and gives the outcome to all.

    Every member counts alike, however many samples it had: a weight is another number that could be wrong. Members
    that had none are left out. Cost: as an all-reduce in bytes, as all vectors' slices in memory.

    Raises:
        ConfigError: there are fewer members than the combination needs, on all of them.
    """

    def __init__(self, group: Group, algorithm: Algorithm, vector: Vector, combination: Combination) -> None:
        self.vector = vector
        self._group = group
        self._algorithm = algorithm
        self._combination = combination
        self._bounds = even_bounds(vector.size, group.size)
        self._check(group.size)

    def push(self, bucket: int) -> None:
        """Nothing: a slice is combined once all members' are there."""

    def finish(self, weight: int, own: int) -> None:
        """Exchange slices, combine, and spread."""
        del weight
        group = self._group
        if own:
            self.vector /= own
        with tracing.span("robust combination", nbytes=self.vector.nbytes):
            counted = [rank for rank, has in enumerate(group.gather_objects(own > 0)) if has]
            self._check(len(counted))
            mine = self.vector[slice(*self._bounds[group.rank])]
            stack = np.tile(mine, (group.size, 1))
            with calling(group, "all_to_all", self.vector):
                exchange(group, lambda rank: self.vector[slice(*self._bounds[rank])], lambda rank: stack[rank])
            mine[:] = self._combination.combine(stack[counted], self._total)
            with calling(group, "all_gather", self.vector):
                gather_slices(group, self.vector, self._bounds)

    def drop(self) -> None:
        """Nothing was combined."""

    def _total(self, numbers: NDArray[np.float64]) -> None:
        allreduce(self._group, numbers, "sum", self._algorithm)

    def _check(self, members: int) -> None:
        least = self._combination.least_members
        if members < least:
            raise ConfigError(
                f"strategy.combine: {self._combination} needs the gradients of {least} members, and {members} have "
                'some: start more, give each of them units, or set strategy.combine = "mean"',
                everywhere=True,
            )
