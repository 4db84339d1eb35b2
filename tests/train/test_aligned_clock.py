"""A member's clock brought to the first member's: continuous, rising, and close however the two drift apart."""

from hypothesis import given
from hypothesis import strategies as st

from hpcvol.comm.clock import ClockOffset
from hpcvol.train.aligned_clock import AlignedClock

SECOND = 1_000_000_000
START = 5_000_000 * SECOND  # two months after the machine was started


def measured(offset_ns: int, at_ns: int, round_trip_ns: int = 0) -> ClockOffset:
    return ClockOffset(offset_ns, round_trip_ns, at_ns)


def test_the_first_comparison_holds_for_all_times() -> None:
    clock = AlignedClock(measured(-7 * SECOND, START))
    assert clock.aligned(START) == START - 7 * SECOND
    assert clock.aligned(START + 3600 * SECOND + 1) == START + 3593 * SECOND + 1
    assert clock.aligned(START - 5) == START - 5 - 7 * SECOND


def test_what_lies_within_the_error_corrects_nothing() -> None:
    clock = AlignedClock(measured(0, START))
    clock.correct(measured(400, START + SECOND, round_trip_ns=1000), START + SECOND)
    assert clock.offset(START + 10 * SECOND) == 0
    clock.correct(measured(600, START + 2 * SECOND, round_trip_ns=1000), START + 2 * SECOND)
    assert clock.offset(START + 10 * SECOND) > 0


def test_drift_is_followed() -> None:
    """50 µs a second, and comparisons at growing intervals: soon the aligned clock is right between them too."""
    drift = 50e-6
    clock = AlignedClock(measured(0, START))
    now, interval = START, 10
    while interval < 600:
        now += interval * SECOND
        true = round((now - START) * drift)
        if interval > 10:
            assert abs(clock.offset(now) - true) < 1000
        clock.correct(measured(true, now), now)
        interval *= 2


@given(
    st.lists(
        st.tuples(
            st.integers(1, 300 * SECOND), st.integers(-SECOND // 10, SECOND // 10), st.integers(0, SECOND // 100)
        ),
        max_size=6,
    )
)
def test_corrections_leave_the_past_alone_and_times_in_order(comparisons: list[tuple[int, int, int]]) -> None:
    clock = AlignedClock(measured(SECOND, START))
    now = START
    for after, offset, round_trip in comparisons:
        now += after
        past = [now - after + after * i // 7 for i in range(8)]
        before = [clock.aligned(ns) for ns in past]
        clock.correct(measured(SECOND + offset, now, round_trip), now)
        assert [clock.aligned(ns) for ns in past] == before
        times = [now + i for i in range(-3, 4)] + [now + i * SECOND for i in range(1, 7)]
        aligned = [clock.aligned(ns) for ns in sorted(times)]
        assert aligned == sorted(aligned)
        # No jump: a nanosecond stays one, but for rounding.
        assert all(0 <= clock.aligned(now + i + 1) - clock.aligned(now + i) <= 2 for i in range(-3, 3))
