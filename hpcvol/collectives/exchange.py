"""Everybody sends to everybody: what gather, scatter, all-gather and all-to-all have in common."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

from hpcvol.collectives.arriving import in_order
from hpcvol.collectives.slices import pieces
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Message, Messages
from hpcvol.comm.vectors import Vector

# What there is for a rank, or from it; None for nothing.
Share: TypeAlias = Callable[[int], Vector | None]

# Receives that are open at a time.
_DEPTH = 8


def exchange(group: Group, outgoing: Share, incoming: Share) -> None:
    """Send `outgoing(rank)` to every other rank, and receive `incoming(rank)` from it. Collective.

    At distance 1, 2, 3, ... in turn, so that no rank is sent to by all others at once.
    """

    def receives(messages: Messages) -> Iterator[tuple[Message, None]]:
        for distance in range(1, group.size):
            destination, source = (group.rank + distance) % group.size, (group.rank - distance) % group.size
            for piece in _pieces(outgoing(destination)):
                messages.send(piece, destination)
            for piece in _pieces(incoming(source)):
                yield messages.receive(piece, source), None

    with Messages(group) as messages:
        for _ in in_order(messages, receives(messages), _DEPTH):
            pass


def _pieces(vector: Vector | None) -> Iterator[Vector]:
    return iter(()) if vector is None else pieces(vector)
