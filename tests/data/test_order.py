import doctest
import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.data import order
from hpcvol.errors import DataError

pytestmark = pytest.mark.without_mpi


@given(st.integers(1, 2000), st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_an_epoch_visits_every_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    np.testing.assert_array_equal(np.sort(order(num_samples, seed, epoch, 0, num_samples)), np.arange(num_samples))


@given(st.integers(1, 2000), st.integers(1, 300))
def test_steps_of_any_size_give_the_same_epoch(num_samples: int, batch: int) -> None:
    steps = [order(num_samples, 1, 2, at, min(batch, num_samples - at)) for at in range(0, num_samples, batch)]
    np.testing.assert_array_equal(np.concatenate(steps), order(num_samples, 1, 2, 0, num_samples))


def test_epochs_and_seeds_differ() -> None:
    orders = {order(1000, seed, epoch, 0, 1000).tobytes() for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_the_first_sample_is_uniform() -> None:
    counts = np.bincount([int(order(10, 3, epoch, 0, 1)[0]) for epoch in range(5000)], minlength=10)
    assert counts.min() > 400
    assert counts.max() < 600


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0, 0, 0, 0), "no order of 0 samples"),
        ((10, 0, 0, 8, 3), "Positions 8 to 10"),
        ((10, 0, 0, -1, 3), "Positions -1"),
        ((10, -1, 0, 0, 3), "seed is -1"),
        ((10, 0, 2**63, 0, 3), "epoch is"),
    ],
)
def test_out_of_range_is_refused(arguments: tuple[int, int, int, int, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        order(*arguments)


def test_its_example_is_true() -> None:
    module = importlib.import_module("hpcvol.data.order")  # the package's attribute of that name is the function
    failed, attempted = doctest.testmod(module)
    assert attempted == 2
    assert failed == 0
