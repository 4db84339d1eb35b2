"""All-reduce of matrices as products of thin ones: PowerSGD.

One step, of each matrix M with what was lost before added to it, on every rank: P = M Q is summed over ranks and made
orthonormal, Q = Mᵀ P is summed, and P Qᵀ is the sum. What a rank keeps is M less its own part, P Qᵀ with its own Q: of
all that P can say nothing is left. Next time it begins from this Q.

References:
    Vogels, Karimireddy, Jaggi: PowerSGD: practical low-rank gradient compression, NeurIPS 2019, algorithms 1 and 2
    (there what is kept is M less the mean of all ranks' parts; the sum over ranks is the same).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcvol.codecs import Floats, LowRank
from hpcvol.collectives.calling import calling
from hpcvol.collectives.thin import ThinSum
from hpcvol.comm.group import Group


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


class LowRankSum:
    """Sums vectors of matrices over the ranks of a group; holds the memory of factors. Made alike on all ranks.

    Args:
        group: all of its ranks make the same calls.
        codec: the same on all ranks.
        numel: elements of the vectors.
        dtype: float32 or float64.
        matrices: those in the vector, in order, apart from each other. Those that would not get smaller, and elements
            that are in none, are summed as they are.
    """

    def __init__(
        self, group: Group, codec: LowRank, numel: int, dtype: "np.dtype[Any]", matrices: Sequence[Matrix]
    ) -> None:
        self._group = group
        self._rank = codec.rank
        self._matrices = [one for one in matrices if one.rows and codec.rank * (one.rows + one.columns) < one.numel]
        self._others = list(_between(self._matrices, numel))
        num_others = sum(part.stop - part.start for part in self._others)
        self._first = np.empty(sum(codec.rank * one.rows for one in self._matrices) + num_others, dtype)
        self._second = np.empty(sum(codec.rank * one.columns for one in self._matrices), dtype)
        self._sum_of_first = ThinSum(group, self._first.size, dtype)
        self._sum_of_second = ThinSum(group, self._second.size, dtype)
        self.sent_nbytes = 0

    @property
    def factors_numel(self) -> int:
        """Elements of `factors`."""
        return self._second.size

    def sum(self, vector: Floats, residual: Floats, factors: Floats, seed: int, step: int) -> None:
        """Replace `vector` by the sum over all ranks of what was made of theirs. Collective, in place.

        Args:
            vector: float32[numel] or float64[numel].
            residual: this rank's, as long; added to the vector, and then what was lost of it.
            factors: [factors_numel], Q of all matrices, the same on all ranks; those of the step before, and then of
                this one. Rows of zeros are drawn anew.
            seed: of what is drawn; the same on all ranks.
            step: the same on all ranks, another one in each call.

        Raises:
            MismatchError: members are in different calls.
            MemberError: another member died.
        """
        group = self._group
        if group.size == 1:
            vector += residual
            residual.fill(0)
            return
        with calling(group, "allreduce", vector, None, "sum"):
            self._sum(vector, residual, factors, seed, step)

    def _sum(self, vector: Floats, residual: Floats, factors: Floats, seed: int, step: int) -> None:
        from hpcvol.kernels import low_rank
        from hpcvol.kernels.orthogonalise import orthogonalise

        self._draw_missing(factors, seed, step)
        for matrix, p, q in self._parts(factors):
            low_rank.project(_view(vector, matrix), _view(residual, matrix), q, p)
        end = self._first.size
        for part in reversed(self._others):
            begin = end - (part.stop - part.start)
            np.add(vector[part], residual[part], out=self._first[begin:end])
            residual[part] = 0
            end = begin
        self.sent_nbytes = self._sum_of_first.sum(self._first)
        own = factors  # this rank's Q, until that of all is known
        for matrix, p, q in self._parts(own):
            orthogonalise(p)
            low_rank.project_back(_view(residual, matrix), p, q)
            low_rank.reconstruct(p, q, _view(residual, matrix), None)
        np.copyto(self._second, own)
        self.sent_nbytes += self._sum_of_second.sum(self._second)
        np.copyto(factors, self._second)
        for matrix, p, q in self._parts(factors):
            out = _view(vector, matrix)
            out.fill(0)
            low_rank.reconstruct(p, q, None, out)
        begin = self._first.size - sum(part.stop - part.start for part in self._others)
        for part in self._others:
            vector[part] = self._first[begin : begin + part.stop - part.start]
            begin += part.stop - part.start

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
