"""Which member computes which units of a step, decided from what all members know."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Literal, TypeVar

from hpcvol.comm import Group
from hpcvol.elastic.bag import Bag
from hpcvol.elastic.shares import Worker, finish, shares
from hpcvol.elastic.speed import MATTERS_SECONDS, RELEASE, Slow, Stopwatch
from hpcvol.elastic.units import UnitSpan
from hpcvol.errors import ConfigError

T = TypeVar("T")
Kind = Literal["auto", "equal", "static", "dynamic"]
Fetch = Callable[[Sequence[UnitSpan]], None]

# Other shares are dealt when they would have ended so many steps in a row so much earlier, or one very much: less is
# noise, and units that move were fetched in vain.
_GAIN = 1.1
_STEPS_IN_A_ROW = 3
_GAIN_AT_ONCE = 1.5
# Members that get no units are tried again when that costs at most such a part of the time since, all together.
_TRIAL_SHARE = 0.01
_LEAST_SECONDS = 1e-9


@dataclass(frozen=True)
class Terms:
    """What a user says about dealing.

    Args:
        kind: "equal": as many units to each; "static": in proportion to speed; "dynamic": members of a node take units
            one after the other; "auto": static under the exact sum, equal under the float sum.
        priorities: by member id or host, what a member's speed is multiplied by; 0 gives it no units.
        limits: by member id or host, units a step that a member gets at most.
        idle: returns ids of members that get no units now.
    """

    kind: Kind = "auto"
    priorities: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    idle: Callable[[], Collection[int]] = field(default=tuple, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "equal", "static", "dynamic"):
            raise ConfigError(f'dealing = "{self.kind}": expected "auto", "equal", "static" or "dynamic"')
        for key, value in [*self.priorities.items(), *self.limits.items()]:
            if not 0 <= value < float("inf"):
                raise ConfigError(f"elastic.priorities or elastic.limits gives {key!r} {value}: expected at least 0")

    def unknown(self, group: Group) -> list[str]:
        """Return the names that no member of `group` has. Local."""
        known = {*map(str, group.members), *group.hosts}
        return sorted({*self.priorities, *self.limits} - known)


@dataclass(frozen=True)
class Done:
    """What a step that took effect told of its members.

    Attributes:
        seconds: a sample, by member, of those that have measured it.
        idle: members that computed nothing of it.
        num_units: units of the step.
        unit_samples: samples a unit.
        longest: seconds that its slowest member took.
    """

    seconds: Mapping[int, float]
    idle: frozenset[int]
    num_units: int
    unit_samples: float
    longest: float


class Dealing:
    """Deals a step's units to members. One a run, the same calls on all members.

    Nothing is asked for: shares follow from what the last committed step told of all members, so that all compute the
    same ones. This one never looks at speeds; see `Proportional` and `hpcvol.elastic.claiming.Claiming`.

    Args:
        group: of all members; each is a worker.
        terms: priorities and limits.

    Attributes:
        stopwatch: of this member.
        seconds: a sample, by member, as told with the last committed step.
    """

    def __init__(self, group: Group, terms: Terms) -> None:
        self.group = group
        self.stopwatch = Stopwatch()
        self.seconds: dict[int, float] = {}
        self._terms = terms
        self._found: dict[int, list[int]] = {}
        self.rebuild()

    def rebuild(self) -> None:
        """Deal to the members that the group has now. Collective; members that are new make their dealing meanwhile."""
        told = self.group.gather_objects(self.stopwatch.sample_seconds)
        self.seconds = {member: one for member, one in zip(self.group.members, told, strict=True) if one is not None}
        self._found = {}

    def committed(self, done: Done) -> None:
        """Take in what a step that took effect told. Local; the same on all members."""
        self.seconds = dict(done.seconds)
        self.stopwatch.end_step()
        if self.group.members[self.group.rank] in done.idle:
            self.stopwatch.pause()

    def consequence(self, slow: Slow) -> str:
        """Return how a report of a slow member goes on."""
        del slow
        return ': the others wait for it; elastic.dealing = "static" would deal it less'

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this member's part of a step's units, or of other work: neighbours. Local."""
        dealt, rank = self.dealt(len(items)), self.group.rank
        start = sum(dealt[:rank])
        return list(items[start : start + dealt[rank]])

    def known_ahead(self, spans: Sequence[UnitSpan]) -> list[UnitSpan]:
        """Return which units of a step to come this member will be dealt, as far as that can be known now. Local."""
        return self.share(spans)

    def bag(self, spans: Sequence[UnitSpan], fetch: Fetch) -> Bag:
        """Return the bag of this member's part. Local; all members call it, with the same units.

        Args:
            spans: units that are to be computed by all members together.
            fetch: called with units that this member will compute, ahead of time.
        """
        mine = self.share(spans)
        fetch(mine)
        return Bag(mine)

    def dealt(self, count: int) -> list[int]:
        """Return how many of `count` units each member gets, by rank. Local."""
        if count not in self._found:
            self._found[count] = self._deal(count)
        return self._found[count]

    def _deal(self, count: int) -> list[int]:
        return shares(count, self.workers(count, {}))

    def workers(self, count: int, seconds: Mapping[int, float]) -> list[Worker]:
        """Return what is known of each member, by rank, if their speeds are `seconds`. Local.

        A member whose speed nobody knows counts as the median one.
        """
        known = [seconds[member] for member in self.group.members if member in seconds]
        usual = max(median_low(known), _LEAST_SECONDS) if known else 1.0
        # Of the highest priority, so that seconds are compared with seconds.
        highest = max(map(self.priority, range(self.group.size))) or 1.0
        workers = []
        for rank, member in enumerate(self.group.members):
            own = max(seconds.get(member, usual), _LEAST_SECONDS)
            priority = self.priority(rank)
            limit = min(count, self.limit(rank, count)) if own <= RELEASE * usual else 0
            workers.append(Worker(own / (priority / highest or 1.0), limit))
        return workers

    def priority(self, rank: int) -> float:
        """Return the priority of the member at `rank`. Local."""
        return 0.0 if self.group.members[rank] in self._terms.idle() else self._of(self._terms.priorities, rank, 1.0)

    def limit(self, rank: int, count: int) -> int:
        """Return how many of `count` units the member at `rank` may get by the user's word. Local."""
        return self._of(self._terms.limits, rank, count) if self.priority(rank) else 0

    def _of(self, named: Mapping[str, T], rank: int, default: T) -> T:
        host, member = self.group.hosts[rank], str(self.group.members[rank])
        return named.get(member, named.get(host, default))


