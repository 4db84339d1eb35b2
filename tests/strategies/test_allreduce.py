"""All-reduce as a strategy: sums and maxima of integers, without rounding, the same on all ranks."""

import numpy as np
import pytest

from hpcvol.collectives import Algorithm
from hpcvol.comm import Group
from hpcvol.strategies.allreduce import AllReduce


def numbers(rank: int, numel: int) -> np.ndarray:
    return np.random.default_rng([rank, numel]).integers(-(2**60), 2**60, numel)


@pytest.mark.parametrize("algorithm", ["auto", "ring", "library"])
@pytest.mark.parametrize("numel", [0, 1, 3, 997])
def test_sum_and_maximum_of_integers(group: Group, algorithm: Algorithm, numel: int) -> None:
    strategy = AllReduce(group, algorithm)
    everybody = np.array([numbers(rank, numel) for rank in range(group.size)])
    total, largest = numbers(group.rank, numel), numbers(group.rank, numel)
    strategy.sum(total)
    strategy.max(largest)
    np.testing.assert_array_equal(total, everybody.sum(axis=0))
    np.testing.assert_array_equal(largest, everybody.max(axis=0))
