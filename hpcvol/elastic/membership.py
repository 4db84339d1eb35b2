"""The members of a run, and how it goes on when some of them die.

What members do together is done on all that live or on none: they try it, and then agree whether it worked for all
(MPI's agreement, which no death can split). Where it did not, those that live find out who they are, make sure that
nobody else can touch what they share or write what they write, set up again what rests on the group, and try again.
"""

import sys
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from hpcvol.comm import Group, together
from hpcvol.comm.failures import enumerate_names
from hpcvol.comm.faults import tells_of_loss
from hpcvol.comm.processes import Process
from hpcvol.comm.surviving import survives_failures
from hpcvol.elastic.views import Views
from hpcvol.errors import CommError, HpcvolError, MemberError

T = TypeVar("T")

_GONE_SECONDS = 10.0
_PAUSE_SECONDS = 0.001


class MembersChanged(Exception):  # noqa: N818 - no error: control flow of those who have to do something about it
    """Something was tried while a member died: it took effect on nobody, and the group is another one now."""


class Part(Protocol):
    """What rests on the group of a run."""

    def abandon(self) -> None:
        """Give up what is on its way: a member has died. Local; may be called twice."""

    def rebuild(self) -> None:
        """Set up again for the members that the group has now. Collective; may be called again after it failed."""


class Membership:
    """Who is in the run. One a run, the same calls on all members.

    Args:
        group: of all members; it loses those that die.
        enabled: False: a death ends the run.

    Attributes:
        group: the same.
        survives: whether the run goes on without members that die.
        view: number of the view that these members have claimed; 0 without views.
        lost: names of the members that died, in order.
    """

    def __init__(self, group: Group, *, enabled: bool = True) -> None:
        self.group = group
        self.survives = enabled and group.size > 1 and survives_failures()
        self.view = 0
        self.lost: list[str] = []
        self._parts: list[Part] = []
        self._views: Views | None = None
        self._claims_views = False

    def add(self, part: Part) -> None:
        """Have `part` abandoned and rebuilt when members are lost, after those that were added before. Local."""
        self._parts.append(part)

    def claim_with(self, views: Views | None, view: int) -> None:
        """From now on decide by `views` which side of a cut goes on. Local; all members call it.

        Without views the larger side goes on, of equal ones that with the lowest member.

        Args:
            views: None on members that do not see them.
            view: number of the view that the members have claimed.
        """
        self._views, self._claims_views, self.view = views, True, view

    def check_view(self) -> None:
        """Return if this member may write for the run. Local; before whatever is written takes effect.

        Raises:
            MemberError: others have gone on without this member, which was stopped or cut off for a while.
        """
        if self._views is not None and not self._views.is_newest(self.view):
            raise MemberError(
                f"{self.group.name_of_me} was taken for dead, and the others have gone on without it: it ends here, "
                "and has written nothing since"
            )

    def attempt(self, function: Callable[[], T]) -> T:
        """Return what `function` returns, done by all members that live; tried again where one dies. Collective.

        Args:
            function: collective; without effects, or such as may come about again.

        Raises:
            HpcvolError: what `function` raises on every member.
        """
        while True:
            try:
                return self.settle(function)
            except MembersChanged:
                continue

    def settle(self, function: Callable[[], T]) -> T:
        """Return what `function` returns where it came to an end on all members. Collective.

        Raises:
            MembersChanged: somebody died; those that live are the group now.
            HpcvolError: what `function` raises on every member; also where this side of a cut must not go on.
        """
        if not self.survives:
            return function()
        result, error = _try(function)
        if self.group.agree(not tells_of_loss(error)):
            if error is not None:
                raise error
            assert result is not None
            return result[0]
        self._recover()
        raise MembersChanged

    def _recover(self) -> None:
        group = self.group
        before = {member: group.name_of(rank) for rank, member in enumerate(group.members)}
        accounted: set[int] = set()

        def begin_again() -> None:
            neighbours = dict(group.processes)
            group.shrink()
            mine = [member for member in neighbours if member not in group.members]
            for member in mine:
                _make_sure_of_death(before[member], neighbours[member])
            accounted.update(member for part in group.gather_objects(mine) for member in part)
            self._claim(set(before), accounted)
            for part in self._parts:
                part.rebuild()

        while True:
            for part in self._parts:
                part.abandon()
            _, error = _try(begin_again)
            if group.agree(not tells_of_loss(error)):
                break
        if error is not None:
            raise error
        gone = [name for member, name in before.items() if member not in group.members]
        self.lost += gone
        if group.rank == 0 and gone:
            have = "has" if len(gone) == 1 else "have"
            go = "1 member goes" if group.size == 1 else f"{group.size} members go"
            print(f"hpcvol: {enumerate_names(gone)} {have} died: {go} on", file=sys.stderr, flush=True)

    def _claim(self, before: set[int], dead: set[int]) -> None:
        """Return if these members may go on without the others. Collective.

        Raises:
            MemberError: they may not, on every one of them.
        """
        members = self.group.members
        if self._claims_views:
            seen = self.group.gather_objects(self._views is not None)
            claimed = None
            if True in seen:
                owner = seen.index(True)
                with together(self.group, "claiming the run"):
                    if self.group.rank == owner and self._views is not None:
                        claimed = self._views.claim(members)
                claimed = self.group.broadcast_object(claimed, owner)
            if claimed is None:
                raise MemberError(
                    f"members {_names(members)} were cut off from the others, which hold the run directory or have "
                    "gone on without them: they end here, and have written nothing since",
                    everywhere=True,
                )
            self.view = claimed
            return
        others = before - dead - set(members)
        if len(others) > len(members) or (len(others) == len(members) and min(others) < min(members)):
            raise MemberError(
                f"members {_names(members)} were cut off from members {_names(sorted(others))}, which may go on "
                "without them: they end here",
                everywhere=True,
            )


def _try(function: Callable[[], T]) -> tuple[tuple[T] | None, Exception | None]:
    """Return what comes of `function`: what it returns, or an error that every member has or will understand."""
    try:
        return (function(),), None
    except Exception as error:
        if tells_of_loss(error) or (isinstance(error, HpcvolError) and error.everywhere):
            return None, error
        raise


def _make_sure_of_death(name: str, process: Process) -> None:
    """Return when the process has ended; by force, since one that only seems dead could wake up and write. Local."""
    process.kill()
    until = time.monotonic() + _GONE_SECONDS
    while process.alive():
        if time.monotonic() > until:
            raise CommError(f"{name} (process {process.pid}) is lost to MPI and does not end although it was killed")
        time.sleep(_PAUSE_SECONDS)


def _names(members: "tuple[int, ...] | list[int]") -> str:
    return ", ".join(map(str, members))
