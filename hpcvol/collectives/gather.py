"""Gather: one rank ends with the vectors of all ranks, one after the other."""

from collections.abc import Sequence

import numpy as np

from hpcvol.collectives.calling import calling
from hpcvol.collectives.checks import agreed_counts, check_numel, check_pair, check_root, check_vector, is_slice
from hpcvol.collectives.exchange import exchange
from hpcvol.collectives.slices import bounds_of
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Vector


def gather(
    group: Group, vector: Vector, out: Vector | None = None, root: int = 0, counts: Sequence[int] | None = None
) -> None:
    """Write the vectors of all ranks to `out` of rank `root`, in the order of ranks. Collective.

    Args:
        group: all of its ranks call this with the same `root`, `counts` and dtype.
        vector: dtype as for `allreduce`; left alone.
        out: on `root` as long as all vectors together, and apart from `vector`, or one of which `vector` is this rank's
            slice. Elsewhere not looked at.
        root: the rank that gets all.
        counts: the length of each rank's vector; the same on all ranks. By default all are equally long.

    Raises:
        TypeError, ValueError: as for `allreduce`; or lengths and counts do not fit, `root` has no `out`, there is no
            rank `root`, or `out` overlaps `vector` otherwise.
        MismatchError: members gave different counts, or are in different calls.
        MemberError: another member died.
    """
    check_vector(vector, written=False)
    check_root(group, root)
    numels = [vector.size] * group.size if counts is None else agreed_counts(group, counts)
    check_numel("the input", vector.size, numels[group.rank])
    bounds = bounds_of(numels)
    if group.rank == root:
        if out is None:
            raise ValueError(f"rank {root} is the root of this gather: it needs an output")
        check_pair(vector, out)
        check_numel("the output", out.size, sum(numels))
        mine = out[slice(*bounds[root])]
        if not is_slice(vector, out, bounds[root][0], "the input this rank's slice of the output"):
            np.copyto(mine, vector)
    with calling(group, "gather", vector, numel=0 if counts is not None else vector.size):
        exchange(
            group,
            lambda destination: vector if destination == root else None,
            lambda source: out[slice(*bounds[source])] if out is not None and group.rank == root else None,
        )
