"""Ring all-reduce: reduce-scatter, then all-gather, each rank talking to its two neighbours only.

References:
    Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, JPDC 69 (2009), section 3.
"""

from collections import defaultdict
from collections.abc import Iterator

from hpcvol.collectives.arriving import beside, in_order
from hpcvol.collectives.combine import combiner, finish
from hpcvol.collectives.slices import even_bounds, pieces
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Message, Messages
from hpcvol.comm.vectors import Op, Vector


def allreduce(group: Group, vector: Vector, op: Op, exchanging: type[Messages] = Messages) -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    The vector is cut into one chunk a rank. In the first round trip each chunk collects the values of all ranks as it
    passes, and ends complete on one rank; in the second the complete chunks go round and are copied. Chunks travel in
    pieces, and a piece goes on as soon as it is combined.

    Same bits on all ranks: every chunk is combined along one path, in the order of ranks, and then only copied.

    Cost, for n ranks: each sends 2 (n - 1) / n of the vector's bytes, in 2 (n - 1) messages or more.

    Args:
        group: all of its ranks call this with the same operation, length and dtype.
        vector: as for `hpcvol.collectives.allreduce`.
        op: likewise.
        exchanging: what messages are like.
    """
    if group.size == 1:
        return
    combine = combiner(op, vector.dtype)
    chunks = [vector[start:stop] for start, stop in even_bounds(vector.size, group.size)]
    right, left, last = (group.rank + 1) % group.size, (group.rank - 1) % group.size, group.size - 1
    with exchanging(group) as messages:
        # By chunk, because a piece that was sent may not be overwritten before it has left.
        sent: dict[int, list[Message]] = defaultdict(list)

        def pass_on(chunk: int, piece: Vector) -> None:
            sent[chunk].append(messages.send(piece, right))

        def passing(first: int) -> list[tuple[int, Vector]]:
            """The pieces of all chunks but one in the order in which they pass, beginning with chunk `first`."""
            order = [(first - step) % group.size for step in range(last)]
            return [(chunk, piece) for chunk in order for piece in pieces(chunks[chunk])]

        for piece in pieces(chunks[group.rank]):
            pass_on(group.rank, piece)
        collecting, complete = passing(group.rank - 1), (group.rank + 1) % group.size
        coming = beside(messages, ((left, piece) for _, piece in collecting))
        for (theirs, mine), (chunk, _) in zip(coming, collecting, strict=True):
            combine(theirs, mine, out=mine)
            if chunk == complete:
                finish(op, mine, group.size)
            pass_on(chunk, mine)

        def copies() -> Iterator[tuple[Message, tuple[int, Vector]]]:
            leaving = {chunk: iter(list(of_chunk)) for chunk, of_chunk in sent.items()}
            for chunk, piece in passing(group.rank):
                messages.wait(next(leaving[chunk]))
                yield messages.receive(piece, left), (chunk, piece)

        for chunk, piece in in_order(messages, copies()):
            if chunk != (group.rank + 2) % group.size:
                pass_on(chunk, piece)
