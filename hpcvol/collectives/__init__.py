"""How ranks combine vectors: one file an algorithm, and one that chooses."""

from hpcvol.collectives.choose import Algorithm, allreduce, broadcast
from hpcvol.comm.vectors import Op, Vector

__all__ = ["Algorithm", "Op", "Vector", "allreduce", "broadcast"]
