"""Epochs of several datasets with weights: who is taken how often, whatever the weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcvol.data import Dataset, build_dataset, mix
from hpcvol.data.mixing import MixedOrder
from hpcvol.errors import DataError

pytestmark = pytest.mark.without_mpi

PARTS = st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 4).filter(lambda w: w > 0)), min_size=1, max_size=4)


def mixed(parts: Sequence[tuple[int, float]]) -> MixedOrder | None:
    if any(round(rows * weight) < 1 for rows, weight in parts):
        return None
    return MixedOrder([rows for rows, _ in parts], [weight for _, weight in parts])


def counts(order: MixedOrder, num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.bincount(order(seed, epoch, 0, order.num_samples), minlength=num_rows)


@given(PARTS, st.integers(0, 2**63 - 1), st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_each_row_is_taken_floor_or_ceiling_of_its_weight(
    parts: list[tuple[int, float]], seed: int, epoch: int
) -> None:
    order = mixed(parts)
    if order is None:
        return
    found = counts(order, sum(rows for rows, _ in parts), seed, epoch)
    assert len(found) == sum(rows for rows, _ in parts)
    begin = 0
    for rows, weight in parts:
        own, samples = found[begin : begin + rows], round(rows * weight)
        assert own.sum() == samples
        assert set(own) <= {samples // rows, -(-samples // rows)}
        begin += rows


@given(PARTS, st.integers(0, 2**63 - 1), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_over_epochs_no_row_gets_two_turns_more_than_another_of_its_dataset(
    parts: list[tuple[int, float]], seed: int, epochs: int
) -> None:
    order = mixed(parts)
    if order is None:
        return
    num_rows = sum(rows for rows, _ in parts)
    total = sum((counts(order, num_rows, seed, epoch) for epoch in range(epochs)), np.zeros(num_rows, np.int64))
    begin = 0
    for rows, _ in parts:
        own = total[begin : begin + rows]
        assert own.max() - own.min() <= 1
        begin += rows


@given(PARTS, st.integers(0, 2**31), st.integers(0, 5), st.data())
@settings(max_examples=40, deadline=None)
def test_any_part_of_an_epoch_is_computed_without_the_rest(
    parts: list[tuple[int, float]], seed: int, epoch: int, data: st.DataObject
) -> None:
    order = mixed(parts)
    if order is None:
        return
    whole = order(seed, epoch, 0, order.num_samples)
    begin = data.draw(st.integers(0, order.num_samples))
    count = data.draw(st.integers(0, order.num_samples - begin))
    np.testing.assert_array_equal(order(seed, epoch, begin, count), whole[begin : begin + count])


def test_epochs_and_seeds_differ_and_datasets_are_mixed_throughout() -> None:
    order = MixedOrder([600, 300], [1, 2])
    one, two, other = order(0, 0, 0, 1200), order(0, 1, 0, 1200), order(1, 0, 0, 1200)
    assert (one != two).any()
    assert (one != other).any()
    shares = (one.reshape(12, 100) >= 600).mean(axis=1)
    assert 0.3 < shares.min() < shares.max() < 0.7


def test_memory_does_not_depend_on_the_rows() -> None:
    order = MixedOrder([10**14, 10**13], [1.5, 2.25])
    rows = order(3, 2**30, 10**14, 256)
    assert len(np.unique(rows)) == 256
    assert ((rows >= 0) & (rows < 11 * 10**13)).all()


def make(folder: Path, name: str, first: int, count: int, dtype: str = "i8") -> Path:
    np.savez(folder / f"{name}.npz", x=np.arange(first, first + count).astype(dtype))
    return build_dataset("npz", [folder / f"{name}.npz"], folder / name, split="train=.8,val=.2")


def test_two_folders_are_read_as_one(tmp_path: Path) -> None:
    one, two = make(tmp_path, "one", 0, 100), make(tmp_path, "two", 1000, 50)
    split = mix({one: 1, two: 0.5})
    assert len(split) == 120
    assert split.order.num_samples == 100
    found = split.take(split.order(0, 0, 0, 100))["x"]
    expected = {int(x) for path in (one, two) for x in Dataset.open(path).split("train").take(np.arange(40))["x"]}
    assert expected >= {int(x) for x in found if x >= 1000}
    assert (found >= 1000).sum() == 20
    assert len(np.unique(found)) == 100


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf"), 1e30, 1_000_001, 0, -1])
def test_weights_that_cannot_be_are_refused(weight: float) -> None:
    with pytest.raises(DataError, match=r"weight of a dataset is .*, expected a number above 0 and at most 1e\+06"):
        MixedOrder([900, 10], [1, weight])


def test_the_largest_weight_and_an_epoch_that_is_too_long() -> None:
    assert MixedOrder([900], [1e6]).num_samples == 900_000_000
    with pytest.raises(DataError, match=r"epoch of 10000000000000000000 samples.*Lower them"):
        MixedOrder([10**13], [1e6])


def test_what_cannot_be_mixed_is_refused(tmp_path: Path) -> None:
    one, two = make(tmp_path, "one", 0, 50), make(tmp_path, "two", 0, 50, "f4")
    with pytest.raises(DataError, match=r"one has x \(int64\[\]\);.*two has x \(float32\[\]\)"):
        mix({one: 1, two: 1})
    with pytest.raises(DataError, match=r"weight of 0\.001 takes 0 of the 40 samples"):
        mix({one: 0.001})
    with pytest.raises(DataError, match=r"Split 'test' of dataset .*one does not exist"):
        mix({one: 1}, "test")
