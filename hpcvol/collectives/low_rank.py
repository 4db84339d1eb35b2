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
from hpcvol.comm.messages import Messages

Begin: TypeAlias = Callable[[int, Floats], Callable[[], None]]


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


@dataclass(frozen=True)
class _Portion:
    """Some of the matrices, and what is summed of them at once.

    Attributes:
        matrices: in order.
        others: elements in no matrix, if this is where they go.
        first: P of the matrices, one after the other, and the other elements.
        own: this rank's Q of the matrices.
        factors: where those of all ranks lie among the factors.
    """

    matrices: list[Matrix]
    others: list[slice]
    first: Floats
    own: Floats
    factors: slice


class LowRankStep:
    """What a rank does in a step, whatever sums its thin matrices; holds the memory of P.

    Matrices go in two portions: what is sent of one travels while the other is computed.

    Args:
        codec: the same on all ranks.
        numel: elements of the vectors.
        dtype: float32 or float64.
        matrices: those in the vector, in order, apart from each other. Those that would not get smaller, and elements
            that are in none, are summed as they are.

    Attributes:
        thin_numels: elements of what is summed, in this order: P of each portion, with what is in no matrix, and then Q
            of each portion.
        factors_numel: elements of Q of all matrices.
    """

    def __init__(self, codec: LowRank, numel: int, dtype: "np.dtype[Any]", matrices: Sequence[Matrix]) -> None:
        rank = self._rank = codec.rank
        smaller = [one for one in matrices if one.rows and rank * (one.rows + one.columns) < one.numel]
        others = list(_between(smaller, numel))
        self._portions = []
        begin = 0
        for number, portion in enumerate(_halves(smaller)):
            elsewhere = [] if number else others
            first_numel = sum(rank * one.rows for one in portion) + sum(part.stop - part.start for part in elsewhere)
            end = begin + sum(rank * one.columns for one in portion)
            first, own = np.empty(first_numel, dtype), np.empty(end - begin, dtype)
            self._portions.append(_Portion(portion, elsewhere, first, own, slice(begin, end)))
            begin = end
        self.factors_numel = begin
        self.thin_numels = [one.first.size for one in self._portions] + [one.own.size for one in self._portions]
        self._values = codec.values
        longest = max(self.thin_numels)
        self._codes = None if codec.values is None else np.empty(codec.values.room(longest, dtype), np.uint8)

    def run(self, vector: Floats, residual: Floats, factors: Floats, seed: int, step: int, begin: Begin) -> None:
        """Replace `vector` by the sum over all ranks of what was made of theirs. Collective where `begin` is.

        Args:
            vector: float32[numel] or float64[numel].
            residual: this rank's, as long; added to the vector, and then what was lost of it.
            factors: [factors_numel], Q of all matrices, the same on all ranks; those of the step before, and then of
                this one. Rows of zeros are drawn anew.
            seed: of what is drawn; the same on all ranks.
            step: the same on all ranks, another one in each call.
            begin: begins to sum one of `thin_numels`, given its number and itself, and returns what waits until it has
                been replaced by its sum over ranks, the same bits on all of them.
        """
        from hpcvol.kernels import low_rank
        from hpcvol.kernels.orthogonalise import orthogonalise

        self._draw_missing(factors, seed, step)
        arriving = []
        for number, portion in enumerate(self._portions):
            for matrix, p, q in self._parts(portion, factors[portion.factors]):
                low_rank.project(_view(vector, matrix), _view(residual, matrix), q, p)
            for part, first in self._elsewhere(portion):
                np.add(vector[part], residual[part], out=first)
                np.copyto(residual[part], first)
            self._round(portion.first)
            for part, first in self._elsewhere(portion):
                residual[part] -= first
            arriving.append(begin(number, portion.first))
        for number, portion in enumerate(self._portions):
            arriving[number]()
            for matrix, p, q in self._parts(portion, portion.own):
                orthogonalise(p)
                low_rank.project_back(_view(residual, matrix), p, q)
            self._round(portion.own)
            total = factors[portion.factors]
            np.copyto(total, portion.own)
            arriving.append(begin(len(self._portions) + number, total))
        for portion in self._portions:
            for matrix, p, q in self._parts(portion, portion.own):
                low_rank.reconstruct(p, q, _view(residual, matrix), None)
                _view(vector, matrix).fill(0)
        for arrived, portion in zip(arriving[len(self._portions) :], self._portions, strict=True):
            arrived()
            for matrix, p, q in self._parts(portion, factors[portion.factors]):
                low_rank.reconstruct(p, q, None, _view(vector, matrix))
            for part, first in self._elsewhere(portion):
                vector[part] = first

    def _round(self, thin: Floats) -> None:
        if self._values is not None and self._codes is not None:
            used = self._values.encode(thin, None, NO_SEEDS, self._codes[: self._values.room(thin.size, thin.dtype)])
            thin.fill(0)
            self._values.accumulate(self._codes[:used], NO_SEEDS, thin)

    def _elsewhere(self, portion: _Portion) -> Iterator[tuple[slice, Floats]]:
        """Yield what is in no matrix, and where it lies in what is summed first."""
        begin = sum(self._rank * matrix.rows for matrix in portion.matrices)
        for part in portion.others:
            end = begin + part.stop - part.start
            yield part, portion.first[begin:end]
            begin = end

    def _parts(self, portion: _Portion, factors: Floats) -> Iterator[tuple[Matrix, Floats, Floats]]:
        """Yield each matrix with its P, [rank, rows], and Q, [rank, columns]."""
        p_begin = q_begin = 0
        for matrix in portion.matrices:
            p_end, q_end = p_begin + self._rank * matrix.rows, q_begin + self._rank * matrix.columns
            p, q = portion.first[p_begin:p_end], factors[q_begin:q_end]
            yield matrix, p.reshape(self._rank, matrix.rows), q.reshape(self._rank, matrix.columns)
            p_begin, q_begin = p_end, q_end

    def _draw_missing(self, factors: Floats, seed: int, step: int) -> None:
        """Draw rows of zeros anew: those of the first step, and such as depended on others and say nothing."""
        number = 0
        for portion in self._portions:
            for _, _, q in self._parts(portion, factors[portion.factors]):
                for row in np.flatnonzero(~q.any(axis=1)):
                    random = np.random.default_rng([seed, step, number, int(row)])
                    q[row] = random.standard_normal(q.shape[1])
                number += 1


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
        self._sums = [ThinSum(group, count, dtype, codec.values) for count in self._step.thin_numels]
        self.factors_numel = self._step.factors_numel
        self.thin_nbytes = sum(one.nbytes for one in self._sums)

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
        with calling(self._group, "allreduce", vector, None, "sum"), Messages(self._group) as messages:

            def begin(number: int, thin: Floats) -> Callable[[], None]:
                return self._sums[number].begin(messages, thin)

            self._step.run(vector, residual, factors, seed, step, begin)


def _view(vector: Floats, matrix: Matrix) -> Floats:
    return vector[matrix.start : matrix.start + matrix.numel].reshape(matrix.rows, matrix.columns)


def _halves(matrices: Sequence[Matrix]) -> tuple[list[Matrix], list[Matrix]]:
    """Cut a list of matrices where about half of the elements are on each side."""
    if len(matrices) < 2:
        return list(matrices), []
    before = np.cumsum([one.numel for one in matrices])
    place = int(np.abs(before[:-1] - before[-1] / 2).argmin()) + 1
    return list(matrices[:place]), list(matrices[place:])


def _between(matrices: Sequence[Matrix], numel: int) -> Iterator[slice]:
    begin = 0
    for matrix in matrices:
        if begin < matrix.start:
            yield slice(begin, matrix.start)
        begin = matrix.start + matrix.numel
    if begin < numel:
        yield slice(begin, numel)
