import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.data.partition import DEFAULT, WINDOW_ROWS, assign_name, assign_rows, parse_split
from hpcvol.errors import ConfigError

pytestmark = pytest.mark.without_mpi


def test_parse_split() -> None:
    assert parse_split(DEFAULT) == {"train": 0.9, "val": 0.05, "test": 0.05}
    assert parse_split({"train": 1}) == {"train": 1.0}


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train=.9,val=.2", "add up to 1.1"),
        ("train=.9,val=x", "cannot be read"),
        ("train", "cannot be read"),
        ("", "add up to 0"),
        ("train=1,val=0", "val has a share of 0"),
        ("train=.5,train=.5", "twice"),
        ("../x=1", "Split name"),
    ],
)
def test_bad_splits_are_refused(split: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_split(split)


@given(st.integers(0, 1000), st.integers(1, WINDOW_ROWS), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_every_window_is_divided_in_proportion(window: int, num_rows: int, weights: list[int]) -> None:
    shares = {f"s{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    splits = assign_rows(window, num_rows, shares)
    counts = np.bincount(splits, minlength=len(shares))
    assert counts.sum() == num_rows
    assert (np.abs(counts - num_rows * np.array(list(shares.values()))) < 1 + 1e-6).all()


def test_windows_are_divided_at_random() -> None:
    shares = parse_split(DEFAULT)
    divisions = {assign_rows(window, WINDOW_ROWS, shares).tobytes() for window in range(20)}
    assert len(divisions) == 20


def test_documents_keep_their_split_and_fill_all() -> None:
    shares = parse_split(DEFAULT)
    splits = [assign_name(f"folder/file{i}.py", shares) for i in range(4000)]
    assert splits == [assign_name(f"folder/file{i}.py", shares) for i in range(4000)]
    assert abs(splits.count("train") / 4000 - 0.9) < 0.02
    assert abs(splits.count("test") / 4000 - 0.05) < 0.015
