"""Summing gradients that a codec encodes: `strategy.codec` under the float sum."""

import math
from collections.abc import Sequence

from hpcvol import tracing
from hpcvol.codecs import Codec, Floats, LowRank
from hpcvol.collectives import Vector
from hpcvol.collectives.calling import calling
from hpcvol.collectives.direct import SharedVector
from hpcvol.collectives.encoded import EncodedSum
from hpcvol.collectives.low_rank import LowRankSum, Matrix
from hpcvol.collectives.thin import ThinSum
from hpcvol.comm import Group
from hpcvol.strategies.feedback import Feedback


class EncodedFloats:
    """Of the ranks of a node the sum, where they share memory, and between nodes payloads, at the end of the step.

    Each rank of a node encodes its own slice of the node's sum. On one node alone, where nothing is as fast as memory,
    the codec is put between all of its ranks nevertheless: it was asked for, and can be tried out.

    Args:
        group: the members.
        codec: what encodes; None sends gradients as they are, and what residuals hold with them.
        shared: gradients where they lie, of several nodes; None where ranks do not share memory or are on one node.
        vector: this rank's gradients.
        matrices: those in the vector.
        feedback: this member's residual.
        seed: of what is drawn; the same on all members.
    """

    def __init__(
        self,
        group: Group,
        codec: Codec | LowRank | None,
        shared: SharedVector | None,
        vector: Vector,
        matrices: Sequence[Matrix],
        feedback: Feedback,
        seed: int,
    ) -> None:
        self.vector = vector
        self._shared = shared
        self._feedback = feedback
        self._seed = seed
        self._number = group.carriers.number
        peers = group if shared is None else group.carriers.peers
        part = slice(0, vector.size)
        if shared is not None:
            part = shared.slice_of(group.node.rank, 0, vector.size, self._number)
        numel = part.stop - part.start
        self._low_rank = self._payloads = self._dense = None
        if peers is None:
            pass
        elif codec is None:
            self._dense = ThinSum(peers, numel, vector.dtype)
        elif isinstance(codec, LowRank):
            inside = [one.within(part.start, part.stop) for one in matrices]
            self._low_rank = LowRankSum(peers, codec, numel, vector.dtype, inside)
        else:
            self._payloads = EncodedSum(peers, codec, numel, vector.dtype)
        owns = peers is not None and peers.rank == 0
        feedback.place(group, [part], self._low_rank.factors_numel if self._low_rank else 0, owns=owns)

    def push(self, bucket: int) -> None:
        """Nothing: payloads are of whole slices."""

    def finish(self, weight: int, own: int) -> None:
        """Divide, so that residuals are of means whatever the weights are; sum within the node, then between nodes."""
        del own
        self.vector /= weight
        if self._shared is None:
            self._between(self.vector)
            return
        with tracing.span("sum within the node", nbytes=self.vector.nbytes):
            mine = self._shared.reduce_slice("sum", 0, self.vector.size, self._number)
        self._between(mine)
        self._shared.spread_slice()

    def drop(self) -> None:
        """Nothing was combined."""

    def _between(self, mine: Floats) -> None:
        residual, factors = self._feedback.begin()
        with tracing.span("all-reduce encoded", nbytes=mine.nbytes):
            if self._low_rank is not None:
                assert residual is not None
                self._low_rank.sum(mine, residual, factors, self._seed, self._feedback.step)
            elif self._payloads is not None:
                self._payloads.sum(mine, residual, self._seed, self._feedback.step)
            elif self._dense is not None:
                self._send_all(self._dense, mine, residual)

    def _send_all(self, dense: ThinSum, mine: Floats, residual: Floats | None) -> None:
        if residual is not None:
            mine += residual
            residual.fill(0)
        if dense.group.size > 1:
            with calling(dense.group, "allreduce", mine, None, "sum"):
                dense.sum(mine)


def matrices_of(shapes: Sequence[tuple[int, tuple[int, ...]]]) -> list[Matrix]:
    """Return the matrices among tensors of a flat vector: the first dimension by all others.

    Args:
        shapes: of each tensor, the element that it begins at and its shape.
    """
    found = [Matrix(start, shape[0], math.prod(shape[1:])) for start, shape in shapes if len(shape) > 1 and all(shape)]
    return sorted(found, key=lambda one: one.start)
