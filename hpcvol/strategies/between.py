"""The steps between nodes, which go on in a thread while gradients of further buckets are computed."""

from collections.abc import Callable

import numpy as np

from hpcvol import tracing
from hpcvol.collectives import Vector, narrow
from hpcvol.collectives.choose import choose, table_of
from hpcvol.collectives.direct import SharedVector
from hpcvol.comm import Group
from hpcvol.comm.failures import died, enumerate_names
from hpcvol.comm.surviving import survives_failures
from hpcvol.strategies.in_turn import InTurn

# Shorter vectors of integers are not worth a ring: few messages count more than few bytes.
_SHORT_NBYTES = 2**15


class Between:
    """Combines slices over the nodes of a group, bucket after bucket. Made collectively.

    Args:
        turns: the thread, and its group.
        ready: int64[buckets], shared by the ranks of each node: how often each has given each bucket.
    """

    def __init__(self, turns: InTurn, ready: SharedVector) -> None:
        self._turns = turns
        self._ready = ready
        self._ready.mine.fill(0)
        self.group: Group = turns.group
        self._peers = self.group.carriers.peers
        if self._peers is not None:
            table_of(self._peers)

    def give(self, bucket: int, combine: Callable[[], None]) -> None:
        """Let `combine` run once all ranks of this node have given this bucket."""
        self._ready.mine[bucket] += 1
        times = int(self._ready.mine[bucket])

        def job() -> None:
            # Not in the kernel that meets the others, which looks without pause: they may be computing for long.
            with tracing.span("wait for this node", bucket=bucket):
                self.group.waiting.until(lambda: self._all_gave(bucket, times), self._may_yet_give)
            with tracing.span("all-reduce sum", bucket=bucket):
                combine()

        self._turns.give(job)

    def wait(self) -> None:
        """Wait for all buckets that were given."""
        with tracing.span("wait for buckets"):
            self._turns.wait()

    def sum(self, mine: Vector) -> None:
        """Replace the slice that this rank carries by its sum over all nodes."""
        if self._peers is None:
            return
        if mine.dtype == np.int64 and mine.nbytes > _SHORT_NBYTES:
            narrow.allreduce(self._peers, mine)
        else:
            choose(self._peers, mine, "auto")(self._peers, mine, "sum")

    def _may_yet_give(self) -> None:
        """Return if the ranks of this node may yet give what is waited for. Local.

        Raises:
            LostMemberError: one of them has died, or others know of a death and have given this step up.
        """
        self.group.poll()
        if survives_failures():  # elsewhere the launcher ends the run
            self.group.progress()
            dead = [rank for rank, row in self.group.calls.rows().items() if not row.alive]
            if dead:
                raise died(enumerate_names([self.group.name_of(rank) for rank in dead]), "its node combined gradients")

    def _all_gave(self, bucket: int, times: int) -> bool:
        return all(int(vector[bucket]) >= times for vector in self._ready.of)
