"""An ordered set of live ranks over one MPI communicator."""

import pickle
import secrets
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcvol.comm import failures
from hpcvol.comm.calls import Call, Calls
from hpcvol.comm.carriers import Carriers, find_carriers
from hpcvol.comm.faults import explain, letting_nobody_wait, revoke, tells_of_loss
from hpcvol.comm.machine import machine
from hpcvol.comm.processes import Process
from hpcvol.comm.surviving import survives_failures
from hpcvol.comm.waiting import Spinning, Waiting
from hpcvol.errors import CommError, HpcvolError

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcvol.comm.reserve import Reserve

# MPI before version 4 counts in an int.
_PIECE_NBYTES = 2**30

# What a call shows to the others as it begins: fingerprint, 63 bits, and so many bytes, in which most objects fit.
_HEAD_NBYTES = 16
_INLINE_NBYTES = 240
_MOST_RANKS_INLINE = 64  # with more of them all that would weigh more than a second exchange

# Calls that were given up: MPI may still write there.
_given_up: list[Any] = []


class Group:
    """An ordered set of live ranks. All methods that move data are collective: every rank of the group calls them.

    Each of these first exchanges what is called: where ranks call different ones, or a rank is at the end of its
    program, all raise an error that shows both sides. Its cost is one small all-gather, in which short objects travel.

    Users get groups from `hpcvol.comm.start()` and `Group.split`.

    Attributes:
        rank: position of this process in the group, 0 to size - 1.
        size: number of ranks.
        hosts: host name by rank.
        members: member id by rank. Ids are given once, at the start, and never reused; a split keeps them.
        node: the ranks of this group that share memory with this one (this group itself where all of them do).
        calls: the collective calls made so far, where the other ranks of the node can see them.
        kept: what algorithms keep for this group from one call to the next, by their names; what has a `close` is
            closed with the group, collectively.
    """

    def __init__(self, communicator: "MPI.Comm", member: int, whole: "Group | None" = None) -> None:
        """Take over `communicator`. Collective over it.

        Args:
            communicator: owned by the group from here on; never COMM_WORLD itself, so that nobody else's messages mix
                with ours.
            member: the id of this process.
            whole: the group that this one is a part of, which closes it.
        """
        self._communicator: MPI.Comm | None = None
        self._whole = whole
        self._waiting: Waiting | None = None
        self.reserve: Reserve | None = None
        self._member = member  # not by rank: between a new rank and the new list of members there may be a death
        self._begin(communicator)

    def _begin(self, communicator: "MPI.Comm") -> None:
        self._communicator = communicator
        self._carriers: Carriers | None = None
        with letting_nobody_wait(communicator):
            facts = communicator.allgather((self._member, socket.gethostname(), machine(), secrets.token_hex(4)))
            self.rank: int = communicator.Get_rank()
            self.size: int = communicator.Get_size()
            self.members: tuple[int, ...] = tuple(member for member, _, _, _ in facts)
            self.hosts: tuple[str, ...] = tuple(host for _, host, _, _ in facts)
            self._inline_nbytes = _INLINE_NBYTES if self.size <= _MOST_RANKS_INLINE else 0
            self._mine = np.zeros((_HEAD_NBYTES + self._inline_nbytes) // 8, np.int64)
            self._all = np.zeros((self.size, self._mine.size), np.int64)
            self.node: Group = self._split_by_node([where for _, _, where, _ in facts])
            self.kept: dict[str, Any] = {}
            self.calls = Calls(self, facts[0][3])

    @property
    def communicator(self) -> "MPI.Comm":
        """The mpi4py communicator, for `hpcvol.comm` alone."""
        if self._communicator is None:
            raise RuntimeError("this group is closed")
        return self._communicator

    @property
    def waiting(self) -> Waiting:
        """How messages are waited for; parts wait as their whole does. Set it where a thread communicates."""
        if self._waiting is not None:
            return self._waiting
        return Spinning() if self._whole is None else self._whole.waiting

    @waiting.setter
    def waiting(self, waiting: Waiting) -> None:
        self._waiting = waiting

    @property
    def carriers(self) -> Carriers:
        """Who carries data between nodes. Collective when first asked for."""
        if self._carriers is None:
            self._carriers = find_carriers(self)
        return self._carriers

    def poll(self) -> None:
        """Return if waiting on makes sense, as `calls.poll` of this group and of those that it is a part of. Local.

        Raises:
            MismatchError, MemberError, HpcvolError: as `Calls.poll`.
        """
        self.calls.poll()
        if self._whole is not None:
            self._whole.poll()

    def progress(self) -> None:
        """Let MPI go on with what earlier calls left to it. Local; for waits outside of MPI.

        A message counts as sent when its memory may be used again: it may still need its sender to be delivered.
        """
        try:
            self.communicator.Iprobe(self.rank)
        except Exception as error:
            told = explain(self, error)
            if told is None:
                raise
            raise told from error

    @property
    def call_identity(self) -> tuple[int, ...]:
        """Number and fingerprint of the call that this group is in, and those it is a part of. Local."""
        return self.calls.identity if self._whole is None else (*self.calls.identity, *self._whole.call_identity)

    def communicators(self) -> "list[MPI.Comm]":
        """Return those of this group, of its parts and of what it is a part of, for `hpcvol.comm` alone. Local."""
        whole = self
        while whole._whole is not None:
            whole = whole._whole
        return [group.communicator for group in whole._family()]

    def _family(self) -> "list[Group]":
        parts = [] if self.node is self else [self.node]
        if self._carriers is not None and self._carriers.peers is not None:
            parts.append(self._carriers.peers)
        return [self, *(group for part in parts for group in part._family())]

    @property
    def processes(self) -> dict[int, Process]:
        """The processes of the members that share memory with this one, this one's too, by member id. Local."""
        return dict(zip(self.node.members, self.node.calls.processes, strict=False))

    def abandon(self) -> None:
        """Let what goes on over this group fail on all ranks, and never use it again. Local."""
        revoke(self)
        for group in self._family():
            group.calls.close()
        self._communicator = None

    @property
    def name_of_me(self) -> str:
        """This process in words for messages, such as `member 2 (node07)`."""
        return self.name_of(self.rank)

    def name_of(self, rank: int) -> str:
        """Return the process at `rank` in words for messages, such as `member 2 (node07)`. Local."""
        return f"member {self.members[rank]} ({self.hosts[rank]})"

    def split(self, color: int, key: int = 0) -> "Group":
        """Return the group of all ranks that gave the same `color`, ordered by (`key`, rank here). Collective.

        Args:
            color: zero or more.
            key: where in the new group this rank wants to be.
        """
        with self.calling(Call.of("split")), letting_nobody_wait(self.communicator):
            return Group(self.communicator.Split(color, key), self._member)

    def become_part(self, whole: "Group", color: int) -> None:
        """Go on with the ranks of `whole` that gave the same `color`, instead of those so far. Collective over it.

        Raises:
            LostMemberError: as `take_over`.
        """
        with whole.calling(Call.of("split")), letting_nobody_wait(whole.communicator):
            communicator = whole.communicator.Split(color)
        self.take_over(communicator)

    @property
    def revoked(self) -> bool:
        """Whether somebody has found that a rank died, and ended all communication over this group. Local."""
        return survives_failures() and bool(self.communicator.Is_revoked())

    def give_up(self) -> None:
        """End all communication over this group on all of its ranks: one has died. Local."""
        revoke(self)

    def part(self, color: int) -> "Group":
        """Return the ranks that gave the same `color` as a part of this group: used in its calls only. Collective."""
        with letting_nobody_wait(self.communicator):
            return Group(self.communicator.Split(color), self._member, self)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        with self.calling(Call.of("barrier")):
            pass

    def broadcast_object(self, obj: Any, root: int = 0) -> Any:
        """Return the `obj` of rank `root` on all ranks; what the others gave is not looked at. It has to pickle."""
        data = bytearray(pickle.dumps(obj) if self.rank == root else b"")
        with self.calling(Call.of("broadcast_object", numel=root), len(data), data) as lengths:
            if lengths[root] <= self._inline_nbytes:
                return pickle.loads(self._shown(root, lengths[root]))
            if self.rank != root:
                data = bytearray(lengths[root])
            for start in range(0, len(data), _PIECE_NBYTES):
                piece = memoryview(data)[start : start + _PIECE_NBYTES]
                self._wait(self.communicator.Ibcast(piece, root), piece)
        return pickle.loads(data)

    def gather_objects(self, obj: Any) -> list[Any]:
        """Return the `obj` of every rank, by rank, on all ranks. It has to pickle; all together are at most 2 GiB."""
        data = b"" if obj is None else pickle.dumps(obj)
        with self.calling(Call.of("gather_objects"), len(data), data) as lengths:
            if max(lengths) <= self._inline_nbytes:
                shown = [self._shown(rank, length) for rank, length in enumerate(lengths)]
                return [pickle.loads(part) if part else None for part in shown]
            gathered = bytearray(sum(lengths))
            self._wait(self.communicator.Iallgatherv(data, [gathered, lengths]), data, gathered)
        ends = np.cumsum(lengths).tolist()
        parts = [memoryview(gathered)[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        return [pickle.loads(part) if part else None for part in parts]

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on at least one rank, on all ranks."""
        with self.calling(Call.of("any"), int(flag)) as flags:
            return any(flags)

    def union(self, flags: int) -> int:
        """Return the bitwise or of the `flags` (63 bits) of all ranks, on all ranks."""
        with self.calling(Call.of("union"), flags) as everybody:
            return int(np.bitwise_or.reduce(everybody))

    def leave(self) -> None:
        """Say that the program of this rank has come to its end, and wait until that of all others has.

        Raises:
            HpcvolError: it has not, and others wait for this rank in another call.
        """
        self.calls.leave()
        with self.calling(Call.of("exit")):
            pass

    @contextmanager
    def calling(self, call: Call, payload: int = 0, data: bytes | bytearray = b"") -> Iterator[list[int]]:
        """Number a call, wait until all ranks are in it, and run the body. Collective: one small all-gather.

        Args:
            call: what this rank calls.
            payload: 63 bits for the others.
            data: more for the others, if it is short (`_shown`).

        Returns:
            The payloads, by rank.

        Raises:
            MismatchError: ranks are in different calls, or the program of one has come to its end; on all of them.
            MemberError: a rank died.
        """
        if self._communicator is None:
            raise RuntimeError("this group is closed")
        self.calls.begin(call)
        yield self.meet(payload, data)
        self.calls.end()

    def meet(self, payload: int = 0, data: bytes | bytearray = b"") -> list[int]:
        """Do what `calling` does, in the call that this group is in already, or the one that it is a part of."""
        if self.calls.abandoned:
            raise CommError("a collective call over a group in which another was given up after an error: end the run")
        fingerprint = self.call_identity[-1]
        self._mine[:2] = fingerprint, payload
        if data and len(data) <= self._inline_nbytes:
            self._mine.view(np.uint8)[_HEAD_NBYTES : _HEAD_NBYTES + len(data)] = np.frombuffer(data, np.uint8)
        if self.size == 1:
            self._all[0] = self._mine
        else:
            self._wait(self.communicator.Iallgather(self._mine, self._all), self._mine, self._all)
        fingerprints, payloads = self._all[:, :2].T.tolist()
        if fingerprints.count(fingerprint) != self.size:
            raise self._disagreement(fingerprints)
        found: list[int] = payloads
        return found

    def _shown(self, rank: int, nbytes: int) -> bytes:
        """Return the `data` of a rank in the call that the group met in last."""
        shown: bytes = self._all[rank].tobytes()
        return shown[_HEAD_NBYTES : _HEAD_NBYTES + nbytes]

    def agree(self, ok: bool) -> bool:
        """Return whether all gave True and nobody has died, the same on all that live.

        Collective over those that live, also after a call of the group has failed. Where ranks cannot outlive others
        it says what was given: then a death ends the run.
        """
        if not survives_failures():
            return ok
        call = Call.of("agree")
        if ok:
            self.calls.begin(call)
        flag = np.array([ok], np.int32)
        try:
            request = self.communicator.Iagree(flag)
            if not request.Test():
                self.waiting.until(request.Test, _go_on_waiting)
        except Exception as error:
            if not tells_of_loss(error):
                raise
            return False
        if ok:
            self.calls.end()
        return bool(flag[0])

    def shrink(self) -> None:
        """Go on with those that live: rank, size and all else change; members keep their ids. Collective over them.

        All that was made for the ranks before, such as parts, splits and shared memory, is of no use any more.

        Raises:
            LostMemberError: another one died meanwhile; `agree` tells all, and `shrink` can be called again.
        """
        revoke(self)
        try:
            self.take_over(self.communicator.Shrink() if self.reserve is None else self.reserve.regroup())
        except Exception as error:
            if not tells_of_loss(error):
                raise
            raise failures.died("another member", "members agreed upon who is left") from error

    def parted(self, leaving: Collection[int]) -> "MPI.Comm":
        """Return a communicator of all but the members `leaving`, to be taken over; null on those. Collective."""
        from mpi4py import MPI

        with self.calling(Call.of("split")):
            if self.reserve is not None:
                return self.reserve.regroup(leaves=self._member in leaving)
            with letting_nobody_wait(self.communicator):
                return self.communicator.Split(MPI.UNDEFINED if self._member in leaving else 0)

    def take_over(self, communicator: "MPI.Comm", member: int | None = None) -> None:
        """Go on over `communicator`, in place of the one so far: as after `shrink`. Collective over it.

        Args:
            communicator: of some of the ranks, in their order, and, as the last, a newcomer on the same host.
            member: the id of the newcomer, on that alone.

        Raises:
            LostMemberError: a member died meanwhile; `agree` tells all, and `shrink` can be called.
        """
        if member is not None:
            self._member = member
        for group in self._family():
            group.calls.close()
        try:
            self._begin(communicator)
        except Exception as error:
            if not tells_of_loss(error):
                raise
            raise failures.died("another member", "members agreed upon who goes on") from error

    def close(self) -> None:
        """Give the communicator back. Collective. Twice is once; using the group afterwards is an error."""
        if self._communicator is None:
            return
        for part in self._family()[1:]:
            part.calls.abandoned |= self.calls.abandoned
        for one in self.kept.values():
            if hasattr(one, "close"):
                one.close()
        if self._carriers is not None and self._carriers.peers is not None:
            self._carriers.peers.close()
        if self.node is not self:
            self.node.close()
        if not self.calls.abandoned:
            self._communicator.Free()
        self._communicator = None
        self.kept.clear()
        self.calls.close()
        del self.calls  # its shared memory: a group that is its own node waits for the garbage collector

    def _split_by_node(self, machines: list[str]) -> "Group":
        """Return the ranks that are on this one's machine.

        Not as MPI splits: Open MPI's ranks disagree about newcomers, and where two of its daemons are on one host.
        """
        mine = machines[self.rank]
        if machines.count(mine) == self.size:
            return self
        return Group(self.communicator.Split(machines.index(mine)), self._member, self)

    def _wait(self, request: "MPI.Request", *memory: Any) -> None:
        """Wait until `request` is done, which uses `memory`."""
        try:
            if not request.Test():
                self.waiting.until(request.Test, self.poll)
        except BaseException as error:
            self.calls.abandoned = True
            _given_up.append((request, memory, self._communicator))
            told = explain(self, error)
            if told is None:
                raise
            raise told from error

    def _disagreement(self, fingerprints: list[int]) -> HpcvolError:
        """Return the error for ranks that met in different calls. Collective: all tell each other where they are."""
        sequence = self.call_identity[-2]
        called = [Call.from_fingerprint(one) for one in fingerprints]
        self.calls.about_to_raise()
        places: list[str] = self.communicator.allgather(self.calls.here())
        leaving = [rank for rank, one in enumerate(called) if one.name == "exit"]
        waiting = [rank for rank, one in enumerate(called) if one.name != "exit"]
        speaker = self.members[waiting[0]]
        if leaving:
            self.calls.abandoned = True  # nobody can leave in order any more
            who = failures.enumerate_names([self.name_of(rank) for rank in leaving])
            names = [self.name_of(rank) for rank in waiting]
            place = places[waiting[0]]
            return failures.left(who, failures.waiting_in(names, called[waiting[0]], sequence, place), speaker=speaker)
        said = {self.name_of(rank): (one, places[rank]) for rank, one in enumerate(called)}
        return failures.mismatch(sequence, said, speaker=speaker)


def _go_on_waiting() -> None:
    """Whoever has died: MPI takes that into account."""
