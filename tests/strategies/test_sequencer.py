"""Who does which step, and which push counts: by property, over any speeds and deaths."""

import heapq
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hpcvol.strategies.sequencer import Apply, Drop, End, Go, Order, Sequencer, Take, Version

STALENESS = st.sampled_from([0, 1, 2, 8, math.inf])


class World:
    """Workers and holders that do as they are told, at speeds of their own, while some of them die.

    Args:
        remote: of the holders, those that receive pushes by message.
    """

    def __init__(self, sequencer: Sequencer, workers: list[int], remote: set[int], data: Any, deaths: int) -> None:
        self.sequencer = sequencer
        self.living = set(workers) | remote
        self.remote = remote
        self.data = data
        self.deaths = deaths
        self.now = 0.0
        self.events: list[tuple[float, int, str, tuple[int, ...]]] = []
        self.applied: list[Version] = []
        self.held: dict[int, list[int]] = {holder: [] for holder in remote}
        self.ended: set[int] = set()
        self.at: dict[int, tuple[int, int]] = {}  # what each is at: its step, and the version that it began from
        self.computing: set[int] = set()
        self.clock = dict.fromkeys(workers, 0)
        self.paces = {rank: data.draw(st.floats(0.1, 10), label=f"pace of {rank}") for rank in workers}

    def later(self, seconds: float, kind: str, *of: int) -> None:
        heapq.heappush(self.events, (self.now + seconds, len(self.events) + len(self.applied) * 1000, kind, of))

    def obey(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case Go(rank, step, version):
                    assert version == len(self.applied)
                    # Those that wait, and get nothing as they would be late, push nothing either.
                    workers = [one for one in self.clock if one in self.at or one == rank]
                    assert self.clock[rank] - min(self.clock[one] for one in workers) <= self.sequencer.staleness
                    assert step not in {other for other, _ in self.at.values()}
                    self.at[rank] = step, version
                    self.computing.add(rank)
                    self.later(self.paces[rank], "computed", rank)
                    if self.data.draw(st.booleans(), label="pushes while it computes"):
                        self.later(self.paces[rank] / 2, "early", rank)
                case Take(holder, rank):
                    self.held[holder].append(rank)
                    assert len(self.computing.intersection(self.held[holder])) <= 1, "places are held by who computes"
                    self.later(self.data.draw(st.floats(0, 3)), "staged", holder, rank)
                case Apply(version):
                    step, read = self.at.pop(version.rank)
                    assert version.rank not in self.computing
                    assert (version.step, version.clock) == (step, self.clock[version.rank])
                    assert version.number == len(self.applied) + 1
                    assert version.missed == len(self.applied) - read
                    assert version.behind <= self.sequencer.staleness
                    for holder in self.remote & self.living:
                        assert version.rank in self.held[holder], "it counts before all have it"
                        self.held[holder].remove(version.rank)
                    self.applied.append(version)
                    self.clock[version.rank] += 1
                    self.later(0.0, "claim", version.rank)
                case Drop(rank):
                    assert rank not in self.living
                    for holder in self.remote:
                        self.held[holder] = [one for one in self.held[holder] if one != rank]
                case End(rank):
                    self.ended.add(rank)

    def run(self) -> None:
        for rank in self.clock:
            self.later(self.data.draw(st.floats(0, 1)), "claim", rank)
        for _ in range(self.deaths):
            victim = self.data.draw(st.sampled_from(sorted(self.living)), label="dies")
            self.later(self.data.draw(st.floats(0, 30)), "dies", victim)
        while self.events:
            self.now, _, kind, of = heapq.heappop(self.events)
            if of[0] not in self.living:
                continue
            if kind == "claim":
                self.obey(self.sequencer.claim(of[0], self.now))
            elif kind == "early":
                self.obey(self.sequencer.early(of[0], self.remote))
            elif kind == "computed":
                self.computing.discard(of[0])
                self.obey(self.sequencer.ready(of[0], self.remote, {"of": of[0]}, self.now))
            elif kind == "staged":
                if of[1] in self.held[of[0]]:
                    self.obey(self.sequencer.staged(*of))
            elif len(self.living & set(self.clock)) > 1 or of[0] not in self.clock:
                self.living.discard(of[0])
                self.at.pop(of[0], None)
                self.computing.discard(of[0])
                self.obey(self.sequencer.died(of[0]))


@given(st.data(), st.integers(1, 5), st.integers(0, 3), st.integers(0, 25), STALENESS, st.integers(0, 4))
def test_every_step_counts_once_and_nobody_is_too_far_ahead(
    data: Any, workers: int, servers: int, steps: int, staleness: float, deaths: int
) -> None:
    remote = set(range(100, 100 + servers))
    sequencer = Sequencer(range(workers), remote, staleness, 0, 10, 10 + steps)
    world = World(sequencer, list(range(workers)), remote, data, deaths)
    world.run()
    counted = sorted(version.step for version in world.applied)
    # Where one that holds something has died, all meet: without holes, and at every step that was begun.
    assert counted == list(range(10, 10 + (len(counted) if remote - world.living else steps)))
    assert world.applied == sequencer.log
    assert world.ended & world.living == world.living & set(range(workers))


@given(st.data(), st.integers(2, 5), STALENESS)
def test_no_step_is_begun_after_a_stop(data: Any, workers: int, staleness: float) -> None:
    sequencer = Sequencer(range(workers), [], staleness, 0, 0, 1000)
    world = World(sequencer, list(range(workers)), set(), data, 0)
    for rank in range(workers):
        world.obey(sequencer.claim(rank, 0.0))
    begun = {step for step, _ in world.at.values()}
    world.obey(sequencer.stop())
    while world.events:
        world.now, _, kind, of = heapq.heappop(world.events)
        if kind == "claim":
            world.obey(sequencer.claim(of[0], world.now))
        elif kind == "computed":
            world.computing.discard(of[0])
            world.obey(sequencer.ready(of[0], [], None, world.now))
    assert {version.step for version in world.applied} == begun
    assert world.ended == set(range(workers))


def test_a_worker_that_is_alone_in_front_waits() -> None:
    sequencer = Sequencer([0, 1], [], 1, 0, 0, 10)
    assert sequencer.claim(0, 0.0) == [Go(0, 0, 0)]
    assert sequencer.claim(1, 0.0) == [Go(1, 1, 0)]
    assert len(sequencer.ready(0, [], None, 1.0)) == 1
    assert sequencer.claim(0, 0.0) == [Go(0, 2, 1)]
    sequencer.ready(0, [], None, 1.0)
    assert sequencer.claim(0, 0.0) == []
    apply, go = sequencer.ready(1, [], None, 1.0)
    assert isinstance(apply, Apply)
    assert apply.version.missed == 2
    assert go == Go(0, 3, 3)
    assert go.rank == 0


def test_who_would_be_late_leaves_the_last_steps_to_others() -> None:
    sequencer = Sequencer([0, 1], [], math.inf, 0, 0, 5)
    for rank in (0, 1):
        sequencer.claim(rank, 0.0)
    sequencer.ready(0, [], None, 1.0)
    assert sequencer.claim(0, 1.0) == [Go(0, 2, 1)]
    sequencer.ready(0, [], None, 2.0)
    assert sequencer.claim(0, 2.0) == [Go(0, 3, 2)]
    sequencer.ready(1, [], None, 2.5)
    assert sequencer.claim(1, 2.5) == []  # it would take to 5.0; the other one does the last step by 4.0
    sequencer.ready(0, [], None, 3.0)
    assert sequencer.claim(0, 3.0) == [Go(0, 4, 4)]
    assert sequencer.died(0) == [Go(1, 4, 4)]


def test_who_was_slow_is_left_out_of_a_short_phase_and_tried_again_later() -> None:
    sequencer = Sequencer([0, 1], [], math.inf, 0, 0, 2)
    for rank in (0, 1):
        sequencer.claim(rank, 0.0)
    sequencer.ready(0, [], None, 1.0)
    sequencer.ready(1, [], None, 8.0)
    taken = []
    for phase in range(1, 4):
        known = sequencer.expected_seconds()
        sequencer = Sequencer([0, 1], [], math.inf, 0, 2 * phase, 2 * phase + 2, seconds=known)
        orders = [*sequencer.claim(1, 0.0), *sequencer.claim(0, 0.0)]
        for now in (1.0, 2.0):
            taken += [order.rank for order in orders if isinstance(order, Go)]
            orders = [*sequencer.ready(0, [], None, now), *sequencer.claim(0, now)]
    assert taken == [0, 0, 0, 0, 1, 0]


def test_a_push_of_one_who_has_died_is_nothing() -> None:
    sequencer = Sequencer([0, 1], [9], math.inf, 0, 0, 2)
    sequencer.claim(0, 0.0)
    sequencer.died(0)
    assert sequencer.ready(0, [9], None, 1.0) == []
    assert sequencer.staged(9, 0) == []


def test_a_push_that_began_early_counts_when_its_step_is_done() -> None:
    sequencer = Sequencer([0, 1], [8, 9], math.inf, 0, 0, 4)
    for rank in (0, 1):
        sequencer.claim(rank, 0.0)
    assert sequencer.early(0, [8, 9]) == [Take(8, 0), Take(9, 0)]
    assert sequencer.early(0, [8, 9]) == []
    assert sequencer.early(1, [8, 9]) == []  # one at a time
    assert sequencer.ready(1, [8, 9], "one", 1.0) == [Take(8, 1), Take(9, 1)]
    assert [*sequencer.staged(8, 0), *sequencer.staged(9, 0), *sequencer.staged(8, 1)] == []
    (apply,) = sequencer.ready(0, [8, 9], "zero", 2.0)
    assert isinstance(apply, Apply)
    assert apply.version.record == "zero"
    assert isinstance(sequencer.staged(9, 1)[0], Apply)
    sequencer.claim(1, 2.0)
    assert sequencer.early(1, [9]) == [Take(9, 1)]
    assert sequencer.died(1)[0] == Drop(1)


def test_a_stop_after_a_phase_that_was_cut_off_leaves_no_holes() -> None:
    sequencer = Sequencer([0, 1], [], math.inf, 3, 0, 10, done=[0, 1, 5])
    assert sequencer.claim(0, 0.0) == [Go(0, 2, 3)]
    sequencer.stop()
    for step in (3, 4):
        sequencer.ready(0, [], None, 1.0)
        assert sequencer.claim(0, 1.0) == [Go(0, step, sequencer.version)]
    sequencer.ready(0, [], None, 1.0)
    assert sequencer.claim(0, 1.0) == [End(0)]
    assert {one.step for one in sequencer.log} == {2, 3, 4}


def test_the_end_reaches_servers_whose_workers_have_all_gone() -> None:
    sequencer = Sequencer([0, 1], [7], math.inf, 0, 0, 10)
    assert sequencer.claim(7, 0.0) == []
    sequencer.claim(0, 0.0)
    sequencer.claim(1, 0.0)
    assert sequencer.died(0) == []
    assert sequencer.give_up(1) == [End(7)]
    alone = Sequencer([0], [7], math.inf, 0, 0, 10)
    alone.claim(7, 0.0)
    alone.claim(0, 0.0)
    assert alone.died(0) == [End(7)]


def test_a_holders_death_has_all_meet_so_that_another_gets_a_copy() -> None:
    sequencer = Sequencer([0, 1], [0, 8], math.inf, 0, 0, 10)
    sequencer.claim(1, 0.0)
    assert sequencer.died(8) == []
    sequencer.ready(1, [], None, 1.0)
    assert sequencer.claim(1, 1.0) == [End(1)]
