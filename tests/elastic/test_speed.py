"""Speeds: a pause is no slowness, and who is slow is told once."""

from hpcvol.elastic.speed import RELEASE, SlowMembers, Stopwatch, slow_among


def test_a_speed_is_the_median_of_the_last_units() -> None:
    watch = Stopwatch()
    for seconds, samples in ((70.0, 2), (50.0, 2), (1.0, 2), (1.5, 3)):
        watch.count(seconds, samples)
        assert watch.sample_seconds is None, "two units after two that warm up are too few"
    watch.count(900.0, 3)
    assert watch.sample_seconds == 0.5
    for _ in range(9):
        watch.count(4.0, 2)
    assert watch.sample_seconds == 2.0


def test_a_steps_units_count_all() -> None:
    watch = Stopwatch()
    for _ in range(3):
        for number in range(30):
            watch.count(1.0 if number < 20 else 5.0, 1)
        assert watch.sample_seconds == 1.0
        watch.end_step()
    for _ in range(5):
        watch.count(3.0, 1)
    assert watch.sample_seconds == 3.0, "of nine units: a longer step's before are forgotten"


def test_after_a_pause_one_unit_tells() -> None:
    watch = Stopwatch()
    for _ in range(20):
        watch.count(4.0, 2)
    watch.pause()
    assert watch.sample_seconds == 2.0
    watch.count(1.0, 2)
    assert watch.sample_seconds == 0.5


def test_who_stands_out_is_slow() -> None:
    assert [one.member for one in slow_among({0: 1.0, 1: 1.1, 5: 0.9, 7: 10.0}, 1)] == [7]
    assert [(one.member, one.times) for one in slow_among({0: 1.0, 1: 10.0}, 1)] == [(1, 10.0)]
    assert slow_among({0: 1.0}, 1) == []
    assert slow_among({0: 1.0, 1: 1.1, 2: 1.4}, 1) == [], "not so much slower"
    assert slow_among({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, 1) == [], "all differ"
    assert slow_among({0: 1e-5, 1: 9e-5, 2: 1e-5}, 4) == [], "it does not matter"


def test_it_is_told_once_after_some_steps_and_again_when_it_is_of_no_use() -> None:
    slow = SlowMembers()
    usual, worse = {0: 1.0, 1: 1.0, 2: 9.0}, {0: 1.0, 1: 1.0, 2: 2 * RELEASE}
    told = [slow.look(usual, 1) for _ in range(30)]
    assert [index for index, news in enumerate(told) if news] == [9]
    assert [(one.member, one.released) for one in told[9]] == [(2, False)]
    told = [slow.look(worse, 1) for _ in range(30)]
    assert [(one.member, one.released) for news in told for one in news] == [(2, True)]
    assert not any(slow.look(usual, 1) for _ in range(30))


def test_a_step_in_between_begins_anew() -> None:
    slow = SlowMembers()
    for step in range(40):
        seconds = {0: 1.0, 1: 1.0, 2: 1.0 if step % 9 == 8 else 9.0}
        assert slow.look(seconds, 1) == []
