"""All-reduce of vectors that are short for the link they travel over: one message each way, and nobody waits twice."""

from typing import Any

import numpy as np

from hpcvol.codecs import Cast, Floats, Seeds
from hpcvol.collectives.choose import choose
from hpcvol.collectives.payloads import PayloadBuffer, spread
from hpcvol.comm.group import Group

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
        few = group.size <= _GATHERED_RANKS
        self._values = values
        room = numel * dtype.itemsize if values is None else values.room(numel, dtype)
        self._buffers = [PayloadBuffer(room) for _ in range(group.size)] if few else []

    def sum(self, vector: Floats) -> None:
        """Replace `vector` by its sum, the same bits on all ranks. Collective, in place."""
        if not self._buffers:
            choose(self.group, vector, "auto")(self.group, vector, "sum")
            self.sent_nbytes = vector.nbytes
            return
        mine = self._buffers[self.group.rank]
        mine.used = mine.payload.size
        if self._values is None:
            mine.payload[:] = vector.view(np.uint8)
        else:
            self._values.encode(vector, None, NO_SEEDS, mine.payload)
        self.sent_nbytes = spread(self.group, self._buffers)
        vector.fill(0)
        for buffer in self._buffers:  # in the order of ranks
            if self._values is None:
                vector += buffer.filled.view(vector.dtype)
            else:
                self._values.accumulate(buffer.filled, NO_SEEDS, vector)
