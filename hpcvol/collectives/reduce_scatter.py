"""Reduce-scatter: every rank ends with one slice of what all ranks' vectors combine to."""

from collections.abc import Iterator, Sequence

import numpy as np

from hpcvol.collectives.arriving import beside
from hpcvol.collectives.calling import calling
from hpcvol.collectives.checks import agreed_bounds, check_numel, check_op, check_pair, is_slice
from hpcvol.collectives.combine import combiner, finish
from hpcvol.collectives.slices import Bounds, pieces
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Messages
from hpcvol.comm.vectors import Op, Vector


def reduce_scatter(
    group: Group, vector: Vector, out: Vector, op: Op = "sum", counts: Sequence[int] | None = None
) -> None:
    """Write this rank's slice of the element-wise `op` of all ranks' vectors to `out`. Collective.

    Slice r belongs to rank r. The vector is left alone, unless `out` is this rank's slice of it.

    Cost, for n ranks: each sends (n - 1) / n of the vector's bytes, in n - 1 messages or more.

    Args:
        group: all of its ranks call this with the same `op`, `counts`, length and dtype.
        vector: as for `allreduce`.
        out: as long as this rank's slice; apart from `vector`, or exactly this rank's slice of it.
        op: as for `allreduce`.
        counts: the length of each rank's slice; the same on all ranks. By default all are equally long.

    Raises:
        TypeError, ValueError: as for `allreduce`; or lengths and counts do not fit, or `out` overlaps `vector`.
        MismatchError: members gave different counts, or are in different calls.
        MemberError: another member died.
    """
    check_pair(vector, out)
    check_op(op, vector.dtype)
    bounds = agreed_bounds(group, counts, vector.size, "the input")
    mine = vector[slice(*bounds[group.rank])]
    check_numel("the output", out.size, mine.size)
    if not is_slice(out, vector, bounds[group.rank][0], "the output this rank's slice of the input"):
        np.copyto(out, mine)
    with calling(group, "reduce_scatter", vector, op=op):
        reduce_slices(group, vector, out, bounds, op)
        finish(op, out, group.size)


def reduce_slices(group: Group, vector: Vector, out: Vector, bounds: Bounds, op: Op) -> None:
    """Combine slice `bounds[rank]` of all other ranks' vectors into `out`, which holds this rank's own. Collective.

    Always in the same order: this rank's own values, then those of the rank before it, and so on round the group. A
    mean is a sum until `finish`.
    """
    combine = combiner(op, vector.dtype)
    with Messages(group) as messages:

        def expected() -> Iterator[tuple[int, Vector]]:
            for distance in range(1, group.size):
                destination = (group.rank + distance) % group.size
                for piece in pieces(vector[slice(*bounds[destination])]):
                    messages.send(piece, destination)
                for piece in pieces(out):
                    yield (group.rank - distance) % group.size, piece

        for theirs, mine in beside(messages, expected()):
            combine(mine, theirs, out=mine)
