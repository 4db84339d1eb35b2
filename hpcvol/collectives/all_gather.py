"""All-gather: every rank ends with the slices of all ranks, one after the other."""

from collections.abc import Sequence

import numpy as np

from hpcvol.collectives.calling import calling
from hpcvol.collectives.checks import agreed_bounds, check_numel, check_pair, is_slice
from hpcvol.collectives.exchange import exchange
from hpcvol.collectives.slices import Bounds
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Vector


def all_gather(group: Group, vector: Vector, out: Vector, counts: Sequence[int] | None = None) -> None:
    """Write the vectors of all ranks to `out`, in the order of ranks. Collective.

    Cost, for n ranks: each sends its vector n - 1 times.

    Args:
        group: all of its ranks call this with the same `counts` and dtype, and an `out` of the same length.
        vector: dtype as for `allreduce`; left alone.
        out: as long as all vectors together; apart from `vector`, or one of which `vector` is this rank's slice.
        counts: the length of each rank's vector; the same on all ranks. By default all are equally long.

    Raises:
        TypeError, ValueError: as for `allreduce`; or lengths and counts do not fit, or `out` overlaps `vector`.
        MismatchError: members gave different counts, or are in different calls.
        MemberError: another member died.
    """
    check_pair(vector, out)
    bounds = agreed_bounds(group, counts, out.size, "the output")
    mine = out[slice(*bounds[group.rank])]
    check_numel("the input", vector.size, mine.size)
    if not is_slice(vector, out, bounds[group.rank][0], "the input this rank's slice of the output"):
        np.copyto(mine, vector)
    with calling(group, "all_gather", out):
        gather_slices(group, out, bounds)


def gather_slices(group: Group, vector: Vector, bounds: Bounds) -> None:
    """Give slice `bounds[rank]` of every rank's vector to all others. Collective, in place."""
    mine = vector[slice(*bounds[group.rank])]
    exchange(group, lambda _: mine, lambda source: vector[slice(*bounds[source])])
