"""Scatter: one rank has a slice for every rank."""

from collections.abc import Sequence

import numpy as np

from hpcvol.collectives.calling import calling
from hpcvol.collectives.checks import agreed_counts, check_numel, check_pair, check_root, check_vector, is_slice
from hpcvol.collectives.exchange import exchange
from hpcvol.collectives.slices import bounds_of
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Vector


def scatter(
    group: Group, vector: Vector | None, out: Vector, root: int = 0, counts: Sequence[int] | None = None
) -> None:
    """Write slice r of the vector of rank `root` to `out` of rank r. Collective.

    Args:
        group: all of its ranks call this with the same `root`, `counts` and dtype.
        vector: on `root` as long as all slices together; dtype as for `allreduce`; left alone. Elsewhere not looked at.
        out: as long as this rank's slice; on `root` apart from `vector`, or this rank's slice of it.
        root: the rank whose slices the others get.
        counts: the length of each rank's slice; the same on all ranks. By default all are equally long.

    Raises:
        TypeError, ValueError: as for `allreduce`; or lengths and counts do not fit, `root` has no `vector`, there is no
            rank `root`, or `out` overlaps `vector` otherwise.
        MismatchError: members gave different counts, or are in different calls.
        MemberError: another member died.
    """
    check_vector(out, written=True)
    check_root(group, root)
    numels = [out.size] * group.size if counts is None else agreed_counts(group, counts)
    check_numel("the output", out.size, numels[group.rank])
    bounds = bounds_of(numels)
    if group.rank == root:
        if vector is None:
            raise ValueError(f"rank {root} is the root of this scatter: it needs an input")
        check_pair(vector, out)
        check_numel("the input", vector.size, sum(numels))
        mine = vector[slice(*bounds[root])]
        if not is_slice(out, vector, bounds[root][0], "the output this rank's slice of the input"):
            np.copyto(out, mine)
    with calling(group, "scatter", out, numel=0 if counts is not None else out.size):
        exchange(
            group,
            lambda destination: (
                vector[slice(*bounds[destination])] if vector is not None and group.rank == root else None
            ),
            lambda source: out if source == root else None,
        )
