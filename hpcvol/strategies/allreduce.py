"""All-reduce: every step, every rank ends with the sum of all ranks' vectors."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from hpcvol.collectives import Algorithm, allreduce
from hpcvol.comm import Group


@dataclass(frozen=True)
class AllReduce:
    """Combine vectors of all ranks of `group` in place; all ranks end with the same bits.

    Args:
        group: the live ranks.
        algorithm: "auto", "ring" or "library" (`comm.algorithm`).
    """

    group: Group
    algorithm: Algorithm = "auto"

    def sum(self, vector: NDArray[Any]) -> None:
        """Replace `vector` by the sum over ranks. Collective, in place."""
        allreduce(self.group, vector, op="sum", algorithm=self.algorithm)

    def max(self, vector: NDArray[Any]) -> None:
        """Replace `vector` by the element-wise maximum over ranks. Collective, in place."""
        allreduce(self.group, vector, op="max", algorithm=self.algorithm)
