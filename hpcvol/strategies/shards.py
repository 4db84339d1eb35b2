"""Which members hold which shards, and the sums that end with them."""

from collections.abc import Collection, Sequence

from hpcvol.codecs import LowRank
from hpcvol.collectives import exact_mean
from hpcvol.collectives.low_rank import Matrix
from hpcvol.comm import Group
from hpcvol.errors import MemberError
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.feedback import Feedback
from hpcvol.strategies.held_encoded import HeldEncoded
from hpcvol.strategies.held_sums import HeldExact, HeldFloats, HeldSums, Holders
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.reducer import ExactReducer, FloatReducer


class Shards:
    """Who holds what: shard i is on the members `holders[i]`, the first of which hands its parameters out.

    Args:
        group: the members of the run.
        spec: how many servers, and copies.
        joins: whether this process is to join a run, and is by itself until then.

    Attributes:
        group: the same.
        servers: ids of the members that served at first, and of those that have taken the place of one.
        holders: ids by shard.
    """

    def __init__(self, group: Group, spec: ParameterServer, *, joins: bool = False) -> None:
        self.group = group
        self._joins = joins
        self._is_new = False
        self.servers = group.members if joins else spec.choose(group)
        self.dedicated = spec.servers != "all"
        self._copies = 1 + spec.replicas
        number = len(self.servers)
        copies = min(self._copies, number)
        self.holders = [[self.servers[(i + copy) % number] for copy in range(copies)] for i in range(number)]

    @property
    def serving(self) -> tuple[int, ...]:
        """Ids of those that hold shards and compute nothing."""
        return self.servers if self.dedicated else ()

    @property
    def number(self) -> int:
        """How many shards there are."""
        return len(self.holders)

    @property
    def mine(self) -> list[int]:
        """The shards that this member holds."""
        me = self.group.members[self.group.rank]
        return [shard for shard, held_by in enumerate(self.holders) if me in held_by]

    @property
    def ranks(self) -> Holders:
        """The ranks of the holders, by shard."""
        members = self.group.members
        return [[members.index(member) for member in held_by] for held_by in self.holders]

    def plan(self, leaving: set[int]) -> list[tuple[int, int, int]]:
        """Return who has to copy which shard to whom, where the members `leaving` will be gone. The same on all.

        Returns:
            (shard, from, to) by member id; the shards of whom nobody is left have no line.
        """
        staying = [member for member in self.group.members if member not in leaving]
        able = [member for member in self.servers if member in staying]
        load = {member: sum(member in held_by for held_by in self.holders) for member in able}
        lines = []
        for shard, held_by in enumerate(self.holders):
            sources = [member for member in held_by if member in self.group.members]
            left = [member for member in held_by if member in staying]
            while sources and len(left) < self._copies and (free := [one for one in able if one not in left]):
                new = min(free, key=lambda member: (load[member], member))
                load[new] += 1
                lines.append((shard, sources[0], new))
                left.append(new)
        return lines

    def lost(self, leaving: set[int]) -> list[int]:
        """Return the shards that nobody would hold without the members `leaving`, and nobody could take over."""
        staying = set(self.group.members) - leaving
        moved = {shard for shard, *_ in self.plan(leaving)}
        return [i for i, held_by in enumerate(self.holders) if not staying.intersection(held_by) and i not in moved]

    def can_spare(self, leaving: set[int]) -> bool:
        """Return whether others could hold what they hold, and workers would be left. The same on all members."""
        members = set(self.group.members) - leaving
        works = not self.dedicated or bool(members - set(self.servers))
        return works and not self.lost(leaving)

    def welcome(self) -> None:
        """Have those that are new know who serves, and serve if all do or a server has died. Collective."""
        told = self.group.gather_objects(None if self._joins else (self.servers, self.holders))
        known = next((one for one in told if one is not None), None)
        if known is None:
            return
        self._is_new |= self._joins
        self._joins = False
        self.servers, self.holders = known[0], [list(held_by) for held_by in known[1]]
        members = self.group.members
        for member in (member for member, one in zip(members, told, strict=True) if one is None):
            if not self.dedicated or len(set(self.servers).intersection(members)) < self.number:
                self.servers = (*self.servers, member)

    def settle(self, held: Collection[int], layouts: Sequence[Layout]) -> None:
        """Find out who really holds what, after members have changed. Collective.

        Args:
            held: what this member holds, or is about to.
            layouts: of what is in the shards.

        Raises:
            MemberError: nobody is left who holds some shard, or nobody who computes; on all members.
        """
        group = self.group
        empty: set[int] = set()
        if group.members[group.rank] in self.servers:  # there are such where parameters are few: no death loses them
            portions = [layout.portions(self.number) for layout in layouts]
            empty = {
                shard
                for shard in range(self.number)
                if all(part.start == part.stop for portion in portions for part in portion[shard])
            }
        told = group.gather_objects((self.holders, sorted(empty.union(() if self._is_new else held))))
        self._is_new = False
        listed = told[0][0]  # a try that failed half way may have left others elsewhere
        members = group.members
        for shard in range(self.number):
            have = [member for member, (_, theirs) in zip(members, told, strict=True) if shard in theirs]
            first = [member for member in listed[shard] if member in have]
            self.holders[shard] = [*first, *(member for member in have if member not in first)] or listed[shard]
        self.forget_dead()
        if self.dedicated and not set(members) - set(self.servers):
            raise MemberError(
                "no worker is left, only servers: the run ends here, and goes on from its last checkpoint; "
                'strategy.servers = "all" lets servers compute too',
                everywhere=True,
            )

    def copied(self, lines: Sequence[tuple[int, int, int]]) -> None:
        """Count those as holders to whom shards were copied. Local; the same on all members."""
        for shard, _, new in lines:
            self.holders[shard].append(new)

    def forget_dead(self) -> None:
        """Let members that are gone hold nothing.

        Raises:
            MemberError: nobody is left who holds some shard; on all members.
        """
        members = set(self.group.members)
        for shard, held_by in enumerate(self.holders):
            left = [member for member in held_by if member in members]
            if not left:
                had = " and ".join(f"member {one}" for one in held_by)
                raise MemberError(
                    f"nobody is left who holds shard {shard} of the parameters and of the optimizer's state, which "
                    f"{had} held: the run ends here, and goes on from its last checkpoint; strategy.replicas = 1 keeps "
                    "a copy of every shard on another member",
                    everywhere=True,
                )
            self.holders[shard] = left


