"""Vectors (contiguous 1-D NumPy arrays), and the MPI library's own ways of combining them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy.typing as npt

from hpcvol.comm.faults import explain
from hpcvol.comm.group import Group
from hpcvol.comm.waiting import Spinning

if TYPE_CHECKING:
    from mpi4py import MPI

Vector: TypeAlias = npt.NDArray[Any]
Op: TypeAlias = Literal["sum", "mean", "min", "max", "product"]

# MPI before version 4 counts elements in an int (Open MPI 5 does): longer vectors go in pieces.
MAX_PIECE_NUMEL = 2**30

# MPI_Allreduce of 100 MiB on one node took 65 ms whole and 25 ms in pieces of this size with Open MPI, 63 and 31 ms
# with MPICH: the library's own buffers stay in the cache, and stay small.
ALLREDUCE_PIECE_NBYTES = 2 * 2**20


def reduce_everywhere(group: Group, vector: Vector, op: Op) -> None:
    """Replace `vector` by its element-wise `op` (not "mean") over all ranks, by MPI_Allreduce. Collective, in place.

    Where the group waits without spinning, by MPI_Iallreduce, which MPI libraries have made slower. The ranks meet
    first: what MPI makes of calls that do not fit is a hang, wrong numbers, or a crash.

    Args:
        group: all of its ranks call this.
        vector: of a dtype that MPI libraries combine: int16, int32, int64, float32, float64.
        op: what to do.

    Raises:
        MismatchError: members are in different calls.
        MemberError: another member died.
        CommError: MPI failed otherwise.
    """
    from mpi4py import MPI

    communicator, operation = group.communicator, _mpi_op(op)
    blocking = isinstance(group.waiting, Spinning)

    try:
        group.meet()
        for piece in _pieces(vector, ALLREDUCE_PIECE_NBYTES // vector.itemsize):
            if blocking:
                communicator.Allreduce(MPI.IN_PLACE, piece, operation)
            else:
                request = communicator.Iallreduce(MPI.IN_PLACE, piece, operation)
                group.waiting.until(request.Test, group.poll)
    except Exception as error:
        told = explain(group, error)
        if told is None:
            raise
        raise told from error


def _pieces(vector: Vector, limit: int) -> Iterator[Vector]:
    numel = max(1, min(limit, MAX_PIECE_NUMEL))
    for start in range(0, vector.size, numel):
        yield vector[start : start + numel]


def _mpi_op(op: Op) -> "MPI.Op":
    from mpi4py import MPI

    return {"sum": MPI.SUM, "min": MPI.MIN, "max": MPI.MAX, "product": MPI.PROD}[op]
