"""What a member has not sent yet of its gradients, and what becomes of it when the members change."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcvol.codecs import Floats
from hpcvol.collectives import allreduce
from hpcvol.comm import Group


class Feedback:
    """A member's residual of one flat vector: of the parts that it carries, in the unit of the mean gradient.

    A step works on a copy, which takes the place of the residual when the step is committed: one that is computed again
    begins from the same. The sum of all members' residuals is what the weights have not seen yet. It stays the same
    when members join or leave, and when parts are cut anew; what a member had that dies is lost.

    Args:
        numel: of the whole vector, on all members.
        dtype: float32 or float64.
        rows: as many times as long as the vector the residual is; 0 where nothing is kept.

    Attributes:
        step: how many steps were committed, the same on all members.
        rows: as given.
        inherited: the members that had left when `place` was called last, and whose residuals were taken over.
    """

    def __init__(self, numel: int, dtype: "np.dtype[Any]", *, rows: int) -> None:
        self.step = 0
        self.rows = rows
        self.inherited: set[int] = set()
        self._numel = numel
        self._dtype = dtype
        self._parts: tuple[slice, ...] = ()
        self._owns = False
        self._residual = self._next = np.empty(0, dtype)
        self._factors = self._next_factors = np.empty(0, dtype)
        self._placed: tuple[tuple[slice, ...], Floats, int, bool] | None = None
        self._inheritance: tuple[set[int], Floats] | None = None
        self._begun = False
        self._taken = 0  # how often what was prepared was taken up

    def place(self, group: Group, parts: Sequence[slice], factors_numel: int, *, owns: bool) -> None:
        """Keep from the next step on the residual of `parts`. Collective; may be called again where it failed.

        Where parts are others than before all residuals are summed and given to who owns them now.

        Args:
            group: the members.
            parts: of the vector: what this member encodes; the residual has one behind the other, row by row.
            factors_numel: elements of the factors of low rank, which begin anew.
            owns: whether this member takes what others had of `parts`: one for each element.
        """
        parts = tuple(parts)
        self._begun = False
        prepared = group.gather_objects((self._taken, self._placed is not None))
        last = max(taken for taken, _ in prepared)
        if self._taken < last:
            self._settle()  # somebody has taken up what was prepared last, so that it came to its end on all
        elif not all(is_placed for _, is_placed in prepared):
            self._placed = None  # it failed on some
        self._taken = last
        heirs, mine = self._inheritance or (set(), None)
        here = not heirs & set(group.members)
        moved = self._residual.size > 0 and self._parts != parts
        told = group.gather_objects((self.step, moved, sorted(heirs) if here and heirs else None))
        self.step = max(step for step, _, _ in told)
        heir = next((rank for rank, (_, _, left) in enumerate(told) if left), None)
        self.inherited = set() if heir is None else set(told[heir][2])
        residual = np.zeros(self.rows * _numel(parts), self._dtype)
        if self.rows and (heir is not None or any(one for _, one, _ in told)):
            whole = self._whole()
            if group.rank == heir and mine is not None:
                whole += mine
            allreduce(group, whole)
            if owns:
                _take(whole.reshape(self.rows, -1), parts, residual.reshape(self.rows, -1))
        elif self._parts == parts and self._residual.size:
            residual[:] = self._residual
        if not here:
            self._inheritance = None
        self._placed = parts, residual, factors_numel, owns

    def inherit(self, group: Group, leaving: set[int]) -> None:
        """Take over the residuals of members that are about to leave; `place` comes next. Collective with them."""
        self._settle()
        if not self.rows:
            return
        whole = (
            self._whole() if group.members[group.rank] in leaving else np.zeros(self.rows * self._numel, self._dtype)
        )
        allreduce(group, whole)
        self._inheritance = set(leaving), whole

    def take_up(self) -> None:
        """Keep from now on what `place` has prepared. Local; all members call it once `place` has ended on all."""
        self._settle()

    def begin(self) -> tuple[Floats | None, Floats]:
        """Return the copies of residual (None where nothing is kept) and factors that the step at hand changes."""
        self._settle()
        np.copyto(self._next, self._residual)
        np.copyto(self._next_factors, self._factors)
        self._begun = True
        return (self._next if self.rows else None), self._next_factors

    def commit(self) -> None:
        """The step took effect: what it left is the residual now. Local; the same calls on all members."""
        if self._begun:
            self._residual, self._next = self._next, self._residual
            self._factors, self._next_factors = self._next_factors, self._factors
        else:
            self._settle()
        self._begun = False
        self.step += 1

    @property
    def norm(self) -> float:
        """Euclidean norm of this member's residual."""
        unsent = self._residual[: _numel(self._parts)]
        return math.sqrt(float(np.dot(unsent, unsent)))

    def gathered(self, group: Group) -> Floats | None:
        """Return the sum of all members' residuals, [rows · numel]; None where all are 0. Collective."""
        self._settle()
        if not group.any(bool(self._residual.any())):
            return None
        whole = self._whole()
        allreduce(group, whole)
        return whole

    def load(self, whole: Floats | None, step: int) -> bool:
        """Go on from what `gathered` returned, None for nothing, after `step` steps. Local; all members make the call.

        Returns:
            Whether all of it is kept here too.

        Raises:
            ValueError: it is of another length.
        """
        self._settle()
        if whole is not None and whole.size not in (self._numel, 2 * self._numel):
            raise ValueError(f"{whole.size} elements, expected {self._numel} or twice as many")
        self.step = step
        self._residual.fill(0)
        if whole is not None and self._owns and self.rows:  # of a codec that keeps more, or less, what both keep
            stored, mine = whole.reshape(-1, self._numel)[: self.rows], self._residual.reshape(self.rows, -1)
            _take(stored, self._parts, mine[: len(stored)])
        return whole is None or whole.size <= self.rows * self._numel

    def _settle(self) -> None:
        """Take up what `place` has prepared: by now it came to an end on all members."""
        if self._placed is None:
            return
        self._parts, self._residual, factors_numel, self._owns = self._placed
        self._next = np.empty_like(self._residual)
        self._factors, self._next_factors = np.zeros(factors_numel, self._dtype), np.empty(factors_numel, self._dtype)
        self._placed = self._inheritance = None
        self._taken += 1

    def _whole(self) -> Floats:
        """Return this member's residual with zeros for all that it has nothing of."""
        whole = np.zeros(self.rows * self._numel, self._dtype)
        if self._residual.size:
            start, mine = 0, self._residual.reshape(self.rows, -1)
            for part in self._parts:
                stop = start + part.stop - part.start
                whole.reshape(self.rows, -1)[:, part] = mine[:, start:stop]
                start = stop
        return whole


def _numel(parts: Sequence[slice]) -> int:
    return sum(part.stop - part.start for part in parts)


def _take(whole: Floats, parts: Sequence[slice], out: Floats) -> None:
    """Write the columns of `parts`, one behind the other, to `out`."""
    start = 0
    for part in parts:
        stop = start + part.stop - part.start
        out[:, start:stop] = whole[:, part]
        start = stop
