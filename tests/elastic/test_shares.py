"""Shares add up, end a step as early as can be, and keep limits."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.elastic.shares import Worker, expected_end, finish, shares

seconds = st.floats(1e-6, 1e6, allow_nan=False)


@given(st.integers(0, 300), st.lists(st.builds(Worker, seconds, st.integers(0, 80)), min_size=1, max_size=9))
def test_all_units_are_dealt_within_limits(count: int, workers: list[Worker]) -> None:
    dealt = shares(count, workers)
    assert sum(dealt) == count
    assert min(dealt) >= 0
    if sum(worker.limit for worker in workers) >= count:
        assert all(number <= worker.limit for number, worker in zip(dealt, workers, strict=True))


@given(st.integers(0, 60), st.integers(1, 17))
def test_equal_workers_differ_by_one_at_most_and_earlier_ones_have_more(count: int, number: int) -> None:
    dealt = shares(count, [Worker(0.3, count)] * number)
    assert max(dealt) - min(dealt) <= 1
    assert dealt == sorted(dealt, reverse=True)


@given(st.integers(1, 7), st.lists(st.builds(Worker, st.floats(0.1, 20.0), st.integers(0, 7)), min_size=1, max_size=4))
def test_no_other_shares_would_be_done_earlier(count: int, workers: list[Worker]) -> None:
    if sum(worker.limit for worker in workers) < count:
        return
    others = product(*(range(min(count, worker.limit) + 1) for worker in workers))
    best = min(finish(dealt, workers) for dealt in others if sum(dealt) == count)
    assert finish(shares(count, workers), workers) == best


def test_limits_that_are_too_low_are_none_but_those_of_nothing() -> None:
    assert shares(9, [Worker(1.0, 1), Worker(1.0, 0), Worker(2.0, 1)]) == [6, 0, 3]
    assert shares(9, [Worker(1.0, 0), Worker(2.0, 0)]) == [6, 3]


def test_a_member_ten_times_slower_gets_a_tenth() -> None:
    workers = [Worker(1.0, 64)] * 3 + [Worker(10.0, 64)]
    assert shares(64, workers) == [21, 21, 20, 2]
    assert shares(8, workers) == [3, 3, 2, 0]


@given(st.integers(1, 40), st.lists(st.floats(0.1, 20.0), min_size=1, max_size=5))
def test_the_expected_end_is_that_of_the_best_shares(count: int, times: list[float]) -> None:
    workers = [Worker(one, count) for one in times]
    assert expected_end(count, times) == pytest.approx(finish(shares(count, workers), workers))


@given(st.integers(1, 40), st.lists(st.floats(0.1, 20.0), min_size=1, max_size=5), st.integers(0, 2))
def test_the_fastest_always_expects_to_be_in_time(count: int, times: list[float], held: int) -> None:
    assert (held + 1) * min(times) <= expected_end(count, times, held) * (1 + 1e-12)


def test_units_that_come_first_count() -> None:
    assert expected_end(1, [1.0, 10.0], held=1) == 2.0
    assert expected_end(3, [1.0, 1.5], held=1) == 3.0
