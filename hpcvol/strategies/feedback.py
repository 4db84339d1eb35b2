"""What a member has not sent yet of its gradients, and what becomes of it when the members change."""

import math
from typing import Any

import numpy as np

from hpcvol.codecs import Floats
from hpcvol.collectives import allreduce
from hpcvol.comm import Group


class Feedback:
    """A member's residual of one flat vector: of the slice that it carries, in the unit of the mean gradient.

    A step works on a copy, which takes the place of the residual when the step is committed: one that is computed again
    begins from the same. The sum of all members' residuals is what the weights have not seen yet. It stays the same
    when members join or leave, and when slices are cut anew; what a member had that dies is lost.

    Args:
        numel: of the whole vector, on all members.
        dtype: float32 or float64.
        keeps: whether the codec loses anything that is to be kept.

    Attributes:
        step: how many steps were committed, the same on all members.
    """

    def __init__(self, numel: int, dtype: "np.dtype[Any]", *, keeps: bool) -> None:
        self.step = 0
        self._numel = numel
        self._dtype = dtype
        self._keeps = keeps
        self._part = slice(0, 0)
        self._owns = False
        self._residual = self._next = np.empty(0, dtype)
        self._factors = self._next_factors = np.empty(0, dtype)
        self._placed: tuple[slice, Floats, int, bool] | None = None
        self._inherited: tuple[set[int], Floats] | None = None
        self._begun = False

    def place(self, group: Group, part: slice, factors_numel: int, *, owns: bool) -> None:
        """Keep from the next step on the residual of `part`. Collective; may be called again where it failed.

        Where slices are others than before all residuals are summed and given to who owns them now.

        Args:
            group: the members.
            part: of the vector: what this member encodes.
            factors_numel: elements of the factors of low rank, which begin anew.
            owns: whether this member takes what others had of `part`: one for each element.
        """
        self._begun = False
        self.step = max(group.gather_objects(self.step))
        parted = self._inherited is not None and not self._inherited[0] & set(group.members)
        moved = self._residual.size > 0 and self._part != part
        residual = np.zeros(part.stop - part.start, self._dtype)
        if self._keeps and group.any(moved or parted):
            whole = self._whole()
            if self._inherited is not None and parted and group.rank == 0:
                whole += self._inherited[1]
            allreduce(group, whole)
            if owns:
                residual[:] = whole[part]
        elif self._part == part and self._residual.size:
            residual[:] = self._residual
        self._placed = part, residual, factors_numel, owns

    def hand_over(self, group: Group, leaving: set[int]) -> None:
        """Take over the residuals of members that are about to leave; `place` comes next. Collective with them."""
        if not self._keeps:
            return
        self._settle()
        whole = self._whole() if group.members[group.rank] in leaving else np.zeros(self._numel, self._dtype)
        allreduce(group, whole)
        self._inherited = leaving, whole

    def begin(self) -> tuple[Floats | None, Floats]:
        """Return the copies of residual (None where nothing is kept) and factors that the step at hand changes."""
        self._settle()
        np.copyto(self._next, self._residual)
        np.copyto(self._next_factors, self._factors)
        self._begun = True
        return (self._next if self._keeps else None), self._next_factors

    def commit(self) -> None:
        """The step took effect: what it left is the residual now. Local; the same calls on all members."""
        if self._begun:
            self._residual, self._next = self._next, self._residual
            self._factors, self._next_factors = self._next_factors, self._factors
        self._begun = False
        self.step += 1

    @property
    def norm(self) -> float:
        """Euclidean norm of this member's residual."""
        return math.sqrt(float(np.dot(self._residual, self._residual)))

    def gathered(self, group: Group) -> Floats:
        """Return the sum of all members' residuals, [numel]. Collective."""
        self._settle()
        whole = self._whole()
        if self._keeps:
            allreduce(group, whole)
        return whole

    def load(self, whole: Floats | None, step: int) -> None:
        """Go on from what `gathered` returned, None for nothing, after `step` steps. Local; all members make the call.

        Raises:
            ValueError: it is of another length.
        """
        self._settle()
        if whole is not None and whole.size != self._numel:
            raise ValueError(f"{whole.size} elements, expected {self._numel}")
        self.step = step
        self._residual[:] = whole[self._part] if whole is not None and self._owns and self._keeps else 0

    def _settle(self) -> None:
        """Take up what `place` has prepared: by now it came to an end on all members."""
        if self._placed is None:
            return
        self._part, self._residual, factors_numel, self._owns = self._placed
        self._next = np.empty_like(self._residual)
        self._factors, self._next_factors = np.zeros(factors_numel, self._dtype), np.empty(factors_numel, self._dtype)
        self._placed = self._inherited = None

    def _whole(self) -> Floats:
        """Return this member's residual with zeros for all that it has nothing of."""
        whole = np.zeros(self._numel, self._dtype)
        part, residual = (self._part, self._residual) if self._residual.size else (slice(0, 0), self._residual)
        whole[part] = residual
        return whole
