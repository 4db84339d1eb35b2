"""Who does which step next, and which push is which version: what one member decides for all under staleness.

It knows no messages and no clock: it is told what has happened when, and returns what is to be said to whom.

Towards the end a slow worker gets no further step that the others would have done earlier: nobody waits for it. It
computes nothing then, so that nobody has to wait for what it will push either.

References:
    Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", NIPS 2013, section 2:
    a worker at clock c sees all updates of clocks before c - s.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Version:
    """One push that counts.

    Attributes:
        number: of the version that it made, from 1.
        rank: who pushed.
        clock: how many pushes of that one counted before.
        step: what it had computed; the first, where a worker claims several at a time.
        behind: clocks by which the slowest worker was behind when the parameters for this were handed out.
        missed: versions that came between what it was computed from and itself.
        record: what the worker told of it.
    """

    number: int
    rank: int
    clock: int
    step: int
    behind: int
    missed: int
    record: Any = None


@dataclass(frozen=True)
class Go:
    """A worker is to do `step` from parameters of version `version` or newer."""

    rank: int
    step: int
    version: int


@dataclass(frozen=True)
class End:
    """No step is left, and all that were done count."""

    rank: int


@dataclass(frozen=True)
class Take:
    """`holder` is to receive what `rank` pushes."""

    holder: int
    rank: int


@dataclass(frozen=True)
class Apply:
    """All holders are to apply what was pushed."""

    version: Version


@dataclass(frozen=True)
class Drop:
    """All holders are to forget what `rank` was pushing."""

    rank: int


Order = Go | End | Take | Apply | Drop


@dataclass
class _Worker:
    clock: int = 0
    step: int | None = None
    version: int = 0
    behind: int = 0
    began: float = 0.0
    seconds: float | None = None  # that its last step took
    missing: set[int] | None = None  # holders that have not all of its push; None before they were told to take it
    is_done: bool = False  # with its step, so that its push counts once none is missing
    record: Any = None


@dataclass
class Sequencer:
    """Hands out steps, opens the gate of staleness, and numbers pushes.

    Args:
        workers: ranks.
        holders: ranks that have to have a push before it counts.
        staleness: clocks that a worker may be ahead of the slowest one.
        version: of the parameters at first.
        first: step.
        until: behind the last step.
        done: steps that count already.
        stride: from one step that is handed out to the next.
        seconds: that workers are expected to take for a step, as far as is known.
    """

    workers: Collection[int]
    holders: Iterable[int]
    staleness: float
    version: int
    first: int
    until: int
    done: Collection[int] = ()
    stride: int = 1
    seconds: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._workers = {rank: _Worker(seconds=self.seconds.get(rank)) for rank in self.workers}
        self._holders = set(self.holders)
        self._left = [step for step in range(self.first, self.until, self.stride) if step not in set(self.done)]
        self._next = max(self.done, default=self.first - 1) + 1  # behind the highest step that was handed out
        self._now = 0.0
        self._over = False
        self._waiting: list[int] = []
        self._asking: list[int] = []  # who computes nothing and waits for the end
        self.log: list[Version] = []

    def expected_seconds(self) -> dict[int, float]:
        """Return what workers are expected to take for a step.

        Of who was slow, and so had none, half as much each time: it may be faster by now, and has to be tried.
        """
        return {
            rank: worker.seconds if worker.clock else worker.seconds / 2
            for rank, worker in self._workers.items()
            if worker.seconds is not None
        }

    def claim(self, rank: int, now: float) -> list[Order]:
        """A rank wants a step, or waits for the end where it computes nothing.

        Args:
            rank: who.
            now: seconds since some moment.
        """
        (self._waiting if rank in self._workers else self._asking).append(rank)
        self._now = now
        return self._hand_out()

    def early(self, rank: int, remote: Collection[int]) -> list[Order]:
        """A worker pushes while it still computes. Of one at a time it is taken: the others need places too.

        Args:
            rank: who.
            remote: as for `ready`, which comes later.
        """
        worker = self._workers.get(rank)
        under_way = any(one.missing is not None and not one.is_done for one in self._workers.values())
        if worker is None or worker.step is None or under_way:
            return []
        return list(self._take(rank, remote))

    def ready(self, rank: int, remote: Collection[int], record: Any, now: float) -> list[Order]:
        """A worker has computed its step.

        Args:
            rank: who.
            remote: ranks of holders that cannot see its memory.
            record: what it tells.
            now: seconds since that moment.
        """
        worker = self._workers.get(rank)
        if worker is None or worker.step is None:
            return []  # it died since
        self._now = now
        worker.seconds = now - worker.began
        worker.record, worker.is_done = record, True
        orders = self._take(rank, remote) if worker.missing is None else []
        return [*orders, *self._commit(rank)]

    def _take(self, rank: int, remote: Collection[int]) -> list[Take]:
        missing = self._workers[rank].missing = self._holders.intersection(remote)
        return [Take(holder, rank) for holder in sorted(missing)]

    def staged(self, holder: int, rank: int) -> list[Order]:
        """A holder has all of what a worker pushed."""
        worker = self._workers.get(rank)
        if worker is None or worker.missing is None:
            return []
        worker.missing.discard(holder)
        return self._commit(rank)

    def died(self, rank: int) -> list[Order]:
        """A rank is gone: what it was pushing counts if all holders have it, and otherwise is done again by another."""
        orders: list[Order] = []
        if rank in self._holders:
            self._holders.discard(rank)
            for other, worker in list(self._workers.items()):
                if other != rank and worker.missing:
                    worker.missing.discard(rank)
                    orders += self._commit(other)
            orders += self.stop()  # so that what it held is copied to another one
        return [*orders, *self._forget(rank)]

    def give_up(self, rank: int) -> list[Order]:
        """A worker cannot go on, and will meet the others: no further steps are handed out, to anybody."""
        self._left.clear()
        self._over = True
        return [*self._forget(rank), *self._end_all()]

    def _forget(self, rank: int) -> list[Order]:
        orders: list[Order] = []
        self._waiting = [one for one in self._waiting if one != rank]
        self._asking = [one for one in self._asking if one != rank]
        gone = self._workers.pop(rank, None)
        if gone is not None and gone.step is not None:
            if not self._over:
                heapq.heappush(self._left, gone.step)
            if gone.missing is not None:
                orders.append(Drop(rank))
        return [*orders, *self._hand_out()]

    def stop(self) -> list[Order]:
        """Hand out no step beyond those that were handed out, so that what will be done has no holes."""
        self._left = [step for step in self._left if step < self._next]
        return self._hand_out()

    def _commit(self, rank: int) -> list[Order]:
        worker = self._workers[rank]
        if not worker.is_done or worker.missing or worker.step is None:
            return []
        self.version += 1
        missed = self.version - 1 - worker.version
        made = Version(self.version, rank, worker.clock, worker.step, worker.behind, missed, worker.record)
        self.log.append(made)
        worker.clock += 1
        worker.step, worker.missing, worker.record, worker.is_done = None, None, None, False
        return [Apply(made), *self._hand_out()]

    def _hand_out(self) -> list[Order]:
        """Give steps to those who wait and may go on; end the phase where there is nothing left to do."""
        orders: list[Order] = []
        for rank in list(self._waiting):
            idle = {one for one in self._waiting if self._would_be_late(one)}
            slowest = min((worker.clock for one, worker in self._workers.items() if one not in idle), default=0)
            worker = self._workers[rank]
            if self._left and rank not in idle and worker.clock - slowest <= self.staleness:
                self._waiting.remove(rank)
                worker.step, worker.version = heapq.heappop(self._left), self.version
                self._next = max(self._next, worker.step + 1)
                worker.behind, worker.began = worker.clock - slowest, self._now
                orders.append(Go(rank, worker.step, self.version))
        return [*orders, *self._end_all()]

    def _end_all(self) -> list[Order]:
        """End the phase if nothing is left that anybody could do."""
        at_work = any(worker.step is not None for worker in self._workers.values())
        if at_work or (self._left and self._workers):
            return []
        orders = [End(rank) for rank in [*self._waiting, *self._asking]]
        self._waiting, self._asking = [], []
        return list(orders)

    def _would_be_late(self, rank: int) -> bool:
        """Whether the others are expected to have done all that is left before this one could have done a step."""
        own = self._workers[rank].seconds
        others = [worker.seconds for one, worker in self._workers.items() if one != rank]
        known = [seconds for seconds in others if seconds]
        if own is None or not known or len(known) < len(others):
            return False
        return own > len(self._left) / sum(1 / seconds for seconds in known) + min(known)
