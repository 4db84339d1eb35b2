"""All-reduce in steps within and between nodes: ranks of one machine dealt out to nodes of any sizes."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from two_hosts import as_hosts

from hpcvol.collectives import allreduce, hierarchical
from hpcvol.collectives.algorithms import CANDIDATES
from hpcvol.comm import Group

# Which node each of 4 ranks is on: two and two, uneven, mixed up, one each.
LAYOUTS = [[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 2, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_equals_numpy_on_any_layout(group: Group, layout: list[int]) -> None:
    layout = layout[: group.size]
    with as_hosts(group, layout) as spread:
        sizes = [layout.count(node) for node in dict.fromkeys(layout)]
        assert sorted(spread.carriers.node_sizes) == sorted(sizes)
        assert spread.carriers.number == min(sizes)
        carries = spread.node.rank < min(sizes) and len(sizes) > 1
        assert (spread.carriers.peers is not None) == carries
        for between, numel in itertools.product(CANDIDATES.values(), (0, 1, 3, 97, 70_001)):
            rows = [np.random.default_rng([rank, numel]).integers(-9, 9, numel) * 1.0 for rank in range(group.size)]
            vector = rows[group.rank].copy()
            hierarchical.allreduce(spread, vector, "mean", between.allreduce)
            np.testing.assert_array_equal(vector, np.sum(rows, axis=0) / group.size, err_msg=f"{between.name} {numel}")


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=str)
def test_all_ranks_end_with_the_same_bits_every_time(group: Group, layout: list[int]) -> None:
    with as_hosts(group, layout[: group.size]) as spread:
        for between in CANDIDATES.values():
            digests = set()
            for _ in range(2):
                vector = np.random.default_rng(group.rank).standard_normal(5003).astype(np.float32)
                hierarchical.allreduce(spread, vector, "sum", between.allreduce)
                digests |= set(group.gather_objects(hashlib.sha256(vector.tobytes()).hexdigest()))
            assert len(digests) == 1, between.name


@pytest.mark.parametrize("algorithm", ["auto", "hierarchical", "ring"])
def test_public_calls_work_on_two_nodes(group: Group, algorithm: Any) -> None:
    with as_hosts(group, [0, 0, 1, 1][: group.size]) as spread:
        for dtype in (np.float32, np.int64):
            vector = np.full(1003, group.rank, dtype)
            allreduce(spread, vector, "sum", algorithm)
            np.testing.assert_array_equal(vector, np.full(1003, sum(range(group.size))))


def test_a_node_level_of_ones_own(group: Group) -> None:
    """What shared memory will do: the steps within nodes can be anybody's."""

    class Counting(hierarchical.ByMessages):
        calls = 0

        def reduce_scatter(self, *args: Any) -> None:
            type(self).calls += 1
            super().reduce_scatter(*args)

    with as_hosts(group, [0, 0, 1, 1][: group.size]) as spread:
        vector = np.full(8, 1.0)
        hierarchical.allreduce(spread, vector, "sum", CANDIDATES["ring"].allreduce, Counting())
        assert vector.tolist() == [group.size] * 8
        assert Counting.calls == (spread.node.size > 1)
