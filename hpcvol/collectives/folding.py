"""Algorithms over a power of two of ranks, made to serve any number: the ranks too many fold into their neighbours.

References:
    Thakur, Rabenseifner and Gropp, Optimization of collective communication operations in MPICH, IJHPCA 19 (2005),
    section 4.4.
"""

from hpcvol.collectives.arriving import beside
from hpcvol.collectives.combine import Combine
from hpcvol.collectives.slices import pieces
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Messages
from hpcvol.comm.vectors import Vector


class Fold:
    """Who takes part: of the first 2·extra ranks the odd ones, for their left neighbours too, and all further ranks.

    Args:
        group: any number of ranks.

    Attributes:
        size: how many take part: the largest power of two that is not above the group's size.
        place: of this rank among those; None where its neighbour stands for it.
    """

    def __init__(self, group: Group) -> None:
        self.size = 1 << (group.size.bit_length() - 1)
        self._extra = group.size - self.size
        self._rank = group.rank
        if group.rank >= 2 * self._extra:
            self.place: int | None = group.rank - self._extra
        else:
            self.place = group.rank // 2 if group.rank % 2 else None

    def rank_at(self, place: int) -> int:
        """Return the rank in the group of the one at `place`."""
        return 2 * place + 1 if place < self._extra else place + self._extra

    def fold_in(self, messages: Messages, vector: Vector, combine: Combine) -> None:
        """Let those who take part have the values of their neighbours in `vector` too."""
        if self.place is None:
            leaving = [messages.send(piece, self._rank + 1) for piece in pieces(vector)]
            for message in leaving:
                messages.wait(message)
        elif self._has_neighbour:
            expected = ((self._rank - 1, piece) for piece in pieces(vector))
            for theirs, mine in beside(messages, expected):
                combine(theirs, mine, out=mine)

    def fold_out(self, messages: Messages, vector: Vector) -> None:
        """Give the result to the neighbours who did not take part."""
        if self.place is None:
            for piece in pieces(vector):
                messages.receive(piece, self._rank + 1)
        elif self._has_neighbour:
            for piece in pieces(vector):
                messages.send(piece, self._rank - 1)

    @property
    def _has_neighbour(self) -> bool:
        return self._rank < 2 * self._extra
