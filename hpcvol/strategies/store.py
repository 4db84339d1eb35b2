"""A store of vectors in shards: members push to it and pull from it without waiting for each other.

One member, the head, says who does which step and numbers the pushes (`hpcvol.strategies.sequencer`); all holders of
shards apply them in that order. Within a node a push stays where it was computed, in memory that holders read, and a
pull copies out of theirs; between nodes both are messages. A holder takes pushes in the head's order into two places,
so that what is on its way waits with its sender.

A push is known by (member, number of its push) and counts once all holders have all of it, or can see it: then the head
gives it a number, and tells the holders and the member. What a member was pushing when it died is forgotten unless it
had a number by then.

Buckets of a push that are final may be sent while others are computed. What is pushed so takes its places for as long
as that lasts, and so it is taken of one member at a time; of others it waits with them, as what is complete does.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hpcvol import tracing
from hpcvol.codecs import Cast, Codec, Floats, Seeds
from hpcvol.collectives import Vector, broadcast
from hpcvol.comm import Group, fail, threads_may_communicate
from hpcvol.comm.mailbox import Letter, Mailbox, Parcel
from hpcvol.comm.shared_memory import allocate
from hpcvol.errors import CommError, ConfigError, LostMemberError
from hpcvol.kernels import sequence
from hpcvol.strategies.held_sums import nodes_of
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.sequencer import Apply, Drop, End, Go, Order, Sequencer, Take, Version
from hpcvol.strategies.shards import Shards
from hpcvol.strategies.wire import Part, Plan, Wire

# What letters and parcels are about, and so who takes them: the thread that serves, or the one that asks.
_SERVED, _ASKED, _PUSHED = 0, 1, 2

_LINE_NBYTES = 64
_PLACES = 2
_TRIES = 3
_IDLE_SECONDS = 0.05

# Between two looks at what has arrived.
_LEAST_SECONDS = 20e-6
_MOST_SECONDS = 0.5e-3


class _LostHolderError(LostMemberError):
    """Another holder may do."""


Change = Callable[[Sequence[Part], Sequence[Vector], Version], None]
"""Applies to each part what was pushed for it; behind that for all parts is what went along for each."""


def add(parts: Sequence[Part], pushed: Sequence[Vector], version: Version) -> None:
    """Add what was pushed: a store of sums."""
    del version
    for part, change in zip(parts, pushed, strict=True):
        np.add(part.values, change, out=part.values)


class Store:
    """Vectors in shards on the members that `shards` names. Made collectively.

    Args:
        shards: who holds what.
        layouts: of the vectors.
        pushed: memory of what this member pushes, by vector: nobody shares it yet.
        pulled: where what it pulls comes to lie, by vector; what is there at `begin` is what is stored, the same on all
            members.
        change: what becomes of a push, where it is held; called in the thread that serves.
        staleness: clocks that a worker may be ahead of the slowest one.
        codec: of what is pushed; None: as it is.
        seed: of what it draws; the same on all members.
        along: memory of what goes along with a push, by vector, as it is; nobody shares it yet.
        pull: what is rounded to on its way to workers of other nodes; None: nothing is. All members have it exactly
            after `finish`.

    Attributes:
        parts: what this member holds.
        version: of what this member pulled last.
        idle: called now and then while this member waits; set by whoever has something to look at.
        salvaged: what counts of the steps since `begin`, by number, after a `rebuild`.
        counts: called when this member knows that its last push counts; set by whoever has to know.

    Raises:
        ConfigError: this MPI takes calls from one thread only.
    """

    def __init__(
        self,
        shards: Shards,
        layouts: Sequence[Layout],
        pushed: Sequence[Memory],
        pulled: Sequence[Vector],
        change: Change,
        staleness: float = math.inf,
        codec: Codec | None = None,
        seed: int = 0,
        along: Sequence[Memory] = (),
        pull: Cast | None = None,
    ) -> None:
        if not threads_may_communicate():
            raise ConfigError(
                "strategy.max_staleness: servers answer in a thread of their own, and this MPI takes calls from one "
                "thread only (it does not grant MPI_THREAD_MULTIPLE); set max_staleness = 0",
                everywhere=True,
            )
        self._shards = shards
        self._layouts = layouts
        self._pushed = pushed
        self._pulled = pulled
        self._change = change
        self._staleness = staleness
        self._codec = codec
        self._seed = seed
        self._along = along
        self._pull_codec = pull
        self._step = 0
        self.version = 0
        self.counts: Callable[[], None] = lambda: None
        self.salvaged: dict[int, Version] = {}
        self._begun = False
        self._acknowledged: Version | None = None
        self.idle: Callable[[], None] = lambda: None
        self._idled = 0.0
        self._thread: threading.Thread | None = None
        self._views: dict[tuple[int, tuple[int, ...]], list[Part]] = {}
        self._open()

    @property
    def group(self) -> Group:
        """The members."""
        return self._shards.group

    def _open(self) -> None:
        group = self.group
        holders = self._shards.ranks
        self._rank = group.rank  # the group's changes before the tables do
        self._nodes = nodes_of(group)
        self._node_of = {rank: place for place, ranks in enumerate(self._nodes) for rank in ranks}
        self._plan = Plan(self._layouts, [one.dtype for one in self._pushed], holders)
        self._wire = Wire(self._plan, self._codec, self._seed, along=bool(self._along), pulled=self._pull_codec)
        # Where parameters are few there are shards of nothing, which nobody need push to or pull.
        self._holders = [ranks if nbytes else [] for ranks, nbytes in zip(holders, self._plan.nbytes, strict=True)]
        self._head = min(rank for ranks in holders for rank in ranks)
        room = _LINE_NBYTES + self._plan.room(self._plan.held(group.rank))
        self._memory = allocate(group, room)
        shared = [one.shared_over(group) for one in [*self._pushed, *self._along]]
        alone = group.any(self._memory is None or any(one is None for one in shared))
        self._vectors = [None if alone else one for one in shared]
        own = self._memory.mine if self._memory is not None else np.zeros(room, np.uint8)
        if alone:  # every rank as on a node of its own
            self._memory, self._node_of = None, {rank: rank for rank in range(group.size)}
        self._own = own
        self.parts = self._plan.views(own[_LINE_NBYTES:], self._plan.held(group.rank))
        self._fill()
        self._plan_to_push()
        self._mailbox = Mailbox(group.split(0))
        self._unsettled: _Unsettled | None = None
        self._under_way: _UnderWay | None = None
        self._server = _Server(self)
        self._abandoned = False
        self._tell(2 * self.version)
        group.barrier()
        # Also where nothing is held: what tells of deaths arrives while somebody is inside MPI.
        self._thread = threading.Thread(target=self._server.run, name="hpcvol-server", daemon=True)
        self._thread.start()

    def _plan_to_push(self) -> None:
        """Find out what holders of other nodes are sent of a push, and when: with which bucket, or at once."""
        remote = sorted({rank for ranks in self._holders for rank in ranks if not self._is_near(rank)})
        self._sent_to = {rank: self._wire.stretches(self._plan.held(rank)) for rank in remote}
        self._due: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._due_at_once: list[tuple[int, int]] = []
        for rank, stretches in self._sent_to.items():
            for number, one in enumerate(stretches):
                goes_along = one.vector >= len(self._pushed)
                due = self._due_at_once if goes_along else self._due.setdefault((one.vector, one.bucket), [])
                due.append((rank, number))

    def _fill(self) -> None:
        """Store what this member's vectors hold. Local."""
        for part in self.parts:
            part.values[:] = self._pulled[part.vector][part.place]

    @property
    def sent(self) -> tuple[int, int]:
        """How many letters and parcels this member has sent, since members changed last."""
        return self._mailbox.letters, self._mailbox.parcels

    @property
    def has_lost(self) -> bool:
        """Whether a member has died that was there when members changed last. Local."""
        return bool(self._mailbox.failed)

    def begin(
        self, workers: Sequence[int], first: int, until: int, done: Collection[int] = (), stride: int = 1
    ) -> None:
        """Store what all members have, and let the workers do the steps `first` to `until`. Collective.

        Args:
            workers: their ranks.
            first: step.
            until: behind the last one.
            done: steps among these that are done.
            stride: steps that a worker does before it pushes; it claims the first of them.
        """
        assert self._under_way is None, "a push was begun and given up, and its parts would be taken for another's"
        self._fill()
        self.salvaged, self._acknowledged, self._unsettled = {}, None, None
        self._server.known = {}
        self._begun = True
        if self.group.rank == self._head:
            everybody = {rank for ranks in self._holders for rank in ranks}
            self._server.lead(
                Sequencer(
                    workers,
                    everybody,
                    self._staleness,
                    self.version,
                    first,
                    until,
                    done,
                    stride,
                    self._server.expected_seconds(),
                )
            )
        self.group.barrier()

    def claim(self, known: Callable[[int], None] = lambda _: None, followers: Sequence[int] = ()) -> int | None:
        """Return the step that this member is to do, once it may; None where none is left. Local.

        What a server that is no worker calls to wait for the end.

        Args:
            known: called with the step before parameters are pulled for it.
            followers: ranks that compute steps with this one, and call `follow`.

        Raises:
            LostMemberError: the head died, or a follower, or all who held some shard.
        """
        self._settle()
        self._write(self._head, "claim")
        answer = self._answer("go", "end", others=followers).content
        for rank in followers:
            self._mailbox.write(rank, _ASKED, answer)
        if answer[0] == "end":
            self.version = answer[1]
            return None
        _, self._step, version = answer
        known(self._step)
        self._pull(version)
        return self._step

    def follow(self, team: Sequence[int]) -> int | None:
        """Return the step that the first of `team` has claimed for all of them; None where none is left. Local.

        Raises:
            LostMemberError: the head died, or one of the team.
        """
        answer = self._answer("go", "end", others=team).content
        return None if answer[0] == "end" else int(answer[1])

    def give_up(self) -> None:
        """Return when the others have done the steps that they are at, as this member cannot go on with its own. Local.

        Nobody gets further steps, and all meet.
        """
        if self._abandoned:
            return  # they meet already
        self._write(self._head, "give up")
        self._write(self._head, "claim")
        with suppress(LostMemberError):  # they will not: the head has died too, or they meet already
            while self._answer("go", "version", "end").content[0] != "end":
                pass

    def encode(self, vector: int, residual: Floats | None) -> None:
        """Encode what is to be pushed of one vector, which becomes what all holders will decode. Local; before `push`.

        Args:
            vector: which.
            residual: as `hpcvol.codecs.codec.Codec.encode`, of the whole vector.
        """
        own = Seeds.of(self._seed, self._step, self.group.members[self._rank]).own
        self._wire.encode(vector, self._pushed[vector].mine, residual, self._step, own)

    def push_early(self, vector: int, bucket: int) -> None:
        """Push a bucket of what `push` will, while those behind it are computed; encoded ones wait for these. Local.

        Args:
            vector: of which vector.
            bucket: of its layout; those before it were pushed so too. They may not change any more, as `push` says.
        """
        way = self._begin_to_push()
        due = [*self._due.get((vector, bucket), ()), *(self._due_at_once if not way.parcels else ())]
        if not due:
            return
        with tracing.span("push early"):
            for rank, number in due:
                self._send(way, rank, number)
            if not way.is_told and any(way.left.values()):
                way.is_told = True
                self._write(self._head, "early", list(way.left))

    def push(self, record: Any) -> None:
        """Push what lies in the memory for it, which may not change before the next `claim` has returned. Local.

        With a codec each vector was encoded before.

        Args:
            record: of the step, for the log and for who applies it; it has to pickle.
        """
        way, self._under_way = self._begin_to_push(), None
        for rank, left in way.left.items():
            if self._codec is not None:
                way.send(self._mailbox, rank, self._wire.pack(self._plan.held(rank), [one.mine for one in self._along]))
            for number in sorted(left):
                self._send(way, rank, number)
        self._write(self._head, "ready", list(way.left), record)
        me = self.group.rank
        self._unsettled = _Unsettled(way.parcels, [rank for rank in self._node_holders() if rank != me])

    def _begin_to_push(self) -> "_UnderWay":
        if self._under_way is None:
            living = {rank: ones for rank, ones in self._sent_to.items() if rank not in self._mailbox.failed}
            self._under_way = _UnderWay({rank: set(range(len(ones))) for rank, ones in living.items()})
        return self._under_way

    def _send(self, way: "_UnderWay", rank: int, number: int) -> None:
        """Send a stretch of a push to a rank, if it is not sent, and that is alive."""
        if number in way.left.get(rank, ()):
            way.left[rank].discard(number)
            stretch = self._sent_to[rank][number]
            vector = [*self._pushed, *self._along][stretch.vector].mine
            parts = [vector[place] for place in stretch.places]
            way.send(self._mailbox, rank, parts[0] if len(parts) == 1 else np.concatenate(parts), number)

    def stop(self) -> None:
        """Have no further steps handed out: `claim` returns None when those that were are done. Local."""
        self._write(self._head, "stop")

    def finish(self) -> list[Version]:
        """Return what counts of the steps since `begin`, in order, once all members have pulled it. Collective."""
        self._settle()
        log: list[Version] = self.group.broadcast_object(
            self._server.finish() if self.group.rank == self._head else None, self._head
        )
        if log:
            self.version = log[-1].number
        self._pull(self.version, exactly=True)
        if self.parts:  # what it holds may be a copy that nobody has pulled
            self._wait(lambda: self._server.applied >= self.version)
        self.group.barrier()  # who is done first may let go of what others are copying
        return log

    def abandon(self) -> None:
        """Give up what is on its way: the members are about to change. Local; may be called twice."""
        if not self._abandoned:
            self._abandoned = True
            self.close()
            self._mailbox.give_up()
            self._mailbox.group.abandon()

    def settle_knowledge(self) -> None:
        """Find out among the members that there are now what counts, and apply it where it is held. Collective.

        It is `salvaged`; `reopen` comes next, when it is known who holds what from now on.
        """
        group, server = self.group, self._server
        mine = [*self.salvaged.values(), *server.known.values()]
        if self._acknowledged is not None:
            mine.append(self._acknowledged)
        union = [one for part in group.gather_objects(mine) for one in part]
        applied = max(group.gather_objects(server.applied))
        # An earlier try may have moved some of them up, on some members: the lowest number is the last one.
        by_step = {one.step: one for one in sorted(union, key=lambda one: one.number, reverse=True)}
        numbered = sorted(by_step.values(), key=lambda one: one.number)
        # What only the head had numbered is nobody's any more: later ones move up.
        first = applied + 1 - sum(one.number <= applied for one in numbered)
        self.salvaged = {place: replace(one, number=place) for place, one in enumerate(numbered, first)}
        for number, one in self.salvaged.items():
            if number > server.applied and self.parts and self._begun:
                server.apply(one)
        self.version = max(applied, *self.salvaged) if self.salvaged else applied
        if self._unsettled is not None:
            self._unsettled = None
            if any((one.rank, one.step) == (self._rank, self._step) for one in self.salvaged.values()):
                self.counts()

    def reopen(self) -> None:
        """Give all members what is stored, and serve those that there are now. Collective; `begin` comes next."""
        self._give_to_all()
        self._views.clear()
        self._open()

    @property
    def has_begun(self) -> bool:
        """Whether what is stored counts, rather than what the vectors hold."""
        return self._begun

    def end(self) -> None:
        """Let what the vectors hold count from now on, rather than what is stored. Local; after `finish`."""
        self._begun = False

    def _give_to_all(self) -> None:
        """Have everybody's vectors as they are stored, if they were pushed to since. Collective."""
        group, mine = self.group, sorted({part.shard for part in self.parts})
        begun, held = zip(*group.gather_objects((self._begun, mine)), strict=True)
        if not any(begun):
            return
        for shard in (shard for shard, nbytes in enumerate(self._plan.nbytes) if nbytes):
            source = next(rank for rank, shards in enumerate(held) if shard in shards)
            payload = np.zeros(self._plan.nbytes[shard], np.uint8)
            views = self._plan.views(payload, [shard])
            if source == group.rank:
                own = [part for part in self.parts if part.shard == shard]
                for view, part in zip(views, own, strict=True):
                    view.values[:] = part.values
            broadcast(group, payload.view(np.int32), source)
            for view in views:
                self._pulled[view.vector][view.place] = view.values

    def close(self) -> None:
        """End the thread that serves. Local."""
        if self._thread is not None:
            self._server.ends = True
            self._thread.join()
            self._thread = None

    def _pull(self, version: int, *, exactly: bool = False) -> None:
        """Copy all shards as of `version` or newer; `exactly`, or as they are rounded for other nodes. Local.

        Raises:
            LostMemberError: nobody is left who holds some shard; the head knows that this member gives up.
        """
        missing = {shard for shard, ranks in enumerate(self._holders) if ranks}
        dead: set[int] = set()
        while missing:
            dead |= self._mailbox.failed
            sources: dict[int, list[int]] = {}
            for shard in sorted(missing):
                living = [rank for rank in self._holders[shard] if rank not in dead]
                if not living:
                    self._write(self._head, "give up")
                    raise LostMemberError(f"nobody is left who holds shard {shard}")
                near = [rank for rank in living if self._is_near(rank)]
                sources.setdefault((near or living)[0], []).append(shard)
            asked = []
            for rank, shards in sources.items():
                try:
                    if self._is_near(rank) and self._copy(rank, shards, version):
                        missing.difference_update(shards)
                        continue
                except _LostHolderError:
                    dead.add(rank)
                    continue
                self._write(rank, "pull", shards, version, exactly or self._is_near(rank))
                asked.append(rank)
            for rank in asked:
                whole = exactly or self._is_near(rank)
                payload = np.empty(self._wire.pulled_nbytes(sources[rank], exactly=whole), np.uint8)
                try:
                    self._finish_parcel(self._mailbox.receive(rank, _ASKED, payload), rank)
                except LostMemberError as error:
                    if self._head in self._mailbox.failed:
                        raise
                    del error
                    dead.add(rank)
                    continue
                self._wire.take(payload, sources[rank], self._pulled, exactly=whole)
                missing.difference_update(sources[rank])
        self.version = version

    def _copy(self, rank: int, shards: Sequence[int], version: int) -> bool:
        """Copy out of the memory of a holder of this node; False where it was changed again and again meanwhile."""
        memory = self._memory_of(rank)
        address = memory.ctypes.data
        key = rank, tuple(shards)
        if key not in self._views:
            everything = self._plan.views(memory[_LINE_NBYTES:], self._plan.held(rank))
            self._views[key] = [part for part in everything if part.shard in shards]
        for _ in range(_TRIES):
            self._wait(lambda: self._has(address, version, rank))
            seen = sequence.look(address)
            if seen % 2:
                continue
            for part in self._views[key]:
                self._pulled[part.vector][part.place] = part.values
            if sequence.unchanged(address, seen):
                return True
        return False

    def _has(self, address: int, version: int, rank: int) -> bool:
        seen = int(sequence.look(address))
        if seen % 2 == 0 and seen // 2 >= version:
            return True
        if rank in self._mailbox.failed:
            raise _LostHolderError(f"member {self.group.members[rank]} died")
        return False

    def _settle(self) -> None:
        """Wait until the last push has a number and nobody reads its memory any more. Local."""
        if self._unsettled is None:
            return
        self._acknowledged = self._answer("version").content[1]
        number = self._acknowledged.number
        for parcel in self._unsettled.parcels:
            self._wait(lambda parcel=parcel: _gone(parcel))  # type: ignore[misc]
        for rank in [*self._unsettled.readers, self._rank]:
            if rank not in self._mailbox.failed and rank in self._node_holders():
                address = self._memory_of(rank).ctypes.data
                self._wait(lambda: sequence.look(address) >= 2 * number or rank in self._mailbox.failed)  # noqa: B023
        self._unsettled = None
        self.counts()

    def _answer(self, *kinds: str, others: Sequence[int] = ()) -> Letter:
        """Return the next letter to who asks, which has to be of these kinds, as long as the `others` live. Local."""
        found: list[Letter] = []

        def look() -> bool:
            letter = self._mailbox.take(_ASKED)
            if letter is not None:
                found.append(letter)
            elif dead := self._mailbox.failed.intersection(others):
                raise LostMemberError(f"{self._mailbox.group.name_of(min(dead))} died")
            return bool(found)

        self._wait(look)
        if found[0].content[0] not in kinds:
            raise CommError(f"asked for {' or '.join(kinds)}, and got {found[0].content!r}")
        return found[0]

    def _finish_parcel(self, parcel: Parcel, rank: int) -> None:
        def look() -> bool:
            if parcel.done:
                return True
            if rank in self._mailbox.failed:
                raise _LostHolderError(f"member {self.group.members[rank]} died")
            return False

        self._wait(look)

    def _wait(self, ready: Callable[[], bool]) -> None:
        def look() -> bool:
            if self._server.error is not None:
                raise self._server.error
            if ready():
                return True
            if self._head in self._mailbox.failed:
                raise LostMemberError(f"member {self.group.members[self._head]}, which numbers the pushes, died")
            if time.monotonic() - self._idled > _IDLE_SECONDS:
                self._idled = time.monotonic()
                self.idle()
            return False

        self._mailbox.until(look)

    def _write(self, rank: int, *content: Any) -> None:
        self._mailbox.write(rank, _SERVED, content)

    def _is_near(self, rank: int) -> bool:
        return self._node_of[rank] == self._node_of[self._rank]

    def _node_holders(self) -> list[int]:
        return sorted({rank for ranks in self._holders for rank in ranks if self._is_near(rank)})

    def _memory_of(self, rank: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        if rank == self._rank or self._memory is None:
            return self._own
        return self._memory.of[self._nodes[self._node_of[rank]].index(rank)]

    def _pushed_by(self, rank: int) -> list[Vector]:
        """Return what a rank of this node pushes, where it lies."""
        if rank == self._rank:
            return [one.mine for one in [*self._pushed, *self._along]]
        place = self._nodes[self._node_of[rank]].index(rank)
        return [one.of[place] for one in self._vectors if one is not None]

    def _begin_to_change(self) -> None:
        address = self._own.ctypes.data
        sequence.begin(address, sequence.look(address))

    def _tell(self, value: int) -> None:
        sequence.tell(self._own.ctypes.data, value)


@dataclass
class _UnderWay:
    """A push that holders of other nodes are being sent.

    Attributes:
        left: numbers of stretches that are not sent, by rank.
        parcels: what is.
        is_told: whether the head knows.
    """

    left: dict[int, set[int]]
    parcels: list[Parcel] = field(default_factory=list)
    is_told: bool = False

    def send(self, mailbox: Mailbox, rank: int, payload: Vector, number: int = 0) -> None:
        """Start to send a stretch, or all of it; to one who is dead it is lost."""
        with suppress(LostMemberError):
            self.parcels.append(mailbox.send(rank, _PUSHED, payload, number))


@dataclass(frozen=True)
class _Unsettled:
    """A push that has no number yet."""

    parcels: Sequence[Parcel]
    readers: Sequence[int]


@dataclass
class _Coming:
    """A push that is being received into a place: its parcels that have not arrived."""

    place: Vector
    parcels: list[Parcel] = field(default_factory=list)

    @property
    def is_there(self) -> bool:
        """Whether all of it has arrived. Local.

        Raises:
            LostMemberError: who pushed is dead.
        """
        while self.parcels and self.parcels[0].done:
            del self.parcels[0]
        return not self.parcels


class _Server:
    """The thread of a member that holds shards, and of the head."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mailbox = store._mailbox
        self._places = (
            [np.empty(store._wire.room(store._plan.held(store._rank)), np.uint8) for _ in range(_PLACES)]
            if store.parts
            else []
        )
        self._taking: deque[int] = deque()
        self._coming: dict[int, _Coming] = {}
        self._staged: dict[int, Vector] = {}
        self._asked: list[tuple[int, Sequence[int], int, bool]] = []
        self._leaving: list[Parcel] = []
        self._sequencer: Sequencer | None = None
        self._lock = threading.Lock()
        self._buried: set[int] = set()
        self.applied = store.version
        self.known: dict[int, Version] = {}
        self.ends = False
        self.error: BaseException | None = None

    def run(self) -> None:
        """Serve until `ends`."""
        try:
            pause = _LEAST_SECONDS
            while not self.ends:
                if self._serve():
                    pause = _LEAST_SECONDS
                else:
                    time.sleep(pause)
                    pause = min(2 * pause, _MOST_SECONDS)
        except BaseException as error:
            self.error = error
            if not self.ends and not isinstance(error, LostMemberError):
                fail(error)  # this member's other thread may wait for one that waits for this thread

    def lead(self, sequencer: Sequencer) -> None:
        """Number pushes from now on."""
        with self._lock:
            self._sequencer = sequencer

    def expected_seconds(self) -> dict[int, float]:
        """Return what is known of workers' speeds since members changed last."""
        with self._lock:
            return {} if self._sequencer is None else self._sequencer.expected_seconds()

    def finish(self) -> list[Version]:
        """Return what was numbered since `lead`."""
        with self._lock:
            assert self._sequencer is not None
            return list(self._sequencer.log)

    def _serve(self) -> bool:
        """Do what there is to do; return whether there was anything."""
        letter = self._mailbox.take(_SERVED)
        if letter is not None:
            self._read(letter)
        busy = letter is not None or self._receive() or self._hand_out()
        with self._lock:
            if self._sequencer is not None:
                for rank in self._mailbox.failed - self._buried:
                    self._buried.add(rank)
                    self._say(self._sequencer.died(rank))
        return busy

    def _read(self, letter: Letter) -> None:
        kind, *rest = letter.content
        if kind == "pull":
            self._asked.append((letter.sender, *rest))
        elif kind == "take":
            self._taking.append(rest[0])
        elif kind == "apply":
            self.known[rest[0].number] = rest[0]
            self.apply(rest[0])
        elif kind == "drop":
            self._drop(rest[0])
        else:
            with self._lock:
                if self._sequencer is None:
                    return  # a stop before anything has begun
                if kind == "claim":
                    self._say(self._sequencer.claim(letter.sender, time.monotonic()))
                elif kind == "early":
                    self._say(self._sequencer.early(letter.sender, rest[0]))
                elif kind == "ready":
                    remote, record = rest
                    self._say(self._sequencer.ready(letter.sender, remote, record, time.monotonic()))
                elif kind == "staged":
                    self._say(self._sequencer.staged(letter.sender, rest[0]))
                elif kind == "stop":
                    self._say(self._sequencer.stop())
                elif kind == "give up":
                    self._say(self._sequencer.give_up(letter.sender))

    def _say(self, orders: Sequence[Order]) -> None:
        store, box = self._store, self._mailbox
        holders = sorted({rank for ranks in store._holders for rank in ranks})
        for order in orders:
            match order:
                case Go(rank, step, version):
                    box.write(rank, _ASKED, ("go", step, version))
                case End(rank):
                    assert self._sequencer is not None
                    box.write(rank, _ASKED, ("end", self._sequencer.version))
                case Take(holder, rank):
                    box.write(holder, _SERVED, ("take", rank))
                case Apply(version):
                    self.known[version.number] = version
                    for holder in holders:
                        box.write(holder, _SERVED, ("apply", version))
                    box.write(version.rank, _ASKED, ("version", version))
                case Drop(rank):
                    for holder in holders:
                        box.write(holder, _SERVED, ("drop", rank))

    def _receive(self) -> bool:
        """Take what was pushed, in the order of the head."""
        busy = False
        while self._taking and self._places:
            rank, place = self._taking.popleft(), self._places.pop()
            busy = True
            parts = self._store._wire.arriving(place, self._store._plan.held(self._store._rank))
            coming = self._coming[rank] = _Coming(place)
            try:
                for number, part in enumerate(parts):
                    coming.parcels.append(self._mailbox.receive(rank, _PUSHED, part, number))
            except LostMemberError:  # the head will say so too
                self._forget(rank)
        for rank, coming in list(self._coming.items()):
            try:
                if not coming.is_there:
                    continue
            except LostMemberError:
                self._forget(rank)
                continue
            del self._coming[rank]
            self._staged[rank] = coming.place
            self._mailbox.write(self._store._head, _SERVED, ("staged", rank))
            busy = True
        return busy

    def _forget(self, rank: int) -> None:
        """Receive no more of what a rank was pushing; MPI may use its place yet."""
        coming = self._coming.pop(rank)
        for parcel in coming.parcels:
            parcel.give_up()
        self._places.append(np.empty_like(coming.place))

    def _hand_out(self) -> bool:
        """Send shards to those whose version there is."""
        self._leaving = [parcel for parcel in self._leaving if not _gone(parcel)]
        due = [one for one in self._asked if one[2] <= self.applied]
        for one in due:
            self._asked.remove(one)
            rank, shards, _, exactly = one
            payload = np.empty(self._store._wire.pulled_nbytes(shards, exactly=exactly), np.uint8)
            self._store._wire.give(shards, self._store.parts, payload, exactly=exactly)
            try:
                self._leaving.append(self._mailbox.send(rank, _ASKED, payload))
            except LostMemberError:
                continue
        return bool(due)

    def apply(self, version: Version) -> None:
        """Change what this member holds by a push that counts."""
        store = self._store
        if store._is_near(version.rank):
            vectors = store._pushed_by(version.rank)
            number = len(store._pushed)
            pushed = [
                vectors[first + part.vector][part.place]
                for first in range(0, len(vectors), number)
                for part in store.parts
            ]
            place = None
        else:
            place = self._staged.pop(version.rank)
            pushed = store._wire.unpack(place, store._plan.held(store._rank), version.step)
        store._begin_to_change()
        store._change(store.parts, pushed, version)
        store._tell(2 * version.number)
        self.applied = version.number
        if place is not None:
            self._places.append(place)

    def _drop(self, rank: int) -> None:
        if rank in self._taking:
            self._taking.remove(rank)
        if rank in self._coming:
            self._forget(rank)
        if rank in self._staged:
            self._places.append(self._staged.pop(rank))


def _gone(parcel: Parcel) -> bool:
    try:
        return parcel.done
    except LostMemberError:
        return True
