"""How often to write a checkpoint: the formulas against a brute-force optimum, and when the next one is due."""

import math

import pytest

from hpcvol.train.cadence import FIRST_SECONDS, Cadence, daly_interval, young_interval

HOUR = 3600.0


def expected_seconds(interval: float, cost: float, mtbf: float) -> float:
    """Daly's model of one hour of work with exponential failures and no restart time: M·(e^((τ+δ)/M) - 1) / τ."""
    return mtbf * math.expm1((interval + cost) / mtbf) * HOUR / interval


@pytest.mark.parametrize(("cost", "mtbf", "seconds"), [(1.0, 24 * HOUR, 415.692), (2.0, 9.0, 6.0), (0.0, 5.0, 0.0)])
def test_young(cost: float, mtbf: float, seconds: float) -> None:
    assert young_interval(cost, mtbf) == pytest.approx(seconds, rel=1e-5)


@pytest.mark.parametrize(("cost", "mtbf"), [(0.1, 24 * HOUR), (5.0, HOUR), (60.0, HOUR), (300.0, 2 * HOUR)])
def test_daly_is_near_the_best_interval_of_all(cost: float, mtbf: float) -> None:
    daly = daly_interval(cost, mtbf)
    tried = [daly * factor for factor in (0.5, 0.8, 0.9, 1.1, 1.25, 2.0)]
    at_daly = expected_seconds(daly, cost, mtbf)
    assert all(at_daly < expected_seconds(interval, cost, mtbf) for interval in tried)
    best = min(expected_seconds(daly * (0.5 + i / 1000), cost, mtbf) for i in range(1000))
    assert at_daly <= best * (1 + 1e-6)
    # To the higher order it beats the first: by more, the more a checkpoint costs.
    assert at_daly <= expected_seconds(young_interval(cost, mtbf), cost, mtbf)


@pytest.mark.parametrize(
    ("cost", "mtbf", "seconds"),
    [
        (2.0, 100.0, 20.0 * (1 + 0.1 / 3 + 0.01 / 9) - 2.0),
        (200.0, 100.0, 100.0),  # a checkpoint costs as much as two interruptions
        (1000.0, 100.0, 100.0),
    ],
)
def test_daly_by_hand(cost: float, mtbf: float, seconds: float) -> None:
    assert daly_interval(cost, mtbf) == pytest.approx(seconds)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_every_so_many_steps() -> None:
    cadence = Cadence(3, mtbf_hours=1.0)
    assert [step for step in range(1, 10) if cadence.due(step)] == [3, 6, 9]
    assert cadence.measured(10.0, 10.0) is None
    assert not cadence.can_wait


def test_none() -> None:
    cadence = Cadence(0, mtbf_hours=1.0)
    assert not any(cadence.due(step) for step in range(1, 100))


def test_auto_starts_with_a_minute_and_goes_by_what_was_measured() -> None:
    clock = Clock()
    cadence = Cadence("auto", mtbf_hours=24.0, clock=clock)
    assert cadence.can_wait
    clock.now += FIRST_SECONDS - 1
    assert not cadence.due(1)
    clock.now += 1
    assert cadence.due(2)
    cadence.begun()
    assert not cadence.due(3)
    news = cadence.measured(copy_seconds=0.1, write_seconds=1.0)
    interval = daly_interval(1.0, 24 * HOUR)
    assert news is not None
    assert f"every {interval:.0f} s" in news
    clock.now += interval - 1
    assert not cadence.due(4)
    clock.now += 2
    assert cadence.due(5)


def test_the_interval_is_news_when_it_is_new_or_changes_a_lot() -> None:
    cadence = Cadence("auto", mtbf_hours=24.0)
    told = [cadence.measured(0.1, seconds) is not None for seconds in (1.0, 1.2, 3.0, 10.0, 9.0, 1.0)]
    assert told == [True, False, False, True, False, True]


def test_the_copy_counts_where_it_takes_longer_than_the_write() -> None:
    one, other = Cadence("auto", mtbf_hours=24.0), Cadence("auto", mtbf_hours=24.0)
    said, same = one.measured(5.0, 1.0), other.measured(1.0, 5.0)
    assert said is not None
    assert same is not None
    assert said.partition(":")[0] == same.partition(":")[0]


def test_never_more_often_than_one_can_be_written() -> None:
    clock = Clock()
    cadence = Cadence("auto", mtbf_hours=1.0 / HOUR, clock=clock)  # an interruption each second
    cadence.begun()
    cadence.measured(0.1, 30.0)
    clock.now += 29.0
    assert not cadence.due(1)
    clock.now += 1.0
    assert cadence.due(2)
