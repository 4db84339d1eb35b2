"""Whether a rank waits in vain, as far as the boards and the processes of its own node tell."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hpcvol.comm import failures
from hpcvol.errors import HpcvolError

if TYPE_CHECKING:
    from hpcvol.comm.calls import Call, Calls, Progress

# Between writing two places of a board: a peer that was interrupted there needs its processor back.
_TORN_SECONDS = 0.002


def trouble(calls: "Calls", here: Callable[[], str]) -> HpcvolError | None:
    """Return why this rank waits in vain in its call, None where waiting on makes sense. Local.

    Args:
        calls: of the group; this rank is in one.
        here: returns where in its code this rank is.
    """
    mine = calls.progress(calls.me)
    for place, rank in enumerate(calls.ranks):
        theirs = calls.progress(place)
        called = theirs.called(mine.sequence)
        if called is not None:
            if called != mine.call:
                time.sleep(_TORN_SECONDS)
                if calls.progress(place) == theirs:
                    return _disagreement(calls, mine, rank, called, here())
        elif theirs.sequence < mine.sequence and calls.leaves(place):
            return failures.left(calls.names[rank], _waiting(calls, mine, here()), speaker=_speaker(calls, mine))
        awaited = theirs.sequence < mine.sequence or (theirs.inside and called is not None)
        if awaited and not calls.alive(place):
            pid = calls.processes[place].pid
            return failures.died(calls.names[rank], pid, _waiting(calls, mine, here()), speaker=_speaker(calls, mine))
    return None


def waiting_ranks(calls: "Calls", sequence: int) -> list[int]:
    """Return the ranks of this node that are in call `sequence`, and not at the end of their programs. Local."""
    seen = ((rank, calls.progress(place)) for place, rank in enumerate(calls.ranks) if not calls.leaves(place))
    return [rank for rank, one in seen if one.inside and one.sequence == sequence]


def _disagreement(calls: "Calls", mine: "Progress", rank: int, called: "Call", here: str) -> HpcvolError:
    me = calls.ranks[calls.me]
    # Both sides come here at the same time and ask each other where they are: neither may be gone when it is asked.
    calls.place = here
    if called.name == "exit":
        return failures.left(calls.names[rank], _waiting(calls, mine, here), speaker=_speaker(calls, mine))
    said = {calls.names[me]: (mine.call, calls.place), calls.names[rank]: (called, calls.locate(rank))}
    return failures.mismatch(mine.sequence, said, speaker=_speaker(calls, mine))


def _waiting(calls: "Calls", mine: "Progress", here: str) -> str:
    names = [calls.names[rank] for rank in waiting_ranks(calls, mine.sequence)]
    return failures.waiting_in(names or [calls.names[calls.ranks[calls.me]]], mine.call, mine.sequence, here)


def _speaker(calls: "Calls", mine: "Progress") -> int:
    waiting = waiting_ranks(calls, mine.sequence)
    return calls.members[min(waiting, default=calls.ranks[calls.me])]
