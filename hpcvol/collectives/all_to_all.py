"""All-to-all: every rank has a slice for every rank."""

from collections.abc import Sequence

import numpy as np

from hpcvol.collectives.calling import calling
from hpcvol.collectives.checks import check_counts, check_numel, check_pair, is_same
from hpcvol.collectives.exchange import exchange
from hpcvol.collectives.slices import bounds_of, even_bounds
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Vector
from hpcvol.errors import MismatchError


def all_to_all(
    group: Group,
    vector: Vector,
    out: Vector,
    send_counts: Sequence[int] | None = None,
    receive_counts: Sequence[int] | None = None,
) -> None:
    """Send slice r of `vector` to rank r, and write what rank r sends to slice r of `out`. Collective.

    Cost, for n ranks: each sends its vector but for its own slice, in n - 1 messages or more.

    Args:
        group: all of its ranks call this with the same dtype, and all with counts or all without.
        vector: dtype as for `allreduce`; left alone, unless it is `out` (which costs a copy).
        out: apart from `vector`, or `vector` itself.
        send_counts: elements for each rank; by default all slices are equally long.
        receive_counts: elements from each rank: what that rank has for this one. Given together with `send_counts`.

    Raises:
        TypeError, ValueError: as for `allreduce`; or lengths and counts do not fit, or `out` overlaps `vector` partly.
        MismatchError: a rank is sent another number of elements than it expects, or members are in different calls.
        MemberError: another member died.
    """
    check_pair(vector, out)
    if (send_counts is None) != (receive_counts is None):
        raise ValueError("expected both send_counts and receive_counts, or neither")
    if send_counts is None or receive_counts is None:
        check_numel("the output", out.size, vector.size)
        if vector.size % group.size:
            raise ValueError(
                f"{vector.size} elements cannot be shared out evenly between {group.size} ranks: give counts"
            )
        going = coming = even_bounds(vector.size, group.size)
    else:
        sent = check_counts(group, send_counts, "send_counts")
        received = check_counts(group, receive_counts, "receive_counts")
        check_numel("the input", vector.size, sum(sent))
        check_numel("the output", out.size, sum(received))
        _agree(group, sent, received)
        going, coming = bounds_of(sent), bounds_of(received)
    source = vector.copy() if is_same(vector, out, "the same vector") else vector
    np.copyto(out[slice(*coming[group.rank])], source[slice(*going[group.rank])])
    with calling(group, "all_to_all", vector, numel=0):
        exchange(group, lambda rank: source[slice(*going[rank])], lambda rank: out[slice(*coming[rank])])


def _agree(group: Group, sent: list[int], received: list[int]) -> None:
    """Raise on all ranks where one expects another number of elements than it will be sent. Collective."""
    counts: list[tuple[list[int], list[int]]] = group.gather_objects((sent, received))
    for source, (for_each, _) in enumerate(counts):
        for destination, (_, from_each) in enumerate(counts):
            if for_each[destination] != from_each[source]:
                raise MismatchError(
                    f"{group.name_of(source)} has {for_each[destination]} elements for {group.name_of(destination)}, "
                    f"which expects {from_each[source]}: make send_counts of the one the receive_counts of the other",
                    everywhere=True,
                )
