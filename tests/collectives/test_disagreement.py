"""Members that call different collectives of vectors: an error on all that shows both sides, whatever the algorithm."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import get_args

import numpy as np
import pytest

from hpcvol.collectives import Algorithm, allreduce, broadcast
from hpcvol.comm import Group, calls
from hpcvol.errors import CommError
from hpcvol.strategies.allreduce import AllReduce

ALGORITHMS = [name for name in get_args(Algorithm) if name != "hierarchical"]  # it takes several nodes


@pytest.fixture
def own(group: Group) -> Iterator[Group]:
    """A group to spoil."""
    if group.size == 1:
        pytest.skip("one rank agrees with itself")
    made = group.split(0)
    yield made
    group.barrier()
    made.close()


def pinned(algorithm: Algorithm) -> str:
    return "" if algorithm == "auto" else f" by {algorithm}"


def others(group: Group, algorithm: Algorithm, numel: int) -> dict[str, tuple[Callable[[], object], str]]:
    """Return calls that do not fit an all-reduce of `numel` float32, and their names in words."""
    longer, integers = np.zeros(numel + 1, np.float32), np.zeros(numel, np.int32)
    vector = np.zeros(numel, np.float32)
    by = pinned(algorithm)
    another: Algorithm = "library" if algorithm == "ring" else "ring"
    return {
        "length": (partial(allreduce, group, longer, "sum", algorithm), f"allreduce sum float32[{numel + 1}]{by}"),
        "dtype": (partial(allreduce, group, integers, "sum", algorithm), f"allreduce sum int32[{numel}]{by}"),
        "op": (partial(allreduce, group, vector, "max", algorithm), f"allreduce max float32[{numel}]{by}"),
        "algorithm": (
            partial(allreduce, group, vector, "sum", another),
            f"allreduce sum float32[{numel}]{pinned(another)}",
        ),
        "name": (partial(broadcast, group, vector), f"broadcast float32[{numel}]"),
        "barrier": (group.barrier, "barrier"),
        "any": (partial(group.any, True), "any"),
        "gather_objects": (partial(group.gather_objects, 1), "gather_objects"),
    }


@pytest.mark.parametrize("numel", [3, 100_000])
@pytest.mark.parametrize("what", ["length", "dtype", "op", "algorithm", "name", "barrier", "any", "gather_objects"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_both_sides_are_shown(own: Group, algorithm: Algorithm, what: str, numel: int) -> None:
    # Choosing may take a measurement, which is a call of its own; and a rank that compiles does not answer.
    allreduce(own, np.zeros(numel, np.float32), "sum", algorithm)
    allreduce(own, np.zeros(numel, np.float32), "max", algorithm)
    vector = np.ones(numel, np.float32)
    other, said = others(own, algorithm, numel)[what]
    call = other if own.rank == own.size - 1 else partial(allreduce, own, vector, "sum", algorithm)
    with pytest.raises(CommError) as caught:
        call()
    text = str(caught.value)
    assert "members disagree about collective call" in text
    assert re.search(
        rf"{re.escape(own.name_of(own.size - 1))} calls {re.escape(said)} at .*test_disagreement.py:", text
    ), text
    assert re.search(
        rf" calls? allreduce sum float32\[{numel}\]{pinned(algorithm)} at .*test_disagreement.py:", text
    ), text


def test_a_first_call_of_another_algorithm_is_told_too(own: Group) -> None:
    odd = own.rank == own.size - 1
    with pytest.raises(CommError, match=r"allreduce sum float32\[5\] by ring at") as caught:
        allreduce(own, np.ones(5, np.float32), "sum", "ring" if odd else "staged")
    assert "allreduce sum float32[5] by staged at" in str(caught.value)


def test_strategies_that_pin_different_algorithms_are_told(own: Group) -> None:
    odd = own.rank == own.size - 1
    with pytest.raises(CommError, match="choose_algorithm by ring at") as caught:
        AllReduce(own, "ring" if odd else "auto")
    assert re.search("calls? choose_algorithm at", str(caught.value))


def test_the_algorithms_of_fingerprints_are_those_there_are() -> None:
    assert get_args(Algorithm) == calls.ALGORITHMS
