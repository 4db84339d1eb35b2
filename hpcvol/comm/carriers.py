"""Which ranks of a node carry data to other nodes, and to whom."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcvol.comm.faults import letting_nobody_wait

if TYPE_CHECKING:
    from hpcvol.comm.group import Group


@dataclass(frozen=True)
class Carriers:
    """The first `number` ranks of every node: as many as the smallest node has.

    Attributes:
        number: carriers a node.
        node_sizes: ranks of each node, in the order of their first ranks.
        peers: the carriers of all nodes that have this one's place in their node, this one among them; None where this
            rank carries nothing, or there is no other node.
    """

    number: int
    node_sizes: tuple[int, ...]
    peers: "Group | None"


def find_carriers(group: "Group") -> Carriers:
    """Return the carriers of `group`. Collective: a small gather and a split."""
    node = group.node
    with letting_nobody_wait(group.communicator):
        firsts: list[tuple[int, int]] = group.communicator.allgather((node.members[0], node.size))
    sizes = dict(firsts)
    number = min(sizes.values())
    if len(sizes) == 1:
        return Carriers(number, (number,), None)
    # All ranks have to split; those that carry nothing are left with a group that nobody uses.
    peers = group.part(min(node.rank, number))
    if node.rank >= number:
        peers.close()
    return Carriers(number, tuple(sizes.values()), peers if node.rank < number else None)
