"""Whether a rank waits in vain, judged by what is known of the other ranks of its group."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeGuard

from hpcvol.comm import failures
from hpcvol.comm.surviving import survives_failures
from hpcvol.errors import HpcvolError

if TYPE_CHECKING:
    from hpcvol.comm.calls import Calls, Progress, Row

# Where one member ends the run for all the others see it die, and are ended a moment later: they had better be silent.
# And ranks that disagree at a meeting learn it there, on a busy machine some time after it can be seen from outside.
_SURE_SECONDS = 1.5
# Between writing two places of a board: a peer that was interrupted there needs its processor back.
_TORN_SECONDS = 0.002


class Verdict(NamedTuple):
    """Why waiting on makes no sense, and which rank of the group is the reason.

    Attributes:
        kind: what is wrong.
        rank: of the group.
        meeting: whether both sides will learn it where all meet, unless somebody does not come.
    """

    kind: Literal["mismatch", "left", "died"]
    rank: int
    meeting: bool = False


def judge(mine: "Progress", seen: Mapping[int, "Row"]) -> Verdict | None:
    """Return why a rank waits in vain in the call that it is in; None where it may not. Pure.

    Args:
        mine: the rank's progress.
        seen: what is known of ranks of its group.
    """
    leaves = mine.call is not None and mine.call.name == "exit"  # where the others come too, and say so before
    if mine.call is not None and mine.call.name == "agree":
        return None  # what becomes of deaths is agreed upon there
    for rank, row in sorted(seen.items()):
        theirs = row.progress
        called = theirs.called(mine.sequence)
        if called is not None and called != mine.call:
            meeting = mine.call is not None and mine.call.meets and called.meets
            return Verdict("left" if called.name == "exit" else "mismatch", rank, meeting)
        if theirs.sequence < mine.sequence and row.leaving and not leaves:
            return Verdict("left", rank)
        if not row.alive and (theirs.sequence < mine.sequence or (called is not None and theirs.inside)):
            return Verdict("died", rank)
    return None


def trouble(calls: "Calls", here: Callable[[], str]) -> HpcvolError | None:
    """Return why this rank waits in vain, as far as its own node tells; None where waiting on makes sense. Local.

    Args:
        calls: of the group; this rank is in one.
        here: returns where in its code this rank is.
    """
    mine = calls.progress(calls.me)
    verdict = judge(mine, calls.rows())
    if not is_sure(verdict, calls):
        return None
    if verdict.kind == "mismatch":
        time.sleep(_TORN_SECONDS)
        if judge(mine, calls.rows()) != verdict:
            return None
    # Both sides of a mismatch come here at the same time and ask each other where they are.
    calls.place = here()
    calls.about_to_raise()
    return error_for(calls, mine, verdict, calls.rows())


def is_sure(verdict: Verdict | None, calls: "Calls") -> TypeGuard[Verdict]:
    """Return whether there is a verdict to act on. Local.

    That somebody died, or that members disagree at a meeting, only when it was so for a while. Where members outlive a
    death they act on it at once: nobody ends them.
    """
    if verdict is None or not (verdict.kind == "died" or verdict.meeting):
        calls.suspicion = None
        return verdict is not None
    if verdict.kind == "died" and survives_failures():
        return True
    sequence, now = calls.identity[0], time.monotonic()
    if calls.suspicion is None or calls.suspicion[0] != sequence:
        calls.suspicion = sequence, now
    return now - calls.suspicion[1] > _SURE_SECONDS


def error_for(calls: "Calls", mine: "Progress", verdict: Verdict, seen: Mapping[int, "Row"]) -> HpcvolError:
    """Return what is to be raised on this rank, which is at `calls.place`. Local; may ask where the other one is."""
    me, place = calls.ranks[calls.me], calls.place
    name = calls.names[verdict.rank]
    ranks = waiting_ranks(mine.sequence, seen) or [me]
    speaker = calls.members[ranks[0]]
    if verdict.kind == "mismatch":
        called = seen[verdict.rank].progress.called(mine.sequence)
        said = {calls.names[me]: (mine.call, place), name: (called, calls.locate(verdict.rank))}
        return failures.mismatch(mine.sequence, said, speaker=speaker)
    waiting = failures.waiting_in([calls.names[rank] for rank in ranks], mine.call, mine.sequence, place)
    if verdict.kind == "left":
        return failures.left(name, waiting, speaker=speaker)
    return failures.died(name, waiting, speaker=speaker)


def waiting_ranks(sequence: int, seen: Mapping[int, "Row"]) -> list[int]:
    """Return the ranks that are in call `sequence`, and not at the end of their programs, in order. Pure."""
    return sorted(
        rank
        for rank, row in seen.items()
        if row.progress.inside and row.progress.sequence == sequence and not row.leaving
    )
