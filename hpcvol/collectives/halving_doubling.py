"""Recursive halving and doubling: a reduce-scatter that halves what is exchanged each time, then its mirror image.

References:
    Rabenseifner, Optimization of collective reduction operations, ICCS 2004, section 2.
"""

from hpcvol.collectives.arriving import beside
from hpcvol.collectives.combine import Combine, combiner, finish
from hpcvol.collectives.folding import Fold
from hpcvol.collectives.slices import pieces
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Message, Messages
from hpcvol.comm.vectors import Op, Vector


def allreduce(group: Group, vector: Vector, op: Op) -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    Same bits on all ranks: each element is combined along one tree, which ends on one rank, and then only copied.

    Cost, for n ranks: 2 log2 n messages, 2 (n - 1) / n of the vector's bytes (both more where n is no power of two: two
    messages, and twice the vector's bytes for those who stand for a neighbour).
    """
    if group.size == 1:
        return
    combine = combiner(op, vector.dtype)
    fold = Fold(group)
    with Messages(group) as messages:
        fold.fold_in(messages, vector, combine)
        if fold.place is not None:
            levels = _halve(messages, fold, vector, combine)
            own = vector[levels[-1].start : levels[-1].stop] if levels else vector
            finish(op, own, group.size)
            for level in reversed(levels):
                level.double(messages, vector)
        fold.fold_out(messages, vector)


class _Level:
    """One exchange of the halving: with whom, what this rank kept, and what it gave away."""

    def __init__(self, partner: int, start: int, stop: int, gave: tuple[int, int], leaving: list[Message]) -> None:
        self.partner, self.start, self.stop = partner, start, stop
        self._gave, self._leaving = gave, leaving

    def double(self, messages: Messages, vector: Vector) -> None:
        """Undo the halving: what was kept is complete by now, and so is what the partner kept."""
        for message in self._leaving:
            messages.wait(message)
        coming = [messages.receive(piece, self.partner) for piece in pieces(vector[slice(*self._gave)])]
        for piece in pieces(vector[self.start : self.stop]):
            messages.send(piece, self.partner)
        for message in coming:
            messages.wait(message)


def _halve(messages: Messages, fold: Fold, vector: Vector, combine: Combine) -> list[_Level]:
    assert fold.place is not None
    levels: list[_Level] = []
    start, stop, distance = 0, vector.size, fold.size // 2
    while distance:
        other = fold.place ^ distance
        partner, is_lower = fold.rank_at(other), fold.place < other
        middle = (start + stop) // 2
        keep, give = ((start, middle), (middle, stop)) if is_lower else ((middle, stop), (start, middle))
        leaving = [messages.send(piece, partner) for piece in pieces(vector[slice(*give)])]
        expected = ((partner, piece) for piece in pieces(vector[slice(*keep)]))
        for theirs, mine in beside(messages, expected):
            lower, higher = (mine, theirs) if is_lower else (theirs, mine)
            combine(lower, higher, out=mine)
        start, stop = keep
        levels.append(_Level(partner, start, stop, give, leaving))
        distance //= 2
    return levels
