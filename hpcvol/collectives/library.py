"""All-reduce by the MPI library's own MPI_Allreduce."""

from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector, copy_from_root, reduce_everywhere, reduce_to_root


def allreduce(group: Group, vector: Vector, op: Op) -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    Same bits on all ranks: MPI only recommends that. It holds for sums because what the libraries do is either to
    reduce each element in one place and copy it (ring, Rabenseifner, shared memory), or recursive doubling, where ranks
    combine the same two partial results in either order, and a + b has the bits of b + a. The minimum of 0.0 and -0.0
    has not: floats' min and max are reduced on one rank and copied.
    """
    if group.size == 1:
        return
    if op != "sum" and vector.dtype.kind == "f":
        reduce_to_root(group, vector, op, root=0)
        copy_from_root(group, vector, root=0)
    else:
        reduce_everywhere(group, vector, op)
