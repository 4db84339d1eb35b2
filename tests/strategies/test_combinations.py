"""Combinations that outliers cannot decide: which there are, and what they resist."""

from typing import Any

import numpy as np
import pytest

from hpcvol.errors import ConfigError
from hpcvol.strategies.combinations import CentredClip, Krum, Median, TrimmedMean, parse

pytestmark = pytest.mark.without_mpi

MEMBERS, FAULTY, NUMEL = 7, 2, 200
GARBAGE = {
    "large": lambda row: 1e6 * row[::-1],
    "opposite": lambda row: -10 * row,
    "not a number": lambda row: row * np.nan,
    "infinite": lambda row: row + np.inf,
}
ROBUST = ["median", "trimmed_mean:0.28", "krum:2", "multi_krum:2", "centred_clip:20"]


def alone(_: Any) -> None:
    """Whole vectors are in one place."""


def test_parse() -> None:
    assert parse("mean") is None
    assert parse("median") == Median()
    assert parse("trimmed_mean:0.1") == TrimmedMean(0.1)
    assert parse("krum:1") == Krum(1)
    assert parse("multi_krum:2") == Krum(2, several=True)
    assert parse("centred_clip:1.5") == CentredClip(1.5)


MISTAKES = ("", "mode", "mean:1", "median:2", "trimmed_mean", "trimmed_mean:0.5", "trimmed_mean:0", "trimmed_mean:x")
MISTAKEN_NUMBERS = ("krum", "krum:-1", "krum:1.5", "centred_clip:0", "centred_clip:nan", "centred_clip:inf")


@pytest.mark.parametrize("text", MISTAKES + MISTAKEN_NUMBERS)
def test_what_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected .*median"):
        parse(text)


def honest() -> Any:
    generator = np.random.default_rng(0)
    return generator.standard_normal(NUMEL) + generator.standard_normal((MEMBERS, NUMEL))


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("text", ROBUST)
def test_faulty_members_do_not_decide(text: str, garbage: str) -> None:
    stack = honest()
    truth = stack[FAULTY:].mean(axis=0)
    with np.errstate(invalid="ignore"):
        for member in range(FAULTY):
            stack[member] = GARBAGE[garbage](stack[member])
    combination = parse(text)
    assert combination is not None
    kept = stack.copy()
    found = combination.combine(stack, alone)
    spread = np.linalg.norm(honest() - truth, axis=1).max()
    assert np.linalg.norm(found - truth) < spread
    with np.errstate(invalid="ignore"):
        assert not np.linalg.norm(stack.mean(axis=0) - truth) < spread, "a mean would have done as well"
    np.testing.assert_array_equal(stack, kept)


@pytest.mark.parametrize("text", ROBUST)
def test_members_that_agree_are_right(text: str) -> None:
    combination = parse(text)
    assert combination is not None
    stack = np.tile(honest()[0], (MEMBERS, 1))
    np.testing.assert_allclose(combination.combine(stack, alone), stack[0], rtol=1e-12)


def test_krum_takes_the_closest_and_multi_krum_averages() -> None:
    stack = np.array([[0.0], [1.0], [1.1], [1.2], [9.0], [1.3], [-9.0]])
    assert Krum(2).combine(stack, alone).tolist() == [1.1]  # nearest three of 1.1: 0.1, 0.1, 0.2
    stack[4:5] = 1.15
    np.testing.assert_allclose(Krum(1, several=True).combine(stack, alone), [1.15])  # 1.1, 1.15, 1.2 of five


def test_a_clipped_member_moves_the_centre_by_no_more_than_its_share() -> None:
    stack = np.zeros((5, 4))
    stack[4, 0] = 1e9
    found = CentredClip(2.0).combine(stack, alone)
    assert 0 < np.linalg.norm(found) <= 3 * 2.0 / 5
