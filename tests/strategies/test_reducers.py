"""Sums of gradients, by every way there is: on one node, on several, and where nodes share no memory."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from two_hosts import as_hosts

from hpcvol.comm import Group, shared_memory
from hpcvol.kernels import fixed_point
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.exact_reducers import ExactBetween, NodeExact, PlainExact
from hpcvol.strategies.float_reducers import FloatsBetween, NodeFloats, PlainFloats
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.reducer import Blocks

LAYOUTS = [[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 2, 3]]
WAYS = ["node", "no memory", "ring", *map(str, LAYOUTS)]
BUCKETS = [(0, 1040), (1040, 1056), (1056, 40_000), (40_000, 40_016)]
NUMEL = BUCKETS[-1][1]
STARTS, STOPS = zip(*BUCKETS, strict=True)
NUMELS = tuple(stop - start for start, stop in BUCKETS)
LAYOUT = Layout(STARTS, NUMELS, NUMEL, tuple(BUCKETS), tuple(range(len(BUCKETS))))


@contextmanager
def strategy_of(group: Group, way: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AllReduce, type, type]]:
    """A strategy that takes one of `WAYS`, and the classes that show that it does."""
    layout: Sequence[int] = eval(way)[: group.size] if way.startswith("[") else [0] * group.size
    if len(set(layout)) == 1:
        if way == "no memory":
            monkeypatch.setattr(shared_memory, "_allocated", refuse)
        strategy = AllReduce(group, "ring" if way == "ring" else "auto")
        plain = way in ("no memory", "ring")
        yield (strategy, PlainFloats, PlainExact) if plain else (strategy, NodeFloats, NodeExact)
        strategy.close()
        return
    with as_hosts(group, layout) as spread, as_hosts(group, layout) as of_thread:
        monkeypatch.setattr(spread, "split", lambda _: of_thread, raising=False)
        strategy = AllReduce(spread)
        yield strategy, FloatsBetween, ExactBetween
        strategy.close()


def refuse(_: int) -> int:
    raise OSError("refused by a test")


def floats(rank: int, step: int, dtype: Any) -> Any:
    return np.random.default_rng([rank, step]).integers(-1000, 1000, NUMEL).astype(dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_summed_and_divided(group: Group, way: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with strategy_of(group, way, monkeypatch) as (strategy, kind, _):
        reducer = strategy.floats(LAYOUT, Memory(NUMEL, np.dtype(dtype)))
        assert isinstance(reducer, kind)
        place = reducer.vector.ctypes.data
        assert place % 64 == 0 or kind is PlainFloats
        for step in range(3):
            reducer.vector[:] = floats(group.rank, step, dtype)
            for bucket in range(len(BUCKETS)):
                reducer.push(bucket)
            if step == 1:
                reducer.drop()
                continue
            reducer.finish(8, 2)
            wanted = sum(floats(rank, step, dtype) for rank in range(group.size)) / 8
            np.testing.assert_array_equal(reducer.vector, wanted)
        assert reducer.vector.ctypes.data == place


@pytest.mark.parametrize("way", WAYS)
def test_all_ranks_have_the_same_bits_every_time(group: Group, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with strategy_of(group, way, monkeypatch) as (strategy, _, _):
        reducer = strategy.floats(LAYOUT, Memory(NUMEL, np.dtype(np.float32)))
        digests = set()
        for _ in range(2):
            reducer.vector[:] = np.random.default_rng(group.rank).standard_normal(NUMEL)
            for bucket in range(len(BUCKETS)):
                reducer.push(bucket)
            reducer.finish(3, 1)
            digests |= set(group.gather_objects(hashlib.sha256(reducer.vector.tobytes()).hexdigest()))
        assert len(digests) == 1


def totals_of(rank: int, step: int) -> Any:
    """Integers that fit into 32 bits in the first step, some that do not in the next, and the largest of all."""
    total = np.random.default_rng([rank, step]).integers(-(2**26), 2**26, NUMEL)
    if step:
        total[[1050, 5000, 39_999]] = np.array([2**31, -(2**40), 2**58]) * step
    return total


BLOCKS = Blocks(
    np.array([0, 256, 512, 1040, *range(1056, 40_000, 256), 40_000]),
    np.array([256, 256, 100, 7, *[256] * 152, 32, 9]),
    np.exp2(np.arange(158) % 30.0),
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_integers_are_summed_and_read_as_means(
    group: Group, way: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(BLOCKS.starts) == len(BLOCKS.numels) == len(BLOCKS.scales)
    with strategy_of(group, way, monkeypatch) as (strategy, _, kind):
        reducer = strategy.exact(LAYOUT, Memory(NUMEL, np.dtype(np.int64)), Memory(NUMEL, np.dtype(dtype)))
        assert isinstance(reducer, kind)
        for step in range(4):
            mine = totals_of(group.rank, step)
            reducer.totals[:] = mine
            for bucket in range(len(BUCKETS)):
                reducer.push(bucket)
            if step == 1:
                reducer.drop()
                continue
            reducer.finish(BLOCKS, 12)
            np.testing.assert_array_equal(reducer.totals, mine)  # what a recovery would need
            wanted = np.zeros(NUMEL, dtype)
            total = sum(totals_of(rank, step) for rank in range(group.size))
            fixed_point.means(total, *BLOCKS.table, 12.0, wanted)
            np.testing.assert_array_equal(reducer.means, wanted)
