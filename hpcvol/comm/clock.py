"""How far the clocks of ranks are apart: what they show is compared with the first rank's, by messages to and fro."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcvol.comm.calls import Call
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Messages

_ROUND_TRIPS = 16


@dataclass(frozen=True)
class ClockOffset:
    """What to add to a rank's clock to have that of the group's first rank.

    Attributes:
        offset_ns: the estimate; off by at most half a round trip. 0 where that may be the truth, as on one node, whose
            processes share their clock.
        round_trip_ns: how long the fastest exchange took; 0 on the first rank.
        at_ns: when it was measured, by this rank's own clock.
    """

    offset_ns: int
    round_trip_ns: int
    at_ns: int

    @property
    def error_ns(self) -> int:
        """Largest error of `offset_ns`."""
        return -(-self.round_trip_ns // 2)


def compare_clocks(group: Group, clock: Callable[[], int] = time.monotonic_ns) -> ClockOffset:
    """Compare this rank's clock with the first rank's. Collective: 32 messages of 8 bytes a rank, one rank at a time.

    The first rank's clock was read between sending and receiving, so that the middle of the two is off by at most half
    the time between; the fastest of 16 exchanges counts.

    Args:
        group: all of its ranks call this.
        clock: this rank's, in ns.

    Raises:
        HpcvolError: another member died, or is in another call.

    References:
        Cristian, "Probabilistic clock synchronization", Distributed Computing 3 (1989).
    """
    group.calls.begin(Call.of("compare_clocks"))
    try:
        with Messages(group) as messages:
            measured = _answer(group, messages, clock) if group.rank == 0 else _ask(messages, clock)
    except BaseException:
        group.calls.abandoned = True
        raise
    group.calls.end()
    return measured


def _answer(group: Group, messages: Messages, clock: Callable[[], int]) -> ClockOffset:
    word = np.zeros(1, np.int64)
    for rank in range(1, group.size):
        for _ in range(_ROUND_TRIPS):
            messages.wait(messages.receive(word, rank))
            word[0] = clock()
            messages.wait(messages.send(word, rank))
    return ClockOffset(0, 0, clock())


def _ask(messages: Messages, clock: Callable[[], int]) -> ClockOffset:
    word = np.zeros(1, np.int64)
    trips = []
    for _ in range(_ROUND_TRIPS):
        sent = clock()
        messages.wait(messages.send(word, 0))
        messages.wait(messages.receive(word, 0))
        received = clock()
        trips.append((received - sent, int(word[0]) - (sent + received) // 2))
    round_trip, offset = min(trips)
    within_error = abs(offset) <= -(-round_trip // 2)
    return ClockOffset(0 if within_error else offset, round_trip, clock())
