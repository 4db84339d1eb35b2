"""Members that take units one after the other: each unit once, and nobody waits for the slowest. In virtual time."""

import heapq

import numpy as np
import pytest

from hpcvol.elastic.claiming import ClaimedBag, Claims
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