class ServedSums(AllReduce):
    """An all-reduce that stops half way: the sums of a shard are with its holders alone.

    Where ranks of a node cannot share memory, and with another algorithm than "auto" and "hierarchical", sums are with
    everybody.

    Args:
        shards: who holds what.
        others: as for `AllReduce`.
    """

    def __init__(self, shards: Shards, *others: object, **named: object) -> None:
        super().__init__(shards.group, *others, **named)  # type: ignore[arg-type]
        self._shards = shards

    def floats(
        self, layout: Layout, vector: Memory, feedback: Feedback | None = None, matrices: Sequence[Matrix] = ()
    ) -> FloatReducer:
        """As `AllReduce`; the vector holds means where this member holds a shard."""
        del matrices
        if feedback is not None:
            assert self._codec is not None
            assert not isinstance(self._codec, LowRank)
            shared = self._shared_by_several(vector)
            serving = self._shards.serving
            workers = [rank for rank, member in enumerate(self.group.members) if member not in serving]
            return HeldEncoded(
                self.group,
                workers,
                self._codec,
                shared,
                vector.mine,
                layout,
                self._shards.ranks,
                feedback,
                self._seed,
            )
        group = self._group_of_gradients()
        shared = self._shared(group, vector)
        between = None if shared is None else self._between(layout)
        if shared is None or (between is None and self._turns is not None):
            return super().floats(layout, vector)
        return HeldFloats(HeldSums(group, shared, between, layout, self._shards.ranks))

    def exact(self, layout: Layout, totals: Memory, means: Memory) -> ExactReducer:
        """As `AllReduce`; there are means where this member holds a shard."""
        group = self._group_of_gradients()
        sums, shared = self._shared(group, totals), self._shared(group, means)
        between = None if sums is None or shared is None else self._between(layout)
        if sums is None or shared is None or (between is None and self._turns is not None):
            return super().exact(layout, totals, means)
        exact_mean.compile_for(group, means.dtype)
        return HeldExact(HeldSums(group, sums, between, layout, self._shards.ranks), shared)
