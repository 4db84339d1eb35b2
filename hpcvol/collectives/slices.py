"""How a vector is cut: into one slice a rank, and those into pieces that move one after the other."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

from hpcvol.comm.open_mpi import EAGER_NBYTES
from hpcvol.comm.vectors import Vector

# Start and end of each rank's slice.
Bounds: TypeAlias = Sequence[tuple[int, int]]

# Pieces keep the scratch space small and what arrives in the cache until it is combined, and let one piece travel while
# another is combined. Open MPI sends such a piece without asking its receiver first.
PIECE_NBYTES = EAGER_NBYTES
_LONG_NBYTES = 1 << 23


def even_bounds(numel: int, parts: int) -> Bounds:
    """Return `parts` slices of `numel` elements whose lengths differ by one at most."""
    cuts = [part * numel // parts for part in range(parts + 1)]
    return list(pairwise(cuts))


def bounds_of(counts: Sequence[int]) -> Bounds:
    """Return slices of these lengths, one after the other."""
    bounds, start = [], 0
    for count in counts:
        bounds.append((start, start + count))
        start += count
    return bounds


def pieces(vector: Vector, piece_nbytes: int | None = None) -> Iterator[Vector]:
    """Yield `vector` in pieces, of `PIECE_NBYTES` at most where it is not long; none where it is empty.

    Pieces of a long one wait until its receiver was asked: MPI copies what is sent without.
    """
    usual = PIECE_NBYTES if vector.nbytes <= _LONG_NBYTES else 2 * PIECE_NBYTES
    numel = max(1, (piece_nbytes or usual) // vector.itemsize)
    for start in range(0, vector.size, numel):
        yield vector[start : start + numel]
