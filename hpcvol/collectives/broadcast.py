"""Broadcast: every rank ends with the vector of one.

References:
    Thakur, Rabenseifner and Gropp, Optimization of collective communication operations in MPICH, IJHPCA 19 (2005),
    section 4.2 (scatter and all-gather for long vectors, after van de Geijn).
"""

import numpy as np

from hpcvol.collectives.arriving import in_order
from hpcvol.collectives.calling import calling
from hpcvol.collectives.checks import check_root, check_vector
from hpcvol.collectives.exchange import exchange
from hpcvol.collectives.slices import even_bounds, pieces
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Messages
from hpcvol.comm.vectors import Vector

_TREE_NBYTES = 1 << 16


def broadcast(group: Group, vector: Vector, root: int = 0) -> None:
    """Replace `vector` by that of rank `root` on all ranks of `group`. Collective, in place.

    Cost, for n ranks: log2 n messages up to 64 KiB; above, each rank sends and receives its bytes about once more.

    Args:
        group: all of its ranks call this with the same `root`, length and dtype.
        vector: as for `allreduce`.
        root: the rank whose values all get.

    Raises:
        TypeError, ValueError: as for `allreduce`; or there is no rank `root`.
        MismatchError: members are in different calls.
        MemberError: another member died.
    """
    check_vector(vector, written=True)
    check_root(group, root)
    with calling(group, "broadcast", vector):
        if group.size == 1:
            return
        if group.size == 2 or vector.nbytes <= _TREE_NBYTES:
            _down_a_tree(group, vector, root)
        else:
            _in_slices(group, vector, root)


def _down_a_tree(group: Group, vector: Vector, root: int) -> None:
    """Binomial: in every round all ranks that have the vector send it on."""
    place = (group.rank - root) % group.size
    # The lowest bit that is set in a rank's place tells its parent, the bits below it its children.
    lowest = place & -place if place else 1 << (group.size - 1).bit_length()
    below = [bit for bit in _powers_below(lowest) if place + bit < group.size]
    children = [(place + bit + root) % group.size for bit in below]
    with Messages(group) as messages:
        if place:
            parent = (place - lowest + root) % group.size
            arrived = in_order(messages, ((messages.receive(piece, parent), piece) for piece in pieces(vector)))
        else:
            arrived = pieces(vector)
        for piece in arrived:
            for child in children:
                messages.send(piece, child)


def _powers_below(number: int) -> list[int]:
    return [1 << bit for bit in reversed(range(number.bit_length() - 1))]


def _in_slices(group: Group, vector: Vector, root: int) -> None:
    """Deal slices out, and let everybody pass on its own."""
    bounds = even_bounds(vector.size, group.size)
    mine = vector[slice(*bounds[group.rank])]
    is_root = group.rank == root
    exchange(
        group,
        lambda destination: vector[slice(*bounds[destination])] if is_root else None,
        lambda source: mine if source == root else None,
    )
    exchange(
        group,
        lambda destination: None if destination == root else mine,
        lambda source: None if is_root else vector[slice(*bounds[source])],
    )


def broadcast_bytes(group: Group, content: bytes) -> bytes:
    """Return the `content` of rank 0 on all ranks, of any length; within a call, so that waiting ends where it must."""
    length = np.array([len(content)])
    _down_a_tree(group, length, 0)
    data = np.frombuffer(content, np.uint8).copy() if group.rank == 0 else np.empty(int(length[0]), np.uint8)
    _down_a_tree(group, data, 0)
    return data.tobytes()
