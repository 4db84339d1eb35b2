"""Members of a node take units one after the other, as they get to them; nodes are dealt blocks of units beforehand.

Who is expected to be done late with another unit leaves it to the others, so that nobody waits for the slowest. What is
taken is known to the members of the node alone, in memory that they share; a dead member's units come to light when
those that live tell what they have computed.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from hpcvol.comm import Group
from hpcvol.comm.shared_memory import SharedMemory, allocate
from hpcvol.elastic.bag import Bag
from hpcvol.elastic.dealing import Dealing, Fetch, Proportional, Terms
from hpcvol.elastic.shares import expected_end
from hpcvol.elastic.units import UnitSpan
from hpcvol.kernels import counter

_COUNTER_NBYTES = 64
_LOOK_SECONDS = 0.0005
_PATIENCE = 2.0  # how many times as late as expected others may be before their units are taken after all
_ROUNDING = 1 + 1e-9  # the fastest member is always in time


class Claims:
    """The units of a node that are there for whoever comes first.

    Args:
        spans: the units.
        address: of the node's counter.
        turn: which dealing this is.
    """

    def __init__(self, spans: Sequence[UnitSpan], address: int, turn: int) -> None:
        self._spans = spans
        self._address = address
        self._turn = turn

    def take(self) -> UnitSpan | None:
        """Return the next unit, which nobody else gets; None where none is left. Local."""
        number = counter.take(self._address, self._turn, len(self._spans))
        return None if number < 0 else self._spans[number]

    @property
    def left(self) -> int:
        """How many units nobody has taken yet."""
        return int(counter.left(self._address, self._turn, len(self._spans)))


class ClaimedBag(Bag):
    """A bag that takes the unit after the one that it gives out, so that its samples are fetched meanwhile.

    Args:
        first: units that are this member's anyway.
        claims: what else it may take.
        most: how many of those.
        seconds: a unit, of this member and of each other of the node that may take all the rest: an estimate, which
            decides who leaves units to others, never whether they are computed.
        fetch: called with each unit that was taken.
    """

    def __init__(
        self, first: Sequence[UnitSpan], claims: Claims, most: int, seconds: Sequence[float], fetch: Fetch
    ) -> None:
        super().__init__(first)
        self._claims = claims
        self._most = most
        self._seconds = seconds
        self._fetch = fetch

    def __bool__(self) -> bool:
        return bool(self._spans) or (self._most > 0 and self._claims.left > 0)

    def __iter__(self) -> Iterator[UnitSpan]:
        while self._spans or self._wait():
            span = self._spans.popleft()
            if not self._spans and self._in_time(held=1):
                self._take()
            yield span

    def _in_time(self, held: int) -> bool:
        """Whether one more unit after so many would be done before the others could be done with all that are left."""
        left = self._claims.left if self._most else 0
        return left > 0 and (held + 1) * self._seconds[0] <= _ROUNDING * expected_end(left, self._seconds, held)

    def _take(self) -> None:
        span = self._claims.take()
        if span is not None:
            self._most -= 1
            self.put([span])
            self._fetch([span])

    def _wait(self) -> bool:
        """Return whether there is another unit to compute, when that is known.

        Units that were left to others are taken after all when nobody took one for much longer than expected.
        """
        if not self._most:
            return False
        seen, until = 0, 0.0
        while left := self._claims.left:
            if left != seen:
                seen, until = left, time.monotonic() + _PATIENCE * expected_end(left, self._seconds, held=1)
            if self._in_time(held=0) or time.monotonic() > until:
                self._take()
                break
            time.sleep(_LOOK_SECONDS)
        return bool(self._spans)


class Claiming(Proportional):
    """Deals units to nodes in proportion to what their members can do together; within a node they take them."""

    def __init__(self, group: Group, terms: Terms) -> None:
        self._memory: SharedMemory | None = None
        self._turn = 0
        super().__init__(group, terms)

    def rebuild(self) -> None:
        """See `Dealing`."""
        super().rebuild()
        memory = self._memory
        self._memory = memory.with_peers_of(self.group) if memory else allocate(self.group, _COUNTER_NBYTES)
        me = self.group.members[self.group.rank]
        together = me if self._memory is None else self.group.node.members[0]
        told = self.group.gather_objects((together, self._turn))
        self._node_of = [node for node, _ in told]
        # The counter is now that of another member, who may have seen later turns than this one.
        self._turn = max(turn for _, turn in told)

    def known_ahead(self, spans: Sequence[UnitSpan]) -> list[UnitSpan]:
        """See `Dealing`: a member's first unit."""
        return self._first_and_rest(spans)[0]

    def bag(self, spans: Sequence[UnitSpan], fetch: Fetch) -> Bag:
        """See `Dealing`."""
        self._turn += 1
        first, rest, ranks = self._first_and_rest(spans)
        fetch(first)
        if self._memory is None or not rest:
            return Bag(first)
        samples = sum(span.count for span in spans) / len(spans)
        workers = self.workers(len(spans), self.seconds)
        more = [most - bool(dealt) for most, dealt in zip(self._most(len(spans)), self.dealt(len(spans)), strict=True)]
        rank = self.group.rank
        # Nothing is left to who may not take it.
        others = [workers[one].seconds * samples for one in ranks if one != rank and more[one] >= len(rest)]
        claims = Claims(rest, int(self._memory.addresses[0]), self._turn)
        return ClaimedBag(first, claims, more[rank], [workers[rank].seconds * samples, *others], fetch)

    def _first_and_rest(self, spans: Sequence[UnitSpan]) -> tuple[list[UnitSpan], list[UnitSpan], list[int]]:
        """Return the unit that this member begins with, what else its node has to compute, and the node's ranks.

        A member that shares memory with nobody has its whole part at once.
        """
        dealt, rank = self.dealt(len(spans)), self.group.rank
        nodes = list(dict.fromkeys(self._node_of))
        ranks_of = {node: [one for one, its in enumerate(self._node_of) if its == node] for node in nodes}
        start = 0
        for node in nodes[: nodes.index(self._node_of[rank])]:
            start += sum(dealt[one] for one in ranks_of[node])
        ranks = ranks_of[self._node_of[rank]]
        block = list(spans[start : start + sum(dealt[one] for one in ranks)])
        if len(ranks) == 1:
            return block, [], ranks
        beginners = [one for one in ranks if dealt[one]]
        first = [block[beginners.index(rank)]] if rank in beginners else []
        return first, block[len(beginners) :], ranks

    def _most(self, count: int) -> list[int]:
        """Return how many units each member may take, by rank: at least its share, so that none is left over.

        One of lower priority than another gets no more than that.
        """
        highest = max(self.priority(rank) for rank in range(self.group.size))
        most = []
        for rank, (share, worker) in enumerate(zip(self.dealt(count), self.workers(count, self._used), strict=True)):
            most.append(share if self.priority(rank) < highest else max(share, worker.limit))
        return most


def dealing_of(group: Group, terms: Terms, sum: str) -> Dealing:
    """Return the dealing that a user asks for. Collective."""
    kinds: dict[str, Callable[[Group, Terms], Dealing]] = {
        "equal": Dealing,
        "static": Proportional,
        "dynamic": Claiming,
        "auto": Proportional if sum == "exact" else Dealing,
    }
    return kinds[terms.kind](group, terms)
