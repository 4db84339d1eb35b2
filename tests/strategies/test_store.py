"""The store of vectors: what was pushed is there once, in one order, whoever is slow, however far away."""

from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import pytest
from two_hosts import hosts_of

from hpcvol.comm import Group
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.shards import Shards
from hpcvol.strategies.store import Store, add

KEYS = [[3, 5000, 1, 40_000, 17], [9000]]  # uneven ones, of two dtypes
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
LAYOUTS = [Layout.of(numels, 8192) for numels in KEYS]


def make_store(group: Group, spec: ParameterServer, staleness: float = np.inf) -> tuple[Store, Shards, Any, Any]:
    shards = Shards(group, spec)
    pushed = [Memory(layout.numel, dtype) for layout, dtype in zip(LAYOUTS, DTYPES, strict=True)]
    pulled = [np.arange(layout.numel).astype(dtype) for layout, dtype in zip(LAYOUTS, DTYPES, strict=True)]
    return Store(shards, LAYOUTS, pushed, pulled, add, staleness), shards, pushed, pulled


def value_of(step: int, vector: int) -> Any:
    """Small integers, so that any order of additions gives the same floats."""
    chance = np.random.default_rng([step, vector])
    return chance.integers(-8, 9, LAYOUTS[vector].numel).astype(DTYPES[vector])


@pytest.mark.parametrize(
    ("servers", "replicas", "hosts"), [("all", 0, 1), (1, 0, 1), ("all", 1, 2), (1, 0, 2), (2, 1, 2)]
)
def test_fifty_pushes_each(
    group: Group, servers: Any, replicas: int, hosts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewest = 1 if servers == "all" else servers + 1
    if group.size < max(fewest, replicas + 1):
        pytest.skip("needs more members")
    with nullcontext(group) if hosts == 1 else hosts_of(group, monkeypatch) as members:
        store, shards, pushed, pulled = make_store(members, ParameterServer(servers, replicas))
        workers = [
            rank for rank, member in enumerate(members.members) if servers == "all" or member not in shards.servers
        ]
        number = 50 * len(workers)
        with closing(store):
            for first, until in ((0, number // 2), (number // 2, number)):
                store.begin(workers, first, until)
                mine = []
                while (step := store.claim()) is not None:
                    for vector, memory in enumerate(pushed):
                        memory.mine[:] = value_of(step, vector)
                    mine.append(step)
                    store.push({"step": step})
                log = store.finish()
                assert [one.number for one in log] == list(range(first + 1, until + 1))
                assert sorted(one.step for one in log) == list(range(first, until))
                assert [one.record["step"] for one in log] == [one.step for one in log]
                assert [one.step for one in log if one.rank == members.rank] == mine
                for vector, found in enumerate(pulled):
                    start = np.arange(LAYOUTS[vector].numel).astype(DTYPES[vector])
                    wanted = sum((value_of(step, vector) for step in range(until)), start)
                    np.testing.assert_array_equal(found, wanted)
        members.barrier()
