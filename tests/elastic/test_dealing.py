"""Shares of units: in proportion to speed, and none is done sooner."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.elastic.dealing import shares


@pytest.mark.parametrize(
    ("number", "speeds", "expected"),
    [
        (8, [1, 1], [4, 4]),
        (7, [1, 1, 1], [3, 2, 2]),
        (2, [1, 1, 1], [1, 1, 0]),
        (0, [1, 2], [0, 0]),
        (64, [1, 1, 1, 0.1], [21, 21, 20, 2]),
        (9, [2, 1], [6, 3]),
        (5, [0, 1], [0, 5]),
        (3, [1e-9, 1e9], [0, 3]),
    ],
)
def test_known_shares(number: int, speeds: list[float], expected: list[int]) -> None:
    assert shares(number, speeds) == expected


@given(st.integers(0, 9), st.lists(st.sampled_from([0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=3))
def test_no_other_shares_are_done_sooner(number: int, speeds: list[float]) -> None:
    def seconds(given: tuple[int, ...]) -> float:
        return max(count / speed for count, speed in zip(given, speeds, strict=True))

    found = shares(number, speeds)
    assert sum(found) == number
    every = (counts for counts in product(range(number + 1), repeat=len(speeds)) if sum(counts) == number)
    assert seconds(tuple(found)) <= min(seconds(counts) for counts in every) * (1 + 1e-12)
