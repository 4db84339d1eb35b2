"""All-reduce: every step, every rank ends with the sum of all ranks' vectors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcvol import tracing
from hpcvol.collectives import Algorithm, Vector, allreduce, check_algorithm
from hpcvol.comm import Group
from hpcvol.kernels import fixed_point
from hpcvol.strategies.reducer import Blocks, Buckets, ExactReducer, FloatReducer

BUCKET_NBYTES = 4 * 2**20


@dataclass(frozen=True)
class AllReduce:
    """Combine vectors of all ranks of `group` in place; all ranks end with the same bits.

    Args:
        group: the live ranks.
        algorithm: as for `hpcvol.collectives.allreduce` (`comm.algorithm`).
        bucket_nbytes: how many bytes of gradients are combined at once (`comm.bucket_nbytes`).

    Raises:
        ConfigError: an algorithm that cannot work over the group.
    """

    group: Group
    algorithm: Algorithm = "auto"
    bucket_nbytes: int = BUCKET_NBYTES

    def __post_init__(self) -> None:
        check_algorithm(self.group, self.algorithm)

    def sum(self, vector: NDArray[Any]) -> None:
        """Replace `vector` by the sum over ranks. Collective, in place."""
        with tracing.span("all-reduce sum", nbytes=vector.nbytes):
            allreduce(self.group, vector, op="sum", algorithm=self.algorithm)

    def max(self, vector: NDArray[Any]) -> None:
        """Replace `vector` by the element-wise maximum over ranks. Collective, in place."""
        with tracing.span("all-reduce max", nbytes=vector.nbytes):
            allreduce(self.group, vector, op="max", algorithm=self.algorithm)

    def floats(self, numel: int, dtype: np.dtype[Any], buckets: Buckets) -> FloatReducer:
        """Return what sums a step's gradients in floating point. Collective."""
        return _Floats(self, numel, dtype, buckets)

    def exact(self, numel: int, dtype: np.dtype[Any], buckets: Buckets) -> ExactReducer:
        """Return what sums a step's gradients in integers and gives their means in `dtype`. Collective."""
        return _Exact(self, numel, dtype, buckets)


class _Floats:
    def __init__(self, strategy: AllReduce, numel: int, dtype: np.dtype[Any], buckets: Buckets) -> None:
        self.vector: Vector = np.zeros(numel, dtype)
        self._strategy = strategy
        self._buckets = buckets

    def push(self, bucket: int) -> None:
        """Nothing: all is combined at the end."""

    def finish(self, weight: int) -> None:
        for start, stop in self._buckets:
            self._strategy.sum(self.vector[start:stop])
        self.vector /= weight


class _Exact:
    def __init__(self, strategy: AllReduce, numel: int, dtype: np.dtype[Any], buckets: Buckets) -> None:
        self.totals = np.zeros(numel, np.int64)
        self.means: Vector = np.zeros(numel, dtype)
        self._strategy = strategy
        self._buckets = buckets

    def push(self, bucket: int) -> None:
        """Nothing: all is combined at the end."""

    def drop(self) -> None:
        """Nothing was combined."""

    def finish(self, blocks: Blocks, weight: int) -> None:
        total = self.totals.copy()
        for start, stop in self._buckets:
            self._strategy.sum(total[start:stop])
        fixed_point.means(total, blocks.starts, blocks.numels, blocks.scales, float(weight), self.means)
