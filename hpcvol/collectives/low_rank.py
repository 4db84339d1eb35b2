"""All-reduce of matrices as products of thin ones: PowerSGD.

One step, of each matrix M with what was lost before added to it, on every rank: P = M Q is summed over ranks and made
orthonormal, Q = Mᵀ P is summed, and P Qᵀ is the sum. What a rank keeps is M less its own part, P Qᵀ with its own Q: of
all that P can say nothing is left. Next time it begins from this Q.

References:
    Vogels, Karimireddy, Jaggi: PowerSGD: practical low-rank gradient compression, NeurIPS 2019, algorithms 1 and 2
    (there what is kept is M less the mean of all ranks' parts; the sum over ranks is the same).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from hpcvol.codecs import Floats, LowRank
from hpcvol.collectives.calling import calling
from hpcvol.collectives.thin import NO_SEEDS, ThinSum
from hpcvol.comm.group import Group

Total: TypeAlias = Callable[[Floats], None]


@dataclass(frozen=True)
class Matrix:
    """Where a matrix lies in a flat vector: elements from `start` on, row after row."""

    start: int
    rows: int
    columns: int

    @property
    def numel(self) -> int:
        """Its elements."""
        return self.rows * self.columns

    def within(self, start: int, stop: int) -> "Matrix":
        """Return its whole rows between two elements of the vector, counted from the first of the two."""
        first = max(0, -(-(start - self.start) // self.columns))
        last = max(first, min(self.rows, (stop - self.start) // self.columns))
        return Matrix(self.start + first * self.columns - start, last - first, self.columns)


class LowRankStep:
    """What a rank does in a step, whatever sums its thin matrices; holds the memory of P.

    Args:
        codec: the same on all ranks.
        numel: elements of the vectors.
        dtype: float32 or float64.
        matrices: those in the vector, in order, apart from each other. Those that would not get smaller, and elements
            that are in none, are summed as they are.

    Attributes:
        first_numel: elements of what is summed first, P of all matrices and what is in none.
        factors_numel: elements of what is summed second, Q of all matrices.
    """

    def __init__(self, codec: LowRank, numel: int, dtype: "np.dtype[Any]", matrices: Sequence[Matrix]) -> None:
        self._rank = codec.rank
        self._matrices = [one for one in matrices if one.rows and codec.rank * (one.rows + one.columns) < one.numel]
        self._others = list(_between(self._matrices, numel))
        self._p_numel = sum(codec.rank * one.rows for one in self._matrices)
        self.first_numel = self._p_numel + sum(part.stop - part.start for part in self._others)
        self.factors_numel = sum(codec.rank * one.columns for one in self._matrices)
        self._first = np.empty(self.first_numel, dtype)
        self._second = np.empty(self.factors_numel, dtype)
        self._values = codec.values
        longest = max(self.first_numel, self.factors_numel)
        self._codes = None if codec.values is None else np.empty(codec.values.room(longest, dtype), np.uint8)

    def run(
        self, vector: Floats, residual: Floats, factors: Floats, seed: int, step: int, sums: Sequence[Total]
    ) -> None:
        """Replace `vector` by the sum over all ranks of what was made of theirs. Collective where `sums` are.

        Args:
            vector: float32[numel] or float64[numel].
            residual: this rank's, as long; added to the vector, and then what was lost of it.
            factors: [factors_numel], Q of all matrices, the same on all ranks; those of the step before, and then of
                this one. Rows of zeros are drawn anew.
            seed: of what is drawn; the same on all ranks.
            step: the same on all ranks, another one in each call.
            sums: the first replaces a vector of `first_numel` elements by its sum over ranks, the same bits on all of
                them, the second one of `factors_numel`.
        """
        from hpcvol.kernels import low_rank
        from hpcvol.kernels.orthogonalise import orthogonalise

        self._draw_missing(factors, seed, step)
        for matrix, p, q in self._parts(factors):
            low_rank.project(_view(vector, matrix), _view(residual, matrix), q, p)
        for part, first in self._elsewhere():
            np.add(vector[part], residual[part], out=first)
            np.copyto(residual[part], first)
        self._round(self._first)
        for part, first in self._elsewhere():
            residual[part] -= first
        sums[0](self._first)
        np.copyto(self._second, factors)
        for matrix, p, q in self._parts(self._second):  # this rank's Q, until that of all is known
            orthogonalise(p)
            low_rank.project_back(_view(residual, matrix), p, q)
        self._round(self._second)
        for matrix, p, q in self._parts(self._second):
            low_rank.reconstruct(p, q, _view(residual, matrix), None)
        sums[1](self._second)
        np.copyto(factors, self._second)
        for matrix, p, q in self._parts(factors):
            out = _view(vector, matrix)
            out.fill(0)
            low_rank.reconstruct(p, q, None, out)
        for part, first in self._elsewhere():
            vector[part] = first

    def _round(self, thin: Floats) -> None:
        if self._values is not None and self._codes is not None:
            used = self._values.encode(thin, None, NO_SEEDS, self._codes[: self._values.room(thin.size, thin.dtype)])
            thin.fill(0)
            self._values.accumulate(self._codes[:used], NO_SEEDS, thin)

    def _elsewhere(self) -> Iterator[tuple[slice, Floats]]:
        """Yield what is in no matrix, and where it lies in what is summed first."""
        begin = self._p_numel
        for part in self._others:
            end = begin + part.stop - part.start
            yield part, self._first[begin:end]
            begin = end

    def _parts(self, factors: Floats) -> Iterator[tuple[Matrix, Floats, Floats]]:
        """Yield each matrix with its P, [rank, rows], and Q, [rank, columns]."""
        p_begin = q_begin = 0
        for matrix in self._matrices:
            p_end, q_end = p_begin + self._rank * matrix.rows, q_begin + self._rank * matrix.columns
            p, q = self._first[p_begin:p_end], factors[q_begin:q_end]
            yield matrix, p.reshape(self._rank, matrix.rows), q.reshape(self._rank, matrix.columns)
            p_begin, q_begin = p_end, q_end

    def _draw_missing(self, factors: Floats, seed: int, step: int) -> None:
        """Draw rows of zeros anew: those of the first step, and such as depended on others and say nothing."""
        for number, (_, _, q) in enumerate(self._parts(factors)):
            for row in np.flatnonzero(~q.any(axis=1)):
                random = np.random.default_rng([seed, step, number, int(row)])
                q[row] = random.standard_normal(q.shape[1])


class LowRankSum:
    """Sums vectors of matrices over the ranks of a group. Made alike on all ranks.

    Args:
        group: all of its ranks make the same calls.
        codec: as for `LowRankStep`, and likewise the others.
        numel: see there.
        dtype: see there.
        matrices: see there.
    """

    def __init__(
        self, group: Group, codec: LowRank, numel: int, dtype: "np.dtype[Any]", matrices: Sequence[Matrix]
    ) -> None:
        self._group = group
        self._step = LowRankStep(codec, numel, dtype, matrices)
        counts = self._step.first_numel, self._step.factors_numel
        self._sums = [ThinSum(group, count, dtype, codec.values) for count in counts]
        self.factors_numel = self._step.factors_numel
        room = codec.values.room if codec.values is not None else lambda numel, kind: numel * kind.itemsize
        self.thin_nbytes = sum(room(count, dtype) for count in counts)

    @property
    def sent_nbytes(self) -> int:
        """How many bytes the last call has sent, as far as is known."""
        return sum(one.sent_nbytes for one in self._sums)

    def sum(self, vector: Floats, residual: Floats, factors: Floats, seed: int, step: int) -> None:
        """Replace `vector` by the sum over all ranks, as `LowRankStep.run`. Collective, in place.

        Raises:
            MismatchError: members are in different calls.
            MemberError: another member died.
        """
        if self._group.size == 1:
            vector += residual
            residual.fill(0)
            return
        with calling(self._group, "allreduce", vector, None, "sum"):
            self._step.run(vector, residual, factors, seed, step, [one.sum for one in self._sums])


def _view(vector: Floats, matrix: Matrix) -> Floats:
    return vector[matrix.start : matrix.start + matrix.numel].reshape(matrix.rows, matrix.columns)


def _between(matrices: Sequence[Matrix], numel: int) -> Iterator[slice]:
    begin = 0
    for matrix in matrices:
        if begin < matrix.start:
            yield slice(begin, matrix.start)
        begin = matrix.start + matrix.numel
    if begin < numel:
        yield slice(begin, numel)
