"""The exact sum in memory that the ranks of a node share: totals of fixed point are added, means of floats written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcvol.collectives.direct import SharedVector
from hpcvol.collectives.rendezvous import compiled
from hpcvol.comm.calls import Call
from hpcvol.comm.group import Group

Addresses = NDArray[np.int64]
Blocks = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def compile_for(group: Group, dtype: "np.dtype[Any]") -> None:
    """Have the kernels for means of `dtype` compiled once a node. Collective."""
    from hpcvol.kernels import combine, exact_mean

    def compile_kernels() -> None:
        nothing: Blocks = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        kind = combine.KINDS[dtype.name]
        exact_mean.spread_means(kind, 0, 0, *nothing, 1.0, 0, 0, np.zeros(0, dtype), 0, 0)
        combine.combine(np.int64, combine.SUM, 0, 1, 0, 1, 1, 0, 0)

    compiled(group, compile_kernels)


def add_slice(totals: SharedVector, part: slice, out: NDArray[np.int64], numel: int) -> None:
    """Write the sum of the slice `part` of all ranks' totals to `out`. Collective over the node.

    Args:
        totals: int64; only read, and free to change again after this.
        part: of this rank.
        out: as long as the slice.
        numel: the elements that all slices together have, the same on all ranks.
    """
    from hpcvol.kernels.combine import SUM, combine

    totals.arrive(Call.of("allreduce", np.dtype(np.int64), numel, "sum"))
    if part.stop > part.start:
        target = beginning(out, part.start)
        sources, low, high = totals.addresses, part.start * 8, part.stop * 8
        combine(np.int64, SUM, sources.ctypes.data, sources.size, target.ctypes.data, 1, 1, low, high)
    totals.depart()


def spread_means(
    means: SharedVector, sums: Sequence[tuple[Addresses, slice]], blocks: Blocks, weight: int, *, alone: bool = False
) -> None:
    """Write the means of this rank's slices to the vectors of all ranks of the node. Collective over it.

    Args:
        means: float32 or float64.
        alone: write them to this rank's vector alone.
        sums: for each slice of this rank the addresses of int64 vectors whose sum is wanted, and the slice.
        blocks: starts (ascending), numels and scales of the blocks, as for `hpcvol.kernels.fixed_point.means`.
        weight: the sum of weights.
    """
    from hpcvol.kernels import combine, exact_mean

    means.arrive(Call.of("exact_mean", means.mine.dtype, means.mine.size))
    kind, targets = combine.KINDS[means.mine.dtype.name], means.addresses
    if alone:
        targets = targets[means.node.rank : means.node.rank + 1].copy()
    for sources, part in sums:
        exact_mean.spread_means(
            kind,
            sources.ctypes.data,
            sources.size,
            *blocks,
            float(weight),
            part.start,
            part.stop,
            means.mine,
            targets.ctypes.data,
            targets.size,
        )
    means.depart()


def beginning(vector: NDArray[np.int64], first: int) -> Addresses:
    """Return, as a table of one, where a vector of int64 would begin whose element `first` is the first of `vector`."""
    return np.array([vector.ctypes.data - 8 * first], np.int64)
