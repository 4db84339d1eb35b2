"""Members that take units one after the other: each unit once, and nobody waits for the slowest. In virtual time."""

import heapq
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hpcvol.elastic import claiming
from hpcvol.elastic.claiming import ClaimedBag, Claiming, Claims
from hpcvol.elastic.dealing import Done, Terms
from hpcvol.elastic.units import Batching


def end_of_step(units: int, seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> float:
    """Return when the last member is done; who leaves units to others goes for good."""
    monkeypatch.setattr(ClaimedBag, "_wait", lambda _: False)
    words = np.zeros(1, np.int64)
    spans = Batching(units, units, 1).units(0)
    first, rest = spans[: len(seconds)], spans[len(seconds) :]
    claims = Claims(rest, words.ctypes.data, 1)
    fetched: list[int] = []
    bags = []
    for rank, own in enumerate(seconds):
        others = seconds[:rank] + seconds[rank + 1 :]
        fetch = lambda taken: fetched.extend(span.index for span in taken)  # noqa: E731
        bags.append(iter(ClaimedBag([first[rank]], claims, units, [own, *others], fetch)))
    computed, end = [], 0.0
    free = [(0.0, rank) for rank in range(len(seconds))]
    while free:
        now, rank = heapq.heappop(free)
        end = max(end, now)
        if (span := next(bags[rank], None)) is not None:
            computed.append(span.index)
            heapq.heappush(free, (now + seconds[rank], rank))
    assert sorted(computed) == list(range(units))
    assert sorted(fetched) == [span.index for span in rest]
    return end


@pytest.mark.parametrize("seconds", [[1.0, 1.0, 1.0, 10.0], [10.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 7.0], [1.0, 1.3]])
def test_a_step_ends_almost_as_early_as_speeds_allow(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = 64 / sum(1 / one for one in seconds)
    assert allowed / end_of_step(64, seconds, monkeypatch) >= 0.9


def test_equal_members_take_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert end_of_step(64, [1.0] * 4, monkeypatch) == 16.0


class Clock:
    """Time that passes as a member sleeps, while others take units at `takes`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, claims: Claims, takes: list[float]) -> None:
        self.now = 0.0
        self._claims, self._takes = claims, takes
        monkeypatch.setattr(claiming, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep))

    def _sleep(self, _: float) -> None:
        self.now += 0.01
        while self._takes and self._takes[0] <= self.now:
            self._takes.pop(0)
            assert self._claims.take() is not None


@pytest.mark.parametrize(("takes", "computed"), [([1.7, 3.4, 5.1], 0), ([1.7], 2)], ids=["late", "dead"])
def test_the_slow_take_over_from_the_dead_and_not_from_the_late(
    takes: list[float], computed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = np.zeros(1, np.int64)
    claims = Claims(Batching(3, 3, 1).units(0), words.ctypes.data, 1)
    clock = Clock(monkeypatch, claims, takes)
    bag = ClaimedBag([], claims, 3, [10.0, 1.0], lambda _: None)
    assert len(list(bag)) == computed
    assert clock.now > 5.0


class OneNode:
    """As much of a group as claiming asks for."""

    rank = 0
    size = 3
    members = (0, 1, 2)
    hosts = ("a", "a", "a")
    node = SimpleNamespace(members=(0, 1, 2))

    def gather_objects(self, mine: Any) -> list[Any]:
        return [mine] * 3


@pytest.mark.parametrize("terms", [{"limits": {"1": 2}}, {"priorities": {"1": 0.2}}], ids=str)
def test_nothing_is_left_to_who_may_not_take_it(terms: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.zeros(1, np.int64)
    monkeypatch.setattr(claiming, "allocate", lambda *_: SimpleNamespace(addresses=[words.ctypes.data]))
    monkeypatch.setattr(claiming, "time", None)  # whoever waits needs it
    dealing = Claiming(OneNode(), Terms("dynamic", **terms))  # type: ignore[arg-type]
    dealing.committed(Done({0: 10.0, 1: 1.0, 2: 10.0}, frozenset(), 9, 1.0, 30.0))
    beginners = sum(share > 0 for share in dealing.dealt(9))
    assert dealing.dealt(9)[0], "or nothing is tried"
    assert len(list(dealing.bag(Batching(9, 9, 1).units(0), lambda _: None))) == 9 - (beginners - 1)
