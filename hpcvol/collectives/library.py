"""All-reduce by the MPI library's own MPI_Allreduce."""

from hpcvol.collectives.combine import HALF, OrderedIntegers, finish, narrow, widened
from hpcvol.collectives.slices import pieces
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector, reduce_everywhere


def allreduce(group: Group, vector: Vector, op: Op) -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    Same bits on all ranks: MPI only recommends that. It holds for sums and products because what the libraries do is
    either to reduce each element in one place and copy it (ring, Rabenseifner, shared memory), or recursive doubling,
    where ranks combine the same two partial results in either order, and a + b has the bits of b + a. Minimum and
    maximum of floats are taken of integers of the same order.

    MPI libraries know no half types: their sums and products are taken in float32, piece by piece, and rounded once.
    """
    if group.size == 1:
        return
    if op in ("min", "max") and vector.dtype.kind != "i":
        integers = OrderedIntegers(op, vector.dtype)
        encoded = integers.encode(vector)
        try:
            reduce_everywhere(group, encoded, op)
        finally:
            integers.decode(encoded)
    elif vector.dtype.name in HALF:
        _in_float32(group, vector, op)
    else:
        reduce_everywhere(group, vector, "sum" if op == "mean" else op)
        finish(op, vector, group.size)


def _in_float32(group: Group, vector: Vector, op: Op) -> None:
    for piece in pieces(vector):
        wide = widened(piece)
        reduce_everywhere(group, wide, "sum" if op == "mean" else op)
        finish(op, wide, group.size)
        narrow(wide, piece)
