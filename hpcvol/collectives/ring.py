"""Ring all-reduce: reduce-scatter, then all-gather, each rank talking to its two neighbours only.

References:
    Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, JPDC 69 (2009), section 3.
"""

from collections.abc import Iterator

import numpy as np

from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector, exchange

_COMBINE: dict[Op, np.ufunc] = {"sum": np.add, "min": np.minimum, "max": np.maximum}

# Chunks move in pieces, so that the scratch space is small, what arrives is still in cache when it is added, and no
# message is longer than MPI can count.
PIECE_NBYTES = 1 << 20


def allreduce(group: Group, vector: Vector, op: Op) -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    The vector is cut into one chunk a rank. In the first round trip each chunk collects the values of all ranks as it
    passes, and ends complete on one rank; in the second the complete chunks go round and are copied.

    Same bits on all ranks: every chunk is combined along one path, in the order of ranks, and then only copied.

    Cost, for n ranks: each sends 2 (n - 1) / n of the vector's bytes, in 2 (n - 1) messages or more.
    """
    if group.size == 1:
        return
    chunks = _Chunks(vector, group.size)
    scratch = np.empty(chunks.max_piece_numel, vector.dtype)
    combine = _COMBINE[op]
    for step in range(group.size - 1):
        arriving = group.rank - step - 1
        for outgoing, mine in chunks.pairs(group.rank - step, arriving):
            theirs = scratch[: mine.size]
            _pass_on(group, outgoing, theirs)
            combine(theirs, mine, out=mine)
    for step in range(group.size - 1):
        for outgoing, incoming in chunks.pairs(group.rank + 1 - step, group.rank - step):
            _pass_on(group, outgoing, incoming)


class _Chunks:
    """A vector cut into `num_chunks` chunks, each cut into the same number of pieces, with lengths that differ by one.

    The same number everywhere, so that every message sent has a receive on the other side; some are empty.
    """

    def __init__(self, vector: Vector, num_chunks: int) -> None:
        self._vector = vector
        self._num_chunks = num_chunks
        longest = -(-vector.size // num_chunks)
        self._num_pieces = max(1, -(-longest * vector.itemsize // PIECE_NBYTES)) if vector.size else 0
        self.max_piece_numel = -(-longest // self._num_pieces) if self._num_pieces else 0

    def pairs(self, first: int, second: int) -> Iterator[tuple[Vector, Vector]]:
        """Yield the pieces of chunks `first` and `second` (both modulo the number of chunks) side by side."""
        for piece in range(self._num_pieces):
            yield self._piece(first % self._num_chunks, piece), self._piece(second % self._num_chunks, piece)

    def _piece(self, chunk: int, piece: int) -> Vector:
        numel = self._vector.size
        start, stop = chunk * numel // self._num_chunks, (chunk + 1) * numel // self._num_chunks
        length = stop - start
        return self._vector[
            start + piece * length // self._num_pieces : start + (piece + 1) * length // self._num_pieces
        ]


def _pass_on(group: Group, outgoing: Vector, incoming: Vector) -> None:
    right, left = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    exchange(group, outgoing, right, incoming, left)
