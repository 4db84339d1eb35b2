"""All-reduce of any vectors of the ranks of one node: the best of the ways there are for a length."""

from hpcvol.collectives import cross_memory, library, staged
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector

# From here on copying once by a system call beats copying twice through the caches.
CROSS_MEMORY_NBYTES = 4 << 20


def allreduce(group: Group, vector: Vector, op: Op) -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    Staged through shared memory up to `CROSS_MEMORY_NBYTES`, by cross-memory attach above; where ranks may not read
    each other's memory staged as well, and where they share none by the MPI library.

    Args:
        group: all of its ranks on one node; all call this with the same operation, length and dtype.
        vector: as for `staged.allreduce`.
        op: as for `staged.allreduce`.
    """
    if vector.nbytes >= CROSS_MEMORY_NBYTES and cross_memory.usable(group):
        cross_memory.allreduce(group, vector, op)
    elif staged.usable(group):
        staged.allreduce(group, vector, op)
    else:
        library.allreduce(group, vector, op)
