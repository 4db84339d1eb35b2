"""Shuffling within windows of shards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcvol.data.windowed import WindowedOrder
from hpcvol.errors import DataError

pytestmark = pytest.mark.without_mpi

SHARDS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(SHARDS, st.integers(1, 14), st.integers(0, 2**63 - 1), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once_an_epoch(rows: list[int], window: int, seed: int, epoch: int) -> None:
    order = WindowedOrder(rows, window)
    assert sorted(order(seed, epoch, 0, order.num_samples)) == list(range(sum(rows)))


@given(SHARDS, st.integers(1, 5), st.integers(0, 99), st.data())
@settings(max_examples=60, deadline=None)
def test_any_part_is_computed_without_the_rest(rows: list[int], window: int, epoch: int, data: st.DataObject) -> None:
    order = WindowedOrder(rows, window)
    whole = order(7, epoch, 0, order.num_samples)
    begin = data.draw(st.integers(0, order.num_samples))
    count = data.draw(st.integers(0, order.num_samples - begin))
    np.testing.assert_array_equal(order(7, epoch, begin, count), whole[begin : begin + count])


@given(SHARDS, st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rows_come_from_the_shards_that_were_announced(rows: list[int], window: int, epoch: int) -> None:
    order = WindowedOrder(rows, window)
    owners = np.repeat(np.arange(len(rows)), rows)
    whole = owners[order(3, epoch, 0, order.num_samples)]
    for position, shard in enumerate(whole):
        ahead = order.shards_ahead(3, epoch, position)
        assert shard in ahead[:window]
        assert len(ahead) <= 2 * window
    # Two windows at most are needed at a time: the announced shards cover what comes next.
    first = order.shards_ahead(3, epoch, 0)
    assert set(whole[: sum(rows[shard] for shard in first[:window])]) == set(first[:window])


def test_epochs_differ_and_a_window_of_all_is_a_shuffle() -> None:
    order = WindowedOrder([100] * 8, 8)
    one, two = order(0, 0, 0, 800), order(0, 1, 0, 800)
    assert (one != two).mean() > 0.9
    assert abs(np.corrcoef(one, np.arange(800))[0, 1]) < 0.2


def test_positions_beyond_the_epoch_are_refused() -> None:
    with pytest.raises(DataError, match="not all within an epoch of 5 samples"):
        WindowedOrder([2, 3], 1)(0, 0, 3, 3)
