"""The report of a member that waits for long: for whom, and what that one is doing. Pure text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcvol.comm.accounts import Account
from hpcvol.comm.calls import Progress, Row
from hpcvol.comm.failures import enumerate_names
from hpcvol.comm.stacks import Stack, outside_of_waiting, site

_MAX_FRAMES = 12
_NS = 1e-9


@dataclass(frozen=True)
class Case:
    """A call that does not end.

    Attributes:
        mine: what the reporting member is in.
        seconds: how long it has waited.
        names: of the group's members, by rank.
        seen: what is known of them, by rank.
        accounts: of those that are to be told about, by name: whoever is missing, then whom they wait for.
        place: where in its code the reporting member is.
        pid: of the reporting member's process.
        host: that it is on.
    """

    mine: Progress
    seconds: float
    names: Sequence[str]
    seen: Mapping[int, Row]
    accounts: Sequence[Account]
    place: str
    pid: int
    host: str

    @property
    def missing(self) -> list[int]:
        """Ranks that have not come to the call, or of which nothing is known."""
        return missing_ranks(self.mine, self.seen, len(self.names))


def missing_ranks(mine: Progress, seen: Mapping[int, Row], size: int) -> list[int]:
    """Return the ranks of a group of `size` that are not known to have come to the call of `mine`. Pure."""
    return [rank for rank in range(size) if rank not in seen or seen[rank].progress.sequence < mine.sequence]


def notice(case: Case) -> str:
    """Return one line for a wait that has a reason."""
    who = case.accounts[0]
    others = f" (and {len(case.missing) - 1} more)" if len(case.missing) > 1 else ""
    return f"hpcvol: waiting for {case.seconds:.0f} s: {who.name}{others} {who.condition()}"


def report(case: Case, abort_seconds: float, *, ends: bool = False, killed: Sequence[str] = ()) -> str:
    """Return the report.

    Args:
        case: what it is about.
        abort_seconds: after what time of waiting the run ends, 0: never.
        ends: whether the waiting ends now, and with it the run, unless somebody was
        killed: names of the members that kept the others waiting, which go on without them.
    """
    mine, missing = case.mine, case.missing
    waiting = [name for rank, name in enumerate(case.names) if rank not in missing]
    whom = f"{enumerate_names([case.names[rank] for rank in missing])} in" if missing else "the end of"
    kind = "error: waited" if ends else "warning: waiting"
    lines = [
        f"hpcvol: {kind} for {case.seconds:.0f} s for {whom} collective call {mine.sequence}, {mine.call}",
        f"  {enumerate_names(waiting)} {'waits' if len(waiting) == 1 else 'wait'} at {case.place}",
    ]
    if not missing:
        lines.append("  all members are in it: the network is slow or broken, or one of them stands still")
    for account in case.accounts:
        lines += [f"  {line}" for line in _about(account, case)]
    if case.accounts and all(account.answered and account.waits is not None for account in case.accounts):
        lines.append("  they wait for each other in calls of different groups: a deadlock")
    if killed:
        have = "has" if len(killed) == 1 else "have"
        limit = f"that is longer than {abort_seconds:g} s (comm.abort_seconds)"
        lines.append(f"  {limit}: {enumerate_names(killed)} {have} been killed, for the others to go on")
    elif ends:
        lines.append(f"  that is longer than {abort_seconds:g} s (comm.abort_seconds): ending the run")
    else:
        lines.append(f"  all stacks of all members: kill -USR2 {case.pid} on {case.host}")
        lines += [f"  after {abort_seconds:g} s (comm.abort_seconds) the run ends"] if abort_seconds else []
    return "\n".join(lines)


def _about(account: Account, case: Case) -> list[str]:
    lines = [f"{account.name}, process {account.pid}, {account.condition()}"]
    row = next((row for rank, row in case.seen.items() if case.names[rank] == account.name), None)
    if row is not None:
        lines.append(f"  {_last(row.progress, case)}")
    if account.main:
        lines += ["  its main thread is at", *(f"    {line}" for line in _frames(account.main))]
    elif account.forced:
        lines += ["  its stacks are", *(f"    {line}" for line in account.forced.splitlines()[: 2 * _MAX_FRAMES])]
    return lines


def _last(progress: Progress, case: Case) -> str:
    """What a member did last, in the group of the call that does not end."""
    if progress.left is None:
        return "it has made no call of this group yet"
    ago = (case.mine.entered_ns - progress.left_ns) * _NS + case.seconds
    number = progress.sequence - 1 if progress.inside else progress.sequence
    return f"its last call of this group was number {number}, {progress.left}, which it left {ago:.0f} s ago"


def _frames(stack: Stack) -> list[str]:
    """Return the innermost frames of a stack as lines, without those that only wait."""
    shown = outside_of_waiting(stack) or stack
    return [str(frame) for frame in shown[:_MAX_FRAMES]] + (["..."] if len(shown) > _MAX_FRAMES else [])


def everything(accounts: Sequence[Account]) -> str:
    """Return what every member does, with the stacks of all of its threads."""
    lines = [f"hpcvol: stacks of all {len(accounts)} members"]
    for account in accounts:
        waits = f": {site(account.main)}" if account.main else ""
        lines.append(f"  {account.name}, process {account.pid}, {account.condition()}{waits}")
        for name, stack in sorted((account.stacks or {}).items()):
            lines += [f"    {name}", *(f"      {frame}" for frame in stack)]
        lines += [f"    {line}" for line in (account.forced or "").splitlines()]
    return "\n".join(lines)
