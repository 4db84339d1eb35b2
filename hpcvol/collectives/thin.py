"""All-reduce of vectors that are short for the link they travel over: one message each way, and nobody waits twice."""

from typing import Any

import numpy as np

from hpcvol.codecs import Floats
from hpcvol.collectives.choose import choose
from hpcvol.collectives.payloads import PayloadBuffer, spread
from hpcvol.comm.group import Group

# With more ranks everybody would send too much to too many.
_GATHERED_RANKS = 4


class ThinSum:
    """Sums vectors of one length over the ranks of a group. Made alike on all ranks, for calls within a collective.

    Args:
        group: all of its ranks make the same calls.
        numel: elements of the vectors.
        dtype: float32 or float64.
    """

    def __init__(self, group: Group, numel: int, dtype: "np.dtype[Any]") -> None:
        self._group = group
        few = group.size <= _GATHERED_RANKS
        self._buffers = [PayloadBuffer(numel * dtype.itemsize) for _ in range(group.size)] if few else []

    def sum(self, vector: Floats) -> int:
        """Replace `vector` by its sum, the same bits on all ranks. Collective, in place.

        Returns:
            How many bytes were sent, as far as is known.
        """
        if not self._buffers:
            choose(self._group, vector, "auto")(self._group, vector, "sum")
            return vector.nbytes
        mine = self._buffers[self._group.rank]
        mine.used = vector.nbytes
        mine.payload[:] = vector.view(np.uint8)
        sent_nbytes = spread(self._group, self._buffers)
        vector.fill(0)
        for buffer in self._buffers:  # in the order of ranks
            vector += buffer.filled.view(vector.dtype)
        return sent_nbytes
