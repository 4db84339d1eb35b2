"""Supernodes: groups of members that combine every step among themselves, and with the other groups now and then.

References:
    Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019: averaging parameters every few steps.
    Lin et al., "Don't Use Large Mini-Batches, Use Local SGD", ICLR 2020, section 3 (hierarchical local SGD).
    Dean et al., "Large Scale Distributed Deep Networks", NIPS 2012, section 4.1 (groups that push to servers).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from hpcvol.codecs import AUTO, AnyCodec, Momentum, parse
from hpcvol.elastic.shares import Worker, shares
from hpcvol.errors import ConfigError, MemberError
from hpcvol.strategies.automatic import link_cost

if TYPE_CHECKING:
    from hpcvol.comm import Group

T = TypeVar("T")

# A link that takes so many times as long as the fastest one leads to another group.
_SLOWER = 3.0
_MESSAGE_NBYTES = 1 << 20


@dataclass(frozen=True)
class Supernodes:
    """Members form groups; each trains by itself for some steps, and then all continue from the mean of the outcomes.

    Where servers wait for nobody (`ParameterServer.max_staleness` above 0) each group is one worker instead: it
    computes whole steps, pushes, and goes on from what it pulls.

    Args:
        groups: "node": the members of each node; a number: so many groups of neighbouring members; "link": nodes with
            fast links to each other, as measured at the start; where all links are alike, the members of each node.
        period: steps from one mean to the next, or from one push. At 1 gradients are combined (or pushed) instead,
            every step, as they are without groups: within nodes first, and then between them.
        codec: what groups encode that they send each other, as `strategy.codec`, but for "auto". What is left out is
            added the next time.

    Raises:
        ConfigError: values that cannot be.
    """

    groups: int | Literal["node", "link"] = "node"
    period: int = 1
    codec: AnyCodec = "none"

    def __post_init__(self) -> None:
        if self.groups not in ("node", "link") and not (isinstance(self.groups, int) and self.groups > 0):
            raise ConfigError(f'strategy.groups = {self.groups!r}: expected "none", "node", "link", or how many groups')
        if self.period < 1:
            raise ConfigError(f"strategy.between.period = {self.period}: expected 1 step or more")
        if isinstance(parse(self.codec), Momentum) and self.average:
            raise ConfigError(
                f'strategy.between.codec = "{self.codec}" brings momentum along, and what groups send each other are '
                "changes that have it: leave out +dgc"
            )
        if self.codec == AUTO:
            raise ConfigError(
                'strategy.between.codec = "auto": it chooses by the time of a step, and groups send each other '
                "something in few of them; name a codec"
            )

    @property
    def average(self) -> bool:
        """Whether groups have parameters of their own, and average these."""
        return self.period > 1

    def color(self, group: "Group", workers: Sequence[int]) -> int:
        """Return which group this member belongs to: the same number on all of it. Collective.

        Args:
            group: all members.
            workers: ranks of those that form groups; what others get says nothing.
        """
        if self.groups == "node":
            return group.node.members[0]
        if self.groups == "link":
            return _by_links(group)
        place = workers.index(group.rank) if group.rank in workers else 0
        return place * min(self.groups, len(workers)) // len(workers)


class Grouping:
    """Which members are a group. One a run, the same calls on all members.

    Args:
        group: all members.
        spec: what they form; None: each is a group of its own.
        apart: returns ids of members that belong to no group now.
        joins: whether this process is to join a run, and is by itself until then.

    Attributes:
        team: the members of this one's group; of one that belongs to none, itself.
        teams: ids of the members of each group, in the order of their first ones.
        index: of this member's group; -1 where it belongs to none.

    Raises:
        ConfigError: there are fewer members than groups; on all of them.
    """

    def __init__(
        self,
        group: "Group",
        spec: Supernodes | None,
        apart: Callable[[], Collection[int]] = tuple,
        *,
        joins: bool = False,
    ) -> None:
        self._group = group
        self._spec = spec
        self._apart = apart
        workers = len(self._workers())
        if not workers and not joins:
            raise ConfigError(
                "there is no worker: all members are servers, or have a priority of 0 in elastic.priorities; let at "
                "least one of them compute",
                everywhere=True,
            )
        if spec is not None and isinstance(spec.groups, int) and spec.groups > workers and not joins:
            raise ConfigError(
                f"strategy.groups = {spec.groups} of {workers} members that compute: ask for at most as many groups as "
                "there are of these",
                everywhere=True,
            )
        self._shares: list[float] = []
        self.teams: list[tuple[int, ...]] = []
        self.index = 0
        self.team = group.split(self._color())
        self._look()

    def rebuild(self) -> None:
        """Form groups of the members that there are now. Collective.

        Raises:
            MemberError: none of them computes; on all of them.
        """
        if not self._workers():
            raise MemberError(
                "no worker is left, only servers or members with a priority of 0: the run ends here, and goes on from "
                'its last checkpoint; strategy.servers = "all" lets servers compute too',
                everywhere=True,
            )
        self.team.become_part(self._group, self._color())
        self._look()

    def _workers(self) -> list[int]:
        apart = set(self._apart())
        return [rank for rank, member in enumerate(self._group.members) if member not in apart]

    def _color(self) -> int:
        """Return what is the same on the members of a group. Collective."""
        rank, workers = self._group.rank, self._workers()
        color = rank if self._spec is None or not workers else self._spec.color(self._group, workers)
        return 2 * color if rank in workers else 2 * rank + 1

    def _look(self) -> None:
        told, apart = self._group.gather_objects(self.team.members), set(self._apart())
        self.teams = [team for team in dict.fromkeys(told) if team[0] not in apart]
        self.index = self.teams.index(self.team.members) if self.team.members in self.teams else -1
        self._shares = [float(len(team)) for team in self.teams]

    @property
    def is_leader(self) -> bool:
        """Whether this member speaks for its group. Who leads a group that dies is succeeded by the next of it."""
        return self.index >= 0 and self.team.rank == 0

    @property
    def leaders(self) -> list[int]:
        """Ranks, among all members, of those that speak for their groups."""
        return [self._group.members.index(team[0]) for team in self.teams]

    @property
    def ranks(self) -> list[int]:
        """Ranks, among all members, of this one's group."""
        return [self._group.members.index(member) for member in self.team.members]

    def dealt_by(self, rates: Mapping[int, float]) -> None:
        """Deal units to groups by what their members can do, in samples/s, where all are known. Local."""
        if all(member in rates for team in self.teams for member in team):
            self._shares = [sum(rates[member] for member in team) for team in self.teams]

    def part(self, items: Sequence[T]) -> list[T]:
        """Return this group's part of a step's units. Local."""
        counts = shares(len(items), [Worker(1 / one, len(items)) for one in self._shares])
        start = sum(counts[: self.index])
        return list(items[start : start + counts[self.index]])


