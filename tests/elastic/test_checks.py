"""Who computes which unit again, and who is found to be wrong."""

import math

import pytest

from hpcvol.elastic.checks import WORD, Guilty, added_otherwise, another, draw, odd_one_out, seed_of
from hpcvol.errors import MemberError

pytestmark = pytest.mark.without_mpi

MEMBERS = (0, 2, 5, 7)


def seed(step: int) -> bytes:
    return seed_of({member: f"{member} {step}".encode() for member in MEMBERS})


def test_every_members_number_counts() -> None:
    nonces = {0: b"a", 3: b"b"}
    others = [{0: b"c", 3: b"b"}, {0: b"a", 3: b"c"}]
    assert len({seed_of(nonces), *map(seed_of, others)}) == 3
    assert seed_of(dict(reversed(nonces.items()))) == seed_of(nonces)


def test_nobody_checks_itself_and_all_check() -> None:
    owners = {unit: MEMBERS[unit % 4] for unit in range(16)}
    pairs = {(owners[unit], who) for step in range(20) for unit, who in draw(seed(step), owners, MEMBERS, 1.0).items()}
    assert pairs == {(owner, who) for owner in MEMBERS for who in MEMBERS if who != owner}
    assert draw(seed(0), owners, MEMBERS, 0.0) == {}


@pytest.mark.parametrize(("corrupted_share", "within"), [(1.0, 100), (0.01, 4700)])
def test_a_liar_is_caught_within(corrupted_share: float, within: int) -> None:
    """At p = 0.1, in 99 of 100 runs: as arithmetic has it, and as units are drawn."""
    assert 1 - (1 - 0.1 * corrupted_share) ** within >= 0.99
    corrupted, runs, caught = round(within * corrupted_share), 500, 0
    for run in range(runs):
        caught += any(draw(seed(run * corrupted + unit), {unit: 0}, MEMBERS, 0.1) for unit in range(corrupted))
    assert caught / runs >= 0.99 - 3 * math.sqrt(0.99 * 0.01 / runs)


def test_units_are_drawn_at_their_share() -> None:
    drawn = sum(len(draw(seed(step), dict.fromkeys(range(50), 0), MEMBERS, 0.1)) for step in range(400))
    assert abs(drawn / 20_000 - 0.1) < 4 * math.sqrt(0.09 / 20_000)


def test_a_third_is_another() -> None:
    assert another(b"", 3, MEMBERS, [0, 2, 7]) == 5
    assert another(b"", 3, MEMBERS, MEMBERS) == -1


def test_the_odd_one_out() -> None:
    assert odd_one_out([(1, "a"), (2, "b"), (3, "a")]) == 2
    assert odd_one_out([(1, "b"), (2, "a"), (3, "a")]) == 1
    assert odd_one_out([(1, "a"), (2, "b"), (3, "c")]) is None
    assert odd_one_out([(1, "a"), (2, "b")]) is None


def test_who_added_otherwise() -> None:
    parts = [[5, 7, WORD - 3], [1, 2, 3], [0, 4, 9]]  # of slice, of member
    units = {0: 6, 2: 13, 5: 9}
    slices = [sum(part) % WORD for part in parts]
    assert added_otherwise((0, 2, 5), units, parts, [slices] * 3) is None
    guilty = added_otherwise((0, 2, 5), {**units, 2: 14}, parts, [slices] * 3)
    assert isinstance(guilty, Guilty)
    assert (guilty.member, "had shown" in guilty.why) == (2, True)
    guilty = added_otherwise((0, 2, 5), units, parts, [[slices[0], slices[1], 1]] * 3)
    assert isinstance(guilty, Guilty)
    assert (guilty.member, "handed on" in guilty.why) == (5, True)


def test_who_has_another_sum_than_most() -> None:
    parts = [[5, 7, 1], [1, 2, 3], [0, 4, 9]]
    units = {0: 6, 2: 13, 5: 13}
    slices = [sum(part) for part in parts]
    with pytest.raises(MemberError, match="member 2 says that it handed on another sum than member 5 has") as raised:
        added_otherwise((0, 2, 5), units, parts, [slices, slices, [slices[0], 0, slices[2]]])
    assert raised.value.everywhere


def test_of_two_nobody_is_guilty_of_a_wrong_sum() -> None:
    with pytest.raises(MemberError, match="no majority"):
        added_otherwise((0, 2), {0: 1, 2: 5}, [[1, 2], [0, 3]], [[3, 3], [4, 3]])
