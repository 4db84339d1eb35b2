"""Walking through large vectors: each block once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.kernels.stream import announce, padded, put_back, visited

pytestmark = pytest.mark.without_mpi


@given(st.integers(0, 200))
def test_each_block_is_visited_once(num_blocks: int) -> None:
    assert sorted(visited(turn, num_blocks) for turn in range(num_blocks)) == list(range(num_blocks))


def test_four_pages_are_read_side_by_side() -> None:
    assert [visited(turn, 40) // 4 for turn in range(16)] == [0, 1, 2, 3] * 4
    assert [visited(turn, 40) for turn in range(32, 40)] == list(range(32, 40))


def test_announcing_reads_nothing() -> None:
    announce(np.zeros(1).ctypes.data, 0, 40, 1024)  # most of this is not there


def test_padding_and_putting_back() -> None:
    array = np.arange(10, dtype=np.float32)
    np.testing.assert_array_equal(padded(array, 7, 5), [7, 8, 9, 0, 0])
    put_back(np.array([1, 2, 3, 4], np.float32), array, 8)
    np.testing.assert_array_equal(array, [0, 1, 2, 3, 4, 5, 6, 7, 1, 2])