def _by_links(group: "Group") -> int:
    """Return the lowest of the nodes that have fast links to this one's. Collective."""
    nodes: list[int] = sorted(set(group.gather_objects(group.node.members[0])))
    firsts = group.split(0 if group.node.rank == 0 else 1)
    seconds: dict[tuple[int, int], float] = {}
    for pairs in _rounds(len(nodes)):
        mine = next((number for number, pair in enumerate(pairs) if firsts.rank in pair), len(pairs))
        pair = firsts.split(mine if group.node.rank == 0 else group.rank)
        if group.node.rank == 0 and mine < len(pairs):
            cost = link_cost(pair)
            seconds[pairs[mine]] = cost.alpha + cost.beta * _MESSAGE_NBYTES
        pair.close()
    firsts.close()
    known: dict[tuple[int, int], float] = {}
    for part in group.gather_objects(seconds):
        for pair_of_nodes, one in part.items():
            known[pair_of_nodes] = max(one, known.get(pair_of_nodes, 0.0))
    return nodes[clusters(len(nodes), known)[nodes.index(group.node.members[0])]]


def clusters(nodes: int, seconds: Mapping[tuple[int, int], float]) -> list[int]:
    """Return of each node the lowest one that it has a path of fast links to; itself where all links are alike. Pure.

    Args:
        nodes: how many there are.
        seconds: that a message takes between two of them, (lower, higher).
    """
    lowest = list(range(nodes))
    fastest = min(seconds.values(), default=math.inf)
    slow = {pair: one > _SLOWER * fastest for pair, one in seconds.items()}
    if not any(slow.values()):
        return lowest
    for (one, other), is_slow in sorted(slow.items()):
        if not is_slow:
            low, high = sorted((lowest[one], lowest[other]))
            lowest = [low if node == high else node for node in lowest]
    return lowest


def _rounds(count: int) -> list[list[tuple[int, int]]]:
    """Return rounds of pairs, so that everybody meets everybody and nobody has two pairs in a round."""
    places = [*range(count), *([-1] * (count % 2))]
    found = []
    for _ in range(len(places) - 1):
        half = len(places) // 2
        pairs = zip(places[:half], reversed(places[half:]), strict=True)
        found.append([(min(pair), max(pair)) for pair in pairs if -1 not in pair])
        places = [places[0], places[-1], *places[1:-1]]
    return found
