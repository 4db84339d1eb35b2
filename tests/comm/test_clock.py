"""Clocks of ranks compared: bounds that hold however busy the machine is, because causes come before effects."""

import time

import pytest

from hpcvol.comm import Group
from hpcvol.comm.clock import compare_clocks


def test_processes_of_one_node_share_their_clock(group: Group) -> None:
    before = time.monotonic_ns()
    measured = compare_clocks(group)
    assert measured.offset_ns == 0
    assert before <= measured.at_ns <= time.monotonic_ns()
    assert (measured.round_trip_ns > 0) == (group.rank > 0)


@pytest.mark.parametrize("seconds", [3600, -7])
def test_another_clock_is_found_within_half_a_round_trip(group: Group, seconds: int) -> None:
    ahead_ns = seconds * 1_000_000_000 * group.rank
    measured = compare_clocks(group, lambda: time.monotonic_ns() + ahead_ns)
    assert abs(measured.offset_ns + ahead_ns) <= measured.error_ns
    assert measured.error_ns <= measured.round_trip_ns
