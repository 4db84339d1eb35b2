"""The members of a run, and how it goes on when some of them die or leave.

What members do together is done on all that live or on none: they try it, and then agree whether it worked for all
(MPI's agreement, which no death can split). Where it did not, those that live find out who they are, make sure that
nobody else can touch what they share or write what they write, set up again what rests on the group, and try again.

Who wants to leave says so with the records of a step; when the step is committed all know it, and part at its boundary.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from hpcvol import tracing
from hpcvol.comm import Group, together, watch
from hpcvol.comm.ending import end_apart, end_together
from hpcvol.comm.failures import enumerate_names
from hpcvol.comm.faults import tells_of_loss
from hpcvol.comm.launcher import launching_host
from hpcvol.comm.processes import Process
from hpcvol.comm.surviving import survives_failures
from hpcvol.elastic.checks import Guilty
from hpcvol.elastic.views import Views
from hpcvol.errors import CommError, HpcvolError, LeftBehindError, MemberError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

_GONE_SECONDS = 10.0
_PAUSE_SECONDS = 0.001
# Sides of a cut find it out within a fraction of `elastic.detect_seconds` of each other.
_GIVE_WAY_SECONDS = 3.0

# What members say with the records of a step.
_LEAVES = "leaves"


class MembersChanged(Exception):  # noqa: N818 - no error: control flow of those who have to do something about it
    """Something was tried while a member died: it took effect on nobody, and the group is another one now."""


class Part(Protocol):
    """What rests on the group of a run."""

    def abandon(self) -> None:
        """Give up what is on its way: the members are about to change. Local; may be called twice."""

    def can_spare(self, leaving: set[int]) -> bool:
        """Return whether the run can go on without the members `leaving`, the same on all members. Collective."""

    def inherit(self, leaving: set[int]) -> None:
        """Take over what only the members `leaving` have, which can be spared. Collective with them; may be repeated.

        It takes effect with the `rebuild` without them.
        """

    def hand_over(self) -> None:
        """Let go of what another member will hold instead of this one, which leaves. Local."""

    def rebuild(self) -> None:
        """Set up again for the members that the group has now. Collective; may be called again after it failed."""


class Replacing(Protocol):
    """What has members that died replaced."""

    def between_steps(self) -> None:
        """Let in who is ready. Collective; the same calls on all members."""

    def close(self) -> None:
        """Give up those that are no members yet. Local."""


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
        left: names of the members that left, in order.
        joined: names of the members that joined, in order.
        expelled: who was found to be wrong, and what for, in order; they are among those that died too.
        saying: what this member tells all others with the records of each step, by topic; it has to pickle.
        told: what members said with the step that was committed last, by member.
        highest: the highest id that a member has had.
        wanted: how many members there should be.
    """

    def __init__(self, group: Group, *, enabled: bool = True) -> None:
        self.group = group
        self.survives = enabled and group.size > 1 and survives_failures()
        self.view = 0
        self.lost: list[str] = []
        self.left: list[str] = []
        self.joined: list[str] = []
        self.expelled: list[str] = []
        self.saying: dict[str, Any] = {}
        self.told: Mapping[int, Mapping[str, Any]] = {}
        self.highest = max(group.members)
        self.wanted = group.size
        self._parts: list[Part] = []
        self._views: Views | None = None
        self._claims_views = False
        self._stays = False
        self._settled = threading.Event()  # whether no new view is being claimed
        self._settled.set()

    def add(self, part: Part) -> None:
        """Have `part` abandoned and rebuilt when the members change, after those that were added before. Local."""
        self._parts.append(part)

    def claim_with(self, views: Views | None, view: int) -> None:
        """From now on decide by `views` which side of a cut goes on. Local; all members call it.

        Without views the larger side goes on, of equal ones that with the lowest member.

        Args:
            views: None on members that do not see them.
            view: number of the view that the members have claimed.
        """
        self._views, self._claims_views, self.view = views, True, view

    @property
    def has_newest_view(self) -> bool:
        """Whether no others have gone on without this member, as far as it sees."""
        return self._views is None or self._views.is_newest(self.view)

    def check_view(self) -> None:
        """Return if this member may write for the run. Local, from any thread; before what is written takes effect.

        Raises:
            LeftBehindError: others have gone on without this member, which was stopped or cut off for a while.
        """
        if not self.has_newest_view and threading.current_thread() is not threading.main_thread():
            self._settled.wait()  # the newer view may be the one that this member is about to have
        if not self.has_newest_view:
            raise LeftBehindError(
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
        if tells_of_loss(error):
            # Some may still be in what others have left, and wait for those of them that live.
            self.group.give_up()
            self._abandon()
        if self.group.agree(not tells_of_loss(error)):
            if error is not None:
                raise error
            assert result is not None
            return result[0]
        self._recover()
        raise MembersChanged

    def admit(
        self,
        newcomer: int,
        widen: "Callable[[], MPI.Comm | None]",
        refuse: Callable[[], None],
        catch_up: Callable[[], None],
    ) -> bool:
        """Let a newcomer in, between two steps; return whether it is a member now. Collective over the members.

        Where it or a member dies meanwhile, those of the members that live go on without it.

        Args:
            newcomer: the id that it gets.
            widen: makes the communicator of all members and the newcomer, None where that failed.
            refuse: ends the newcomer, on the member that has started it.
            catch_up: gives the newcomer what the others have; collective with it.
        """
        self.highest = max(self.highest, newcomer)
        communicator = widen()
        if not self.group.agree(communicator is not None):
            refuse()
            self._recover()
            return False
        assert communicator is not None

        def welcome() -> None:
            for part in self._parts:
                part.abandon()
            self.group.take_over(communicator)
            self._welcome(newcomer, catch_up)

        self._settled.clear()
        try:
            _, error = _try(welcome)
            if tells_of_loss(error):
                self.group.give_up()
            if not self.group.agree(not tells_of_loss(error)):
                # Some count the newcomer as a member already, and it is missed by none.
                self._set_up(self.group.shrink, {newcomer})
                return False
            if error is not None:
                raise error
        finally:
            self._settled.set()
        name = self.group.name_of(self.group.members.index(newcomer))
        self.joined.append(name)
        if self.group.rank == 0:
            print(f"hpcvol: {name} has joined: {self.group.size} members go on", file=sys.stderr, flush=True)
        return True

    def join(self, newcomer: int, communicator: "MPI.Comm", catch_up: Callable[[], None]) -> None:
        """Become a member. Collective with `admit` of the others.

        Args:
            newcomer: the id of this process.
            communicator: of all members and this process.
            catch_up: as theirs.

        Raises:
            CommError: somebody died meanwhile, and the others go on without this process.
        """
        self.survives = True
        self._abandon()
        self.group.take_over(communicator, newcomer)
        self._welcome(newcomer, catch_up)
        if not self.group.agree(True):
            raise CommError("a member died while this process was to join: the others go on without it")
        self.joined.append(self.group.name_of_me)

    def _welcome(self, newcomer: int, catch_up: Callable[[], None]) -> None:
        with tracing.span("welcome"):
            end_together(self.group)
            watch.meet_newcomer(self.group)
            known = self.lost, self.left, self.joined, self.expelled, self.highest, self.wanted
            known = self.group.broadcast_object(known)
            self.lost, self.left, self.joined, self.expelled, self.highest, self.wanted = known
            self._claim(set(), set(), (newcomer,))
            for part in self._parts:
                part.rebuild()
            catch_up()

    def leave(self) -> None:
        """Have the others go on without this member, which ends when the step at hand is committed. Local.

        Raises:
            CommError: members of this run cannot part.
        """
        if not self.survives:
            raise CommError(
                "a member cannot leave this run: members part where Open MPI (version 5 or later) was started with "
                "`--with-ft ulfm`, as `hpcvol train` does, where elastic.enabled holds, and where there are two or more"
            )
        self.saying[_LEAVES] = True

    def expel(self, guilty: Guilty, when: str) -> NoReturn:
        """Have the others go on without a member that is wrong; what it did counts for nothing. Collective.

        It ends itself, and is ended by those of its host: a program that was changed to go on, alone on a host, is not.

        Args:
            guilty: the same on all members.
            when: the step.

        Raises:
            MembersChanged: on the others, which go on.
            MemberError: it cannot be expelled, and the run ends; on all members.
        """
        group = self.group
        name = group.name_of(group.members.index(guilty.member))
        why = f"{when}: {guilty.why}"
        what = f"{name} is not to be trusted: {why}"
        end = "test its memory and its processor, and start the run without it; it goes on from its last checkpoint"
        if not self.survives:
            raise MemberError(f"{what}: {end}", everywhere=True)
        if group.rank == 0:
            print(f"hpcvol: {what}: it is expelled", file=sys.stderr, flush=True)
        if group.members[group.rank] == guilty.member:
            os.kill(os.getpid(), signal.SIGKILL)
        neighbour = group.processes.get(guilty.member)
        if neighbour is not None:
            _make_sure_of_death(name, neighbour)
        while guilty.member in group.members:
            try:
                self.settle(group.barrier)
            except MembersChanged:
                continue  # somebody else may have died before it
            raise MemberError(f"{what}, and it goes on although it was told to end: {end}", everywhere=True)
        self.expelled.append(f"{name}: {why}")
        raise MembersChanged

    @property
    def leaves(self) -> bool:
        """Whether this member asked to leave, and has not yet."""
        return bool(self.saying.get(_LEAVES))

    @property
    def stays(self) -> bool:
        """Whether this member asked to leave and cannot be spared: it has to stop the run instead."""
        return self._stays

    def at_boundary(self) -> None:
        """Let those go who said so with the step that was committed last. Collective.

        Raises:
            SystemExit: on a member that leaves, with status 0; the others have gone on without it.
        """
        leaving = {member for member, said in self.told.items() if said.get(_LEAVES)}
        self.told = {}
        while leaving := leaving & set(self.group.members):
            try:
                self._part_from(leaving)
                return
            except MembersChanged:
                continue

    def _part_from(self, leaving: set[int]) -> None:
        group = self.group
        me = group.members[group.rank]
        spared = self.settle(lambda: all([part.can_spare(leaving) for part in self._parts]))
        if not spared or leaving == set(group.members):
            self._stays |= self.saying.pop(_LEAVES, False)
            if group.rank == 0:
                print(f"hpcvol: members {_names(sorted(leaving))} cannot be spared: they stay", file=sys.stderr)
            return
        names = [group.name_of(rank) for rank, member in enumerate(group.members) if member in leaving]

        def inherit() -> None:
            for part in self._parts:
                part.inherit(leaving)

        self.settle(inherit)
        if me in leaving:
            for part in self._parts:
                part.abandon()
                part.hand_over()
        parted = self.settle(lambda: group.parted(leaving))
        if me in leaving:
            end_apart()
        self.left += names
        self.wanted -= len(names)
        self._set_up(lambda: group.take_over(parted), leaving)
        if group.rank == 0:
            print(f"hpcvol: {enumerate_names(names)} left: {_go_on(group.size)}", file=sys.stderr, flush=True)

    def _abandon(self) -> None:
        for part in self._parts:
            part.abandon()

    def _recover(self) -> None:
        self._set_up(self.group.shrink, set())

    def _set_up(self, regroup: Callable[[], None], parted: set[int]) -> None:
        """Have `regroup` change the group, and set up again what rests on it; go on without those that die meanwhile.

        Args:
            regroup: collective over those that stay.
            parted: members that are not missed.

        Raises:
            HpcvolError: these members must not go on without the others; on all of them.
        """
        group = self.group
        before = {member: group.name_of(rank) for rank, member in enumerate(group.members) if member not in parted}
        # Asked here, where the group is whole: a death in `regroup` leaves it between two.
        neighbours = {member: one for member, one in group.processes.items() if member not in parted}
        accounted: set[int] = set()

        def begin_again() -> None:
            regroup()
            mine = [member for member in neighbours if member not in group.members]
            for member in mine:
                _make_sure_of_death(before[member], neighbours[member])
            accounted.update(member for part in group.gather_objects(mine) for member in part)
            self._claim(set(before), accounted)
            for part in self._parts:
                part.rebuild()

        self._settled.clear()
        try:
            while True:
                self._abandon()
                _, error = _try(begin_again)
                if tells_of_loss(error):
                    group.give_up()
                    self._abandon()
                if group.agree(not tells_of_loss(error)):
                    break
                regroup = group.shrink
        finally:
            self._settled.set()
        if error is not None:
            raise error
        gone = [name for member, name in before.items() if member not in group.members]
        self.lost += gone
        if group.rank == 0 and gone:
            have = "has" if len(gone) == 1 else "have"
            print(f"hpcvol: {enumerate_names(gone)} {have} died: {_go_on(group.size)}", file=sys.stderr, flush=True)

    def _claim(self, before: set[int], dead: set[int], joining: Collection[int] = ()) -> None:
        """Return if these members may go on without the others. Collective.

        Args:
            before: the ids of the members until now.
            dead: of those that are dead for certain.
            joining: of those that are new.

        Raises:
            LeftBehindError: they may not, on every one of them.
        """
        members = self.group.members
        if self._claims_views:
            seen = self.group.gather_objects(self._views is not None)
            claimed = None
            if True in seen:
                owner = seen.index(True)
                with together(self.group, "claiming the run"):
                    if self.group.rank == owner and self._views is not None:
                        self._give_way_to_the_launcher(self._views)
                        claimed = self._views.claim(members, self.view, joining)
                claimed = self.group.broadcast_object(claimed, owner)
            if claimed is None:
                raise LeftBehindError(
                    f"members {_names(members)} were cut off from the others, which hold the run directory or have "
                    "gone on without them: they end here, and have written nothing since",
                    everywhere=True,
                )
            self.view = claimed
            return
        others = before - dead - set(members)
        if len(others) > len(members) or (len(others) == len(members) and min(others) < min(members)):
            raise LeftBehindError(
                f"members {_names(members)} were cut off from members {_names(sorted(others))}, which may go on "
                "without them: they end here",
                everywhere=True,
            )

    def _give_way_to_the_launcher(self, views: Views) -> None:
        """Return when the side of a cut that has the launcher has had the time to claim the next view. Local.

        The daemons of the other side, and with them its members, would end before long.
        """
        host = launching_host()
        if host is None or any(_short(one) == _short(host) for one in self.group.hosts):
            return
        until = time.monotonic() + _GIVE_WAY_SECONDS
        while views.is_newest(self.view) and time.monotonic() < until:
            time.sleep(_PAUSE_SECONDS)


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


def _go_on(size: int) -> str:
    return "1 member goes on" if size == 1 else f"{size} members go on"


def _short(host: str) -> str:
    return host.partition(".")[0]


def _names(members: "tuple[int, ...] | list[int]") -> str:
    return ", ".join(map(str, members))
