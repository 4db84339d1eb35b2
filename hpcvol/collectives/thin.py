"""All-reduce of vectors that are short for the link they travel over: one message each way, and nobody waits twice."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcvol.codecs import Cast, Floats, Seeds
from hpcvol.collectives.choose import choose
from hpcvol.collectives.payloads import PIECE_NBYTES, others
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Messages

# With more ranks everybody would send too much to too many.
_GATHERED_RANKS = 4
NO_SEEDS = Seeds(0, 0)  # of casts, which draw nothing


class ThinSum:
    """Sums vectors of one length over the ranks of a group. Made alike on all ranks, for calls within a collective.

    Args:
        group: all of its ranks make the same calls.
        numel: elements of the vectors.
        dtype: float32 or float64.
        values: what elements are numbers of, so that they can be sent as such; None: of `dtype`.

    Attributes:
        sent_nbytes: how many bytes the last call has sent, as far as is known.
    """

    def __init__(self, group: Group, numel: int, dtype: "np.dtype[Any]", values: Cast | None = None) -> None:
        self.group = group
        self.sent_nbytes = 0
        self._gathers = group.size <= _GATHERED_RANKS
        self._values = values
        self.nbytes = numel * dtype.itemsize if values is None else values.room(numel, dtype)
        self._sent = [np.empty(self.nbytes if self._gathers else 0, np.uint8) for _ in range(group.size)]

    def sum(self, vector: Floats) -> None:
        """Replace `vector` by its sum, the same bits on all ranks. Collective, in place."""
        with Messages(self.group) as messages:
            self.begin(messages, vector)()

    def begin(self, messages: Messages, vector: Floats) -> Callable[[], None]:
        """Start to send `vector`, and return what replaces it by its sum, the same bits on all ranks. Collective.

        Several may be under way, begun in one order and ended in one order on all ranks.
        """
        group = self.group
        if not self._gathers:
            self.sent_nbytes = vector.nbytes
            return lambda: choose(group, vector, "auto")(group, vector, "sum")
        arriving = [
            messages.receive(piece, source)
            for source in reversed(others(group))
            for piece in _pieces(self._sent[source])
        ]
        mine = self._sent[group.rank]
        if self._values is None:
            mine[:] = vector.view(np.uint8)
        else:
            self._values.encode(vector, None, NO_SEEDS, mine)
        for rank in others(group):
            for piece in _pieces(mine):
                messages.send(piece, rank)
        self.sent_nbytes = (group.size - 1) * self.nbytes

        def finish() -> None:
            for message in arriving:
                messages.wait(message)
            vector.fill(0)
            for sent in self._sent:  # in the order of ranks
                if self._values is None:
                    np.add(vector, sent.view(vector.dtype), out=vector)
                else:
                    self._values.accumulate(sent, NO_SEEDS, vector)

        return finish


def _pieces(memory: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [memory[start : start + PIECE_NBYTES] for start in range(0, memory.size, PIECE_NBYTES)]