class Proportional(Dealing):
    """Deals in proportion to measured speed."""

    def __init__(self, group: Group, terms: Terms) -> None:
        self._used: dict[int, float] = {}
        self._idle_seconds: dict[int, float] = {}
        self._trial: int | None = None
        self._full = 0
        self._gains = 0
        super().__init__(group, terms)

    def rebuild(self) -> None:
        """See `Dealing`."""
        super().rebuild()
        # Of the first member that has any; one that is new to the run has none.
        self._used = next((used for used in self.group.gather_objects(self._used) if used), {})
        self._idle_seconds, self._trial = {}, None
        self._full, self._gains = 0, 0

    def committed(self, done: Done) -> None:
        """See `Dealing`.

        Only full steps count, those of as many units as any before: few units divide badly among any members.
        """
        super().committed(done)
        if done.num_units >= self._full:
            self._full = done.num_units
            self._deal_anew(done)
            self._try_again(done)
        self._found = {}

    def consequence(self, slow: Slow) -> str:
        """See `Dealing`."""
        if slow.released:
            return ", which is too slow to be of use: it gets a unit now and then, to see whether that is still so"
        return " and is dealt less"

    def _deal_anew(self, done: Done) -> None:
        """Use the newest speeds if that gains enough, and it is no single step in which something else went on."""
        count, measured = done.num_units, self.workers(done.num_units, done.seconds)
        now = finish(shares(count, self.workers(count, self._used)), measured)
        best = finish(shares(count, measured), measured)
        gains = now > _GAIN * best and (now - best) * done.unit_samples > MATTERS_SECONDS
        self._gains = self._gains + 1 if gains else 0
        if gains and (self._gains >= _STEPS_IN_A_ROW or now > _GAIN_AT_ONCE * best):
            self._used, self._gains = dict(done.seconds), 0

    def _try_again(self, done: Done) -> None:
        """Choose whom to give a unit although the others would be done earlier without: it may be faster by now."""
        waited = {member: self._idle_seconds.get(member, 0.0) + done.longest for member in sorted(done.idle)}
        self._idle_seconds = waited
        costs = {member: done.seconds[member] * done.unit_samples for member in waited if member in done.seconds}
        due = [member for member, cost in costs.items() if len(costs) * cost <= _TRIAL_SHARE * waited[member]]
        self._trial = due[0] if due else None

    def _deal(self, count: int) -> list[int]:
        found = shares(count, self.workers(count, self._used))
        if self._trial is not None and count == self._full:
            rank = self.group.members.index(self._trial)
            if found[rank] == 0 and self.limit(rank, count) > 0 and count > 1:
                found[found.index(max(found))] -= 1
                found[rank] += 1
        return found
