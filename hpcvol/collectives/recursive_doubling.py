"""Recursive doubling: everybody exchanges everything with partners at distance 1, 2, 4, ... For short vectors.

References:
    Thakur, Rabenseifner and Gropp, Optimization of collective communication operations in MPICH, IJHPCA 19 (2005),
    section 4.4.
"""

import numpy as np

from hpcvol.collectives.combine import combiner, finish
from hpcvol.collectives.folding import Fold
from hpcvol.collectives.slices import pieces
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Messages
from hpcvol.comm.vectors import Op, Vector


def allreduce(group: Group, vector: Vector, op: Op) -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    Same bits on all ranks: the two of a pair combine the same two values, that of the lower rank first.

    Cost, for n ranks: log2 n messages of the whole vector (two more where n is no power of two).
    """
    if group.size == 1:
        return
    combine = combiner(op, vector.dtype)
    fold = Fold(group)
    with Messages(group) as messages:
        fold.fold_in(messages, vector, combine)
        if fold.place is not None:
            distance = 1
            while distance < fold.size:
                other = fold.place ^ distance
                partner = fold.rank_at(other)
                for mine in pieces(vector):
                    theirs = np.empty(mine.size, mine.dtype)
                    coming = messages.receive(theirs, partner)
                    leaving = messages.send(mine, partner)
                    messages.wait(coming)
                    messages.wait(leaving)
                    lower, higher = (theirs, mine) if other < fold.place else (mine, theirs)
                    combine(lower, higher, out=mine)
                distance *= 2
            finish(op, vector, group.size)
        fold.fold_out(messages, vector)
