"""Shares follow from what committed steps told, and from nothing else."""

from typing import Any

import pytest

from hpcvol.elastic.dealing import Dealing, Done, Proportional, Terms
from hpcvol.elastic.speed import Slow

UNITS = 16


class FourMembers:
    """As much of a group as dealing asks for."""

    rank = 0
    size = 4
    members = (0, 1, 2, 5)
    hosts = ("a", "a", "b", "b")

    def gather_objects(self, mine: Any) -> list[Any]:
        return [mine, None, None, None]


def done(*seconds: float, idle: tuple[int, ...] = (), longest: float = 8.0, units: int = UNITS) -> Done:
    return Done(dict(zip(FourMembers.members, seconds, strict=True)), frozenset(idle), units, 1.0, longest)


def make(kind: type[Dealing], **terms: Any) -> Any:
    return kind(FourMembers(), Terms(**terms))  # type: ignore[arg-type]


def test_shares_are_equal_until_something_is_known() -> None:
    for kind in (Dealing, Proportional):
        dealing = make(kind)
        assert dealing.dealt(UNITS) == [4, 4, 4, 4]
        assert dealing.share(range(UNITS)) == [0, 1, 2, 3]


def test_shares_follow_speeds_where_that_gains_enough() -> None:
    dealing = make(Proportional)
    dealing.committed(done(1.0, 1.0, 1.0, 1.05))
    assert dealing.dealt(UNITS) == [4, 4, 4, 4], "noise"
    dealing.committed(done(1e-5, 1e-5, 1e-5, 1e-4))
    assert dealing.dealt(UNITS) == [4, 4, 4, 4], "it does not matter"
    dealing.committed(done(1.0, 1.0, 1.0, 3.0))
    assert dealing.dealt(UNITS) == [5, 5, 5, 1]
    dealing.committed(done(1.0, 1.0, 1.0, 2.9))
    assert dealing.dealt(UNITS) == [5, 5, 5, 1]
    equal = make(Dealing)
    equal.committed(done(1.0, 1.0, 1.0, 3.0))
    assert equal.dealt(UNITS) == [4, 4, 4, 4]


def test_a_gain_that_does_not_last_is_noise() -> None:
    dealing = make(Proportional)
    usual, slower = done(1.0, 1.0, 1.0, 1.0), done(1.0, 1.0, 1.0, 1.4)
    for one in (slower, slower, usual, slower, slower, done(1.0, 1.0, 1.0, 1.4, units=3)):
        dealing.committed(one)
        assert dealing.dealt(UNITS) == [4, 4, 4, 4]
    dealing.committed(slower)
    assert dealing.dealt(UNITS) == [5, 4, 4, 3]


def test_an_epochs_last_step_tells_nothing() -> None:
    dealing = make(Proportional)
    dealing.committed(done(1.0, 1.0, 1.0, 1.0))
    dealing.committed(done(3.0, 1.0, 1.0, 1.0, units=1))
    assert dealing.dealt(UNITS) == [4, 4, 4, 4]
    dealing.rebuild()
    dealing.committed(done(3.0, 1.0, 1.0, 1.0, units=1))
    assert dealing.dealt(UNITS) == [1, 5, 5, 5], "no member knows of steps before"


def test_after_a_change_of_members_speeds_are_still_known() -> None:
    dealing = make(Proportional)
    dealing.committed(done(1.0, 1.0, 1.0, 3.0))
    dealing.rebuild()
    assert dealing.dealt(UNITS) == [5, 5, 5, 1]


def test_an_idle_member_is_tried_again_when_that_costs_little() -> None:
    dealing = make(Proportional)
    dealing.committed(done(1.0, 1.0, 1.0, 20.0))
    tried = []
    for step in range(500):
        if dealing.dealt(UNITS)[3]:
            tried.append(step)
            assert dealing.dealt(UNITS) == [5, 5, 5, 1]
            dealing.committed(done(1.0, 1.0, 1.0, 20.0, longest=20.0))
        else:
            dealing.committed(done(1.0, 1.0, 1.0, 20.0, idle=(5,), longest=6.0))
    assert tried[0] == 334  # 334 steps of 6 s make 2000 s, of which 20 s are a hundredth
    assert len(tried) == 1
    for _ in range(3):
        dealing.committed(done(1.0, 1.0, 1.0, 1.0))
    assert dealing.dealt(UNITS) == [4, 4, 4, 4]


def test_trials_of_several_members_cost_as_little_as_one() -> None:
    dealing = make(Proportional)
    tried: list[list[int]] = []
    both = done(1.0, 1.0, 20.0, 20.0, idle=(2, 5))
    dealing.committed(done(1.0, 1.0, 20.0, 20.0))
    while not tried or (len(tried) < 1000 and not any(tried[-1][2:])):
        dealing.committed(both)
        tried.append(dealing.dealt(UNITS))
    assert len(tried) == 500  # steps of 8 s make 4000 s, of which both take a hundredth together
    assert tried[-1] == [7, 8, 1, 0]
    assert dealing.dealt(UNITS - 1) == [8, 7, 0, 0], "other work than a whole step"


def test_a_released_member_gets_nothing() -> None:
    dealing = make(Proportional)
    dealing.committed(done(1.0, 1.0, 1.0, 31.0))
    assert dealing.dealt(1000) == [334, 333, 333, 0]
    assert "too slow to be of use" in dealing.consequence(Slow(5, 31.0))
    assert "is dealt less" in dealing.consequence(Slow(5, 3.0))
    assert 'elastic.dealing = "static"' in make(Dealing).consequence(Slow(5, 3.0))


@pytest.mark.parametrize("kind", [Dealing, Proportional])
def test_members_are_named_by_id_or_host(kind: type[Dealing]) -> None:
    assert make(kind, limits={"b": 2, "5": 1}).dealt(UNITS) == [7, 6, 2, 1]
    assert make(kind, priorities={"b": 0.0}).dealt(UNITS) == [8, 8, 0, 0]
    assert make(kind, priorities={"a": 3.0}).dealt(UNITS) == [6, 6, 2, 2]
    assert make(kind, priorities={"a": 3e6, "b": 1e6}).dealt(UNITS) == [6, 6, 2, 2]
    assert make(kind, limits={"a": 1, "b": 1}).dealt(UNITS) == [4, 4, 4, 4], "they are fewer than the units"
    assert make(kind, limits={"a": 1}, priorities={"b": 0.0}).dealt(UNITS) == [8, 8, 0, 0], "but nothing is nothing"
    assert make(kind, priorities={"a": 0.0, "b": 0.0}).dealt(UNITS) == [4, 4, 4, 4], "somebody has to"


def test_priorities_are_no_seconds() -> None:
    dealing = make(Proportional, priorities={"a": 1e-3, "b": 1e-3})
    for _ in range(3):
        dealing.committed(done(1e-5, 1e-5, 1e-5, 1e-4))
    assert dealing.dealt(UNITS) == [4, 4, 4, 4], "it does not matter"
