"""Spares: processes that were started with the members, have prepared, and sleep until one of them is needed.

A communicator of everybody, members and spares, lies beneath that of the members. Whenever the members change, by a
death or because they call a spare, they revoke it: that wakes the spares, and all that live make the next one together.
So a spare is never waited for in any other call, and one that dies in its sleep is noticed, and gone, at the next
change. Where no member lives any more the spares end.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from hpcvol import tracing
from hpcvol.comm.ending import leave_mpi_open
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
    """One who takes part when everybody meets: the id that it has or would have, and whether it is a member."""

    member: int
    is_member: bool
    name: str


class Reserve:
    """The spares of a run, as each member and each spare sees them. Made by `set_apart`.

    Attributes:
        member: the id of this process; those of spares are higher than those of members.
        highest: the highest id of all.
        asleep: names of the spares, by id, as of the last change; the same on all members.
        is_member: whether this process is a member.
        is_asked_to_end: says whether a spare is to end by itself.
    """

    def __init__(self, communicator: "MPI.Comm", member: int, name: str, highest: int, *, is_member: bool) -> None:
        self.member = member
        self.highest = highest
        self.asleep: dict[int, str] = {}
        self.is_asked_to_end: Callable[[], bool] = lambda: False
        self._everybody = communicator
        self.is_member = is_member
        self._name = name
        self._present: list[_Present] = []

    def introduce(self, digest: bytes) -> list[str]:
        """Wait until everybody has prepared; spares that are not like the members end. Collective over everybody.

        Args:
            digest: of what members must have in common.

        Returns:
            Names of the spares that end.

        Raises:
            SystemExit: on a spare that ends, or whose members have.
        """
        try:
            said = self._everybody.allgather((_Present(self.member, self.is_member, self._name), digest))
        except Exception as error:
            if self.is_member or not tells_of_loss(error):
                raise
            _end()
        ours = next(digest for one, digest in said if one.is_member)
        unlike = [one for one, digest in said if not one.is_member and digest != ours]
        if self.member in [one.member for one in unlike]:
            _end()
        self._take(one for one, _ in said)
        for one in unlike:
            del self.asleep[one.member]
        return [one.name for one in unlike]

    def regroup(self) -> "MPI.Comm":
        """Return a communicator of the members that live. Collective over them; after calls have failed, too.

        Raises:
            MPI.Exception: another one died meanwhile; can be called again.
        """
        communicator = self._meet(None)
        assert communicator is not None
        return communicator

    def call(self, spare: int) -> "MPI.Comm | None":
        """Return a communicator of the members and a spare; None where somebody has died. Collective over the members.

        It may come about on some members and not on others: they have to agree.
        """
        try:
            with tracing.span("admit"):
                communicator = self._meet(spare)
        except Exception as error:
            if not tells_of_loss(error):
                raise
            return None
        return communicator if spare in [one.member for one in self._present] else None

    def ready(self, digest: bytes) -> "MPI.Comm":
        """Sleep; return the communicator of the members and this spare, when they call it. For spares.

        Args:
            digest: as for `introduce`.

        Raises:
            SystemExit: the run is over, no member lives, or this process is not like the members or asked to end.
        """
        self.introduce(digest)
        with tracing.span("ready"):
            return self._sleep()

    def accepted(self) -> None:
        """Take note that this process is a member. Local."""

    def _sleep(self) -> "MPI.Comm":
        from mpi4py import MPI

        while True:
            try:
                if self.is_asked_to_end() or self._everybody.Iprobe(tag=_OVER):
                    _end()
            except MPI.Exception as error:
                if not tells_of_loss(error):
                    raise
                if error.Get_error_class() == MPI.ERR_REVOKED:
                    communicator = self._wake()
                    if communicator is not None:
                        return communicator
                    continue
                self._take_note_of_deaths()
            time.sleep(_LOOK_SECONDS)

    def dismiss(self) -> None:
        """Tell the spares that the run is over. Local; every member does."""
        asleep = [rank for rank, one in enumerate(self._present) if not one.is_member]
        until = time.monotonic() + _OVER_SECONDS
        with suppress(Exception):  # who does not hear of it notices that no member lives
            requests = [self._everybody.Isend(b"", rank, _OVER) for rank in asleep]
            while not all([request.Test() for request in requests]) and time.monotonic() < until:
                time.sleep(_LOOK_SECONDS)

    def _wake(self) -> "MPI.Comm | None":
        try:
            communicator = self._meet(None)
        except Exception as error:
            if not tells_of_loss(error):
                raise
            return None
        if not any(one.is_member for one in self._present):
            _end()
        return communicator

    def _meet(self, called: int | None) -> "MPI.Comm | None":
        """Have all that live meet; return the communicator of the members and who is called, None to others."""
        from mpi4py import MPI

        self._everybody.Revoke()
        self._everybody = self._everybody.Shrink()
        with letting_nobody_wait(self._everybody):
            said = self._everybody.allgather((_Present(self.member, self.is_member, self._name), called))
            called = next((spare for _, spare in said if spare is not None), None)
            goes = self.is_member or self.member == called
            color = 0 if goes else MPI.UNDEFINED
            communicator = self._everybody.Split(color, self.member)
        self.is_member = goes
        self._take(one if one.member != called else _Present(one.member, True, one.name) for one, _ in said)
        return communicator if goes else None

    def _take(self, present: Iterable[_Present]) -> None:
        self._present = list(present)
        self.asleep = {one.member: one.name for one in self._present if not one.is_member}

    def _take_note_of_deaths(self) -> None:
        """Hear of the same deaths no more; end where no member lives."""
        from mpi4py import MPI

        failed = self._everybody.Get_failed()
        self._everybody.Ack_failed(failed.Get_size())
        everybody = self._everybody.Get_group()
        dead = MPI.Group.Translate_ranks(failed, list(range(failed.Get_size())), everybody)
        if all(rank in dead for rank, one in enumerate(self._present) if one.is_member):
            _end()


def set_apart(everybody: Group, spares: int) -> tuple[Group, Reserve]:
    """Make the last ranks, host by host, spares; return the group of the members and the reserve. Collective.

    Returns:
        On a member the group of all members, who have the ids from 0; on a spare one of itself alone, until it is
        called. `everybody` is closed.

    Raises:
        ConfigError: ranks do not outlive others here; there are too few. The same on all.
    """
    from mpi4py import MPI

    require_members(everybody.size, spares)
    if not survives_failures():
        raise ConfigError(
            f"elastic.spares = {spares}: spares take the places of members that died, and members do not outlive "
            "others here: start with `hpcvol train` under Open MPI 5, elastic.enabled, or leave elastic.spares out",
            everywhere=True,
        )
    leave_mpi_open()
    hosts = everybody.hosts
    order = sorted(range(everybody.size), key=lambda rank: (hosts.index(hosts[rank]), rank))
    asleep = order[everybody.size - spares :]
    member = [*sorted(set(order) - set(asleep)), *asleep].index(everybody.rank)
    is_member = everybody.rank not in asleep
    beneath = everybody.communicator.Dup()
    members = everybody.communicator.Split(0 if is_member else MPI.UNDEFINED, member)
    group = Group(members if is_member else MPI.COMM_SELF.Dup(), member)
    reserve = Reserve(beneath, member, group.name_of_me, everybody.size - 1, is_member=is_member)
    everybody.close()
    group.reserve = reserve
    return group, reserve


def _end() -> NoReturn:
    """End this process, which is no member: nobody waits for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Open MPI's launcher ends all members where a process exits with a status, and none where one dies of a signal.
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit
