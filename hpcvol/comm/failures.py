"""The errors of members that wait in vain: who is to blame, and where in the code both sides are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hpcvol.errors import CommError, LostMemberError, MismatchError

if TYPE_CHECKING:
    from hpcvol.comm.calls import Call

_SAME = (
    "All have to make the same calls in the same order: look for a branch that depends on the rank, on local data, or "
    "on an exception that was caught"
)


def mismatch(sequence: int, said: Mapping[str, tuple["Call | None", str]], *, speaker: int | None = None) -> CommError:
    """Return the error that shows what some members (by name, two at least) called as number `sequence`, and where.

    Args:
        sequence: the number.
        said: call and place in the code ("" where unknown) by name of the member.
        speaker: the member that reports it.
    """
    sides: dict[str, list[str]] = {}
    for name, (call, place) in said.items():
        sides.setdefault(f"{call}{place and f' at {place}'}", []).append(name)
    lines = "".join(f"\n  {enumerate_names(names)} {_verb('call', names)} {side}" for side, names in sides.items())
    return MismatchError(
        f"members disagree about collective call {sequence} of their group:{lines}\n{_SAME}",
        everywhere=True,
        speaker=speaker,
    )


def died(name: str, waiting: str, *, speaker: int | None = None) -> LostMemberError:
    """Return the error for a member that is gone; `waiting` says who waits for it in what."""
    return LostMemberError(
        f"{name} has died while {waiting}: see what it said last, and whether the system killed it for the "
        "memory that it used (dmesg, or the job's accounting)",
        everywhere=True,
        speaker=speaker,
    )


def left(name: str, waiting: str, *, speaker: int | None = None) -> CommError:
    """Return the error for a member whose program came to its end before those of the others."""
    return MismatchError(
        f"{name} came to the end of its program while {waiting}. {_SAME}; or for an exit, return or break that only "
        "some of them reach",
        everywhere=True,
        speaker=speaker,
    )


def waiting_in(names: Sequence[str], call: "Call | None", sequence: int, place: str) -> str:
    """Return such as `members 0 and 2 wait for it in barrier (collective call 7) at train.py:12 main`."""
    at = place and f" at {place}"
    return f"{enumerate_names(names)} {_verb('wait', names)} for it in {call} (collective call {sequence}){at}"


def enumerate_names(names: Sequence[str], limit: int = 8) -> str:
    """Return `a, b and c`; where there are more than `limit`, how many more."""
    shown = [*names[:limit], *([f"{len(names) - limit} more"] if len(names) > limit else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _verb(verb: str, names: Sequence[str]) -> str:
    return f"{verb}s" if len(names) == 1 else verb
