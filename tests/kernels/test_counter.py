"""A counter gives every number of a turn once, whoever asks."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import config

from hpcvol.kernels import counter


def test_numbers_come_in_order_until_none_is_left() -> None:
    words = np.zeros(1, np.int64)
    address = words.ctypes.data
    assert counter.left(address, 1, 3) == 3
    assert [counter.take(address, 1, 3) for _ in range(5)] == [0, 1, 2, -1, -1]
    assert counter.left(address, 1, 3) == 0


def test_a_later_turn_begins_anew_and_an_earlier_one_is_over() -> None:
    words = np.zeros(1, np.int64)
    address = words.ctypes.data
    assert counter.take(address, 4, 9) == 0
    assert counter.left(address, 5, 2) == 2
    assert counter.take(address, 5, 2) == 0
    assert (counter.take(address, 4, 9), counter.left(address, 4, 9)) == (-1, 0)
    assert counter.take(address, 5, 2) == 1


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="plain loads and stores are for one thread")  # type: ignore[attr-defined]
def test_many_that_take_at_once_get_different_numbers() -> None:
    words = np.zeros(1, np.int64)
    address, number = words.ctypes.data, 20_000
    counter.take(address, 1, 0)

    def taken() -> list[int]:
        mine = []
        while (one := counter.take(address, 2, number)) >= 0:
            mine.append(one)
        return mine

    with ThreadPoolExecutor(4) as pool:
        parts = [future.result() for future in [pool.submit(taken) for _ in range(4)]]
    assert sorted(one for part in parts for one in part) == list(range(number))
