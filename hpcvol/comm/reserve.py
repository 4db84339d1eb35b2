"""Spares: processes that were started with the members, have prepared, and sleep until one of them is needed.

A communicator of everybody, members and spares, lies beneath that of the members. Whenever the members change, by a
death or because they call a spare, they revoke it: that wakes the spares, and all that live make the next one, and
that of the members, and agree whether they have. So a spare is never waited for in any other call, and one that dies in
its sleep is noticed, and gone, at the next change. Where no member lives any more the spares end.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hpcvol import tracing
from hpcvol.comm import failures
from hpcvol.comm.ending import end_apart, leave_mpi_open
from hpcvol.comm.faults import letting_nobody_wait, tells_of_loss
from hpcvol.comm.group import Group
from hpcvol.comm.surviving import survives_failures
from hpcvol.errors import ConfigError

if TYPE_CHECKING:
    from mpi4py import MPI

_LOOK_SECONDS = 0.005
_OVER = 11  # the tag of the message that the run is over
_OVER_SECONDS = 1.0


def require_members(num_ranks: int, spares: int) -> None:
    """Return if so many of the ranks can be spares.

    Raises:
        ConfigError: too few members would be left.
    """
    if spares and num_ranks - spares < 2:
        raise ConfigError(
            f"elastic.spares = {spares} leaves {max(0, num_ranks - spares)} of {num_ranks} ranks to train, and a spare "
            f"takes the weights over from a member that lives: start {spares + 2} ranks or more (-n), or fewer spares",
            everywhere=True,
        )


@dataclass(frozen=True)
class _Present:
    """One who takes part when everybody meets.

    Attributes:
        member: the id that it has or would have.
        is_member: whether it is a member.
        name: it, in words.
        calls: the id of a spare that it calls.
        leaves: whether it is a member no more.
    """

    member: int
    is_member: bool
    name: str
    calls: int | None = None
    leaves: bool = False


class Reserve:
    """The spares of a run, as each member and each spare sees them. Made by `set_apart`.

    Attributes:
        member: the id of this process; those of spares are higher than those of members.
        highest: the highest id of all.
        everybody: members and spares, who prepare together, until they have been introduced.
        asleep: names of the spares, by id, as of the last change; the same on all members.
        is_member: whether this process is a member.
        is_asked_to_end: says whether a spare is to end by itself.
    """

    def __init__(self, everybody: Group, communicator: "MPI.Comm", name: str, *, is_member: bool) -> None:
        self.member = everybody.rank
        self.highest = everybody.size - 1
        self.everybody = everybody
        self.asleep: dict[int, str] = {}
        self.is_member = is_member
        self.is_asked_to_end: Callable[[], bool] = lambda: False
        self._beneath = communicator
        self._name = name
        self._present: list[_Present] = []

    def introduce(self, digest: bytes | None) -> list[str]:
        """Wait until everybody has prepared; spares that are not like the members end. Collective over everybody.

        Args:
            digest: of what members must have in common; None where this process has failed: then all spares end.

        Returns:
            Names of the spares that end.

        Raises:
            SystemExit: on a spare that ends.
        """
        me = _Present(self.member, self.is_member, self._name)
        said: list[tuple[_Present, bytes | None]] = self.everybody.gather_objects((me, digest))
        self.everybody.close()
        ours = said[0][1]  # a member: spares come last
        unlike = [one for one, digest in said if not one.is_member and (ours is None or digest != ours)]
        if not self.is_member and (ours is None or digest != ours):
            end_apart()
        self._take([one for one, _ in said])
        for one in unlike:
            del self.asleep[one.member]
        return [one.name for one in unlike]

    def regroup(self, *, leaves: bool = False) -> "MPI.Comm":
        """Return a communicator of the members that live. Collective over them; after calls have failed, too.

        Args:
            leaves: this process is a member no more, and gets the null communicator.

        Raises:
            LostMemberError: another one died meanwhile, on all; can be called again.
        """
        return self._meet(leaves=leaves)

    def call(self, spare: int) -> "MPI.Comm | None":
        """Return a communicator of the members and a spare; None where one has died. Collective over the members."""
        try:
            with tracing.span("admit"):
                communicator = self._meet(calls=spare)
        except Exception as error:
            if not tells_of_loss(error):
                raise
            return None
        return communicator if spare in [one.member for one in self._present] else None

    def sleep(self) -> "MPI.Comm":
        """Return the communicator of the members and this spare, when they call it. Local, for spares.

        Raises:
            SystemExit: the run is over, no member lives, or this process was asked to end.
        """
        with tracing.span("ready"):
            communicator = None
            while communicator is None:
                if self._is_over():
                    end_apart()
                time.sleep(_LOOK_SECONDS)
                communicator = self._wake() if self._is_woken() else None
        return communicator

    def dismiss(self) -> None:
        """Tell the spares that the run is over. Local; every member does."""
        asleep = [rank for rank, one in enumerate(self._present) if not one.is_member]
        until = time.monotonic() + _OVER_SECONDS
        with suppress(Exception):  # who does not hear of it notices that no member lives
            requests = [self._beneath.Isend(b"", rank, _OVER) for rank in asleep]
            while not all([request.Test() for request in requests]) and time.monotonic() < until:
                time.sleep(_LOOK_SECONDS)

    def _is_over(self) -> bool:
        """Whether a spare is not needed any more: no member lives, or it is asked to end."""
        return self.is_asked_to_end() or not any(one.is_member for one in self._present)

    def _is_woken(self) -> bool:
        """Whether all that live are about to meet."""
        from mpi4py import MPI

        try:
            if self._beneath.Iprobe(tag=_OVER):
                self._present = []
        except MPI.Exception as error:
            if not tells_of_loss(error):
                raise
            if error.Get_error_class() == MPI.ERR_REVOKED:
                return True
            self._take_note_of_deaths()
        return False

    def _wake(self) -> "MPI.Comm | None":
        """Meet all that live; return the communicator where this spare is called."""
        try:
            communicator = self._meet()
        except Exception as error:
            if not tells_of_loss(error):
                raise
            return None
        return communicator if self.is_member else None

    def _meet(self, *, calls: int | None = None, leaves: bool = False) -> "MPI.Comm":
        """Have all that live meet; return the communicator of the members and who is called, null to others.

        Raises:
            LostMemberError: somebody died meanwhile, on all.
        """
        from mpi4py import MPI

        me = _Present(self.member, self.is_member, self._name, calls, leaves)
        self._beneath.Revoke()
        self._beneath = self._beneath.Shrink()
        beneath, error = self._beneath, None
        communicator: MPI.Comm = MPI.COMM_NULL
        present: list[_Present] = []
        try:
            with letting_nobody_wait(beneath):
                present = _as_called(beneath.allgather(me))
                mine = next(one for one in present if one.member == me.member)
                communicator = beneath.Split(0 if mine.is_member else MPI.UNDEFINED, me.member)
                if any(one.leaves for one in present):
                    beneath = beneath.Split(MPI.UNDEFINED if leaves else 0)
        except Exception as found:
            if not tells_of_loss(found):
                raise
            error = found
        # A death in the middle is an error to some only, and who has a communicator must not wait in it for the others.
        if not self._all_have_it(error is None):
            self._beneath.Revoke()
            raise failures.died("another member", "all that live met") from error
        self._beneath = beneath
        self.is_member = mine.is_member
        self._take([one for one in present if not one.leaves])
        return communicator

    def _all_have_it(self, ok: bool) -> bool:
        try:
            return bool(self._beneath.Agree(int(ok)))
        except Exception as error:
            if not tells_of_loss(error):
                raise
            return False

    def _take(self, present: list[_Present]) -> None:
        self._present = present
        self.asleep = {one.member: one.name for one in present if not one.is_member}

    def _take_note_of_deaths(self) -> None:
        """Hear of the same deaths no more; go by the members that live."""
        from mpi4py import MPI

        failed = self._beneath.Get_failed()
        self._beneath.Ack_failed(failed.Get_size())
        everybody = self._beneath.Get_group()
        dead = MPI.Group.Translate_ranks(failed, list(range(failed.Get_size())), everybody)
        if all(rank in dead for rank, one in enumerate(self._present) if one.is_member):
            self._present = []


def set_apart(everybody: Group, spares: int) -> tuple[Group, Reserve]:
    """Make the last ranks spares; return the group of the members and the reserve. Collective.

    Returns:
        On a member the group of all members; on a spare one of itself alone, until it is called.

    Raises:
        ConfigError: ranks do not outlive others here; there are too few; it was done before. The same on all.
    """
    from mpi4py import MPI

    require_members(everybody.size, spares)
    if everybody.reserve is not None:
        raise ConfigError(
            "elastic.spares: this program has trained with spares before, and they are gone: start a process for each "
            "run, as `hpcvol train` does",
            everywhere=True,
        )
    if not survives_failures():
        raise ConfigError(
            f"elastic.spares = {spares}: spares take the places of members that died, and members do not outlive "
            "others here: start with `hpcvol train` under Open MPI 5, elastic.enabled, or leave elastic.spares out",
            everywhere=True,
        )
    leave_mpi_open()
    is_member = everybody.rank < everybody.size - spares
    communicator = everybody.communicator
    beneath, members = communicator.Dup(), communicator.Split(0 if is_member else MPI.UNDEFINED)
    group = Group(members if is_member else MPI.COMM_SELF.Dup(), everybody.rank)
    group.reserve = Reserve(everybody, beneath, group.name_of_me, is_member=is_member)
    return group, group.reserve


def _as_called(said: list[_Present]) -> list[_Present]:
    """Return who is present when a spare has come that a member calls, and those have gone that leave."""
    called = next((one.calls for one in said if one.calls is not None), None)
    return [
        replace(one, is_member=(one.is_member or one.member == called) and not one.leaves, calls=None) for one in said
    ]
