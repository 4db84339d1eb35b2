"""The store of vectors: what was pushed is there once, in one order, whoever is slow, however far away."""

from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import pytest
from two_hosts import hosts_of

from hpcvol.codecs import Cast, LowRank, parse
from hpcvol.comm import Group
from hpcvol.strategies import wire
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.sequencer import Version
from hpcvol.strategies.shards import Shards
from hpcvol.strategies.store import Store, add
from hpcvol.strategies.wire import Part

KEYS = [[3, 5000, 1, 40_000, 17], [9000]]  # uneven ones, of two dtypes
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
LAYOUTS = [Layout.of(numels, 8192) for numels in KEYS]


def make_store(
    group: Group, spec: ParameterServer, staleness: float = np.inf, **more: Any
) -> tuple[Store, Shards, Any, Any]:
    shards = Shards(group, spec)
    pushed = [Memory(layout.numel, dtype) for layout, dtype in zip(LAYOUTS, DTYPES, strict=True)]
    pulled = [np.arange(layout.numel).astype(dtype) for layout, dtype in zip(LAYOUTS, DTYPES, strict=True)]
    return Store(shards, LAYOUTS, pushed, pulled, add, staleness, **more), shards, pushed, pulled


def value_of(step: int, vector: int) -> Any:
    """Small integers, so that any order of additions gives the same floats."""
    chance = np.random.default_rng([step, vector])
    return chance.integers(-8, 9, LAYOUTS[vector].numel).astype(DTYPES[vector])


@pytest.mark.parametrize("codec", ["topk:0.25", "randomk:0.5+int8", "int4", "threshold:5", "topk:0.1+dgc:9"])
@pytest.mark.parametrize(("servers", "replicas", "hosts"), [("all", 0, 1), ("all", 1, 2), (1, 0, 2)])
def test_what_is_not_pushed_is_kept(
    group: Group, codec: str, servers: Any, replicas: int, hosts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if group.size < max(1 if servers == "all" else servers + 1, replicas + 1):
        pytest.skip("needs more members")
    with nullcontext(group) if hosts == 1 else hosts_of(group, monkeypatch) as members:
        coded = parse(codec)
        assert not isinstance(coded, LowRank | None)
        store, shards, pushed, pulled = make_store(members, ParameterServer(servers, replicas), codec=coded, seed=3)
        workers = [
            rank for rank, member in enumerate(members.members) if servers == "all" or member not in shards.servers
        ]
        number = 6 * len(workers)
        residuals = [np.zeros(memory.numel * coded.residual_rows, memory.dtype) for memory in pushed]
        sent = [np.zeros(memory.numel, memory.dtype) for memory in pushed]
        with closing(store):
            store.begin(workers, 0, number)
            while (step := store.claim()) is not None:
                for vector, memory in enumerate(pushed):
                    memory.mine[:] = value_of(step, vector)
                    store.encode(vector, residuals[vector] if coded.residual_rows else None)
                    sent[vector] += memory.mine
                store.push({"step": step})
            store.finish()
            for vector, found in enumerate(pulled):
                start = np.arange(LAYOUTS[vector].numel).astype(DTYPES[vector])
                close = {"rtol": 1e-5, "atol": 1e-3}
                # What far holders decoded is what near ones read, and what the sender knows that it has sent.
                everybody = sum(members.gather_objects(sent[vector]))
                np.testing.assert_allclose(found, start + everybody, **close)
                if coded.residual_rows == 1:  # momentum makes more of it than it was
                    wanted = sum(value_of(step, vector) for step in range(number))
                    kept = sum(members.gather_objects(residuals[vector]))
                    np.testing.assert_allclose(everybody + kept, wanted, **close)
                    assert kept.any()
        members.barrier()


def test_parts_are_pushed_while_others_are_computed(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of them; short ones go with those behind them."""
    monkeypatch.setattr(wire, "_STRETCH_NBYTES", 8192)
    if group.size < 2:
        pytest.skip("two hosts")
    with hosts_of(group, monkeypatch) as members:
        store, _, pushed, pulled = make_store(members, ParameterServer())
        chance = np.random.default_rng(members.rank)
        number = 8 * members.size
        early = 0
        with closing(store):
            store.begin(range(members.size), 0, number)
            while (step := store.claim()) is not None:
                for vector, layout in enumerate(LAYOUTS):
                    pushed[vector].mine[:] = np.nan
                    before = store.sent[1]
                    for bucket in range(int(chance.integers(0, len(layout.buckets) + 1))):
                        part = slice(*layout.buckets[bucket])
                        pushed[vector].mine[part] = value_of(step, vector)[part]
                        store.push_early(vector, bucket)
                    early += store.sent[1] - before
                for vector, memory in enumerate(pushed):
                    memory.mine[:] = value_of(step, vector)
                store.push({"step": step})
            store.finish()
            for vector, found in enumerate(pulled):
                start = np.arange(LAYOUTS[vector].numel).astype(DTYPES[vector])
                wanted = sum((value_of(step, vector) for step in range(number)), start)
                np.testing.assert_array_equal(found, wanted)
        assert early
        members.barrier()


def test_what_goes_along_arrives_beside_its_push(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that adds what went along: the parameters that a push was made from, which are known by its step."""
    if group.size < 2:
        pytest.skip("two hosts")

    def change(parts: Sequence[Part], pushed: Sequence[Any], version: Version) -> None:
        assert len(pushed) == 2 * len(parts)
        for part, values, along in zip(parts, pushed[: len(parts)], pushed[len(parts) :], strict=True):
            np.testing.assert_array_equal(along, value_of(version.step + 100, part.vector)[part.place])
            part.values[:] += values

    with hosts_of(group, monkeypatch) as members:
        along = [Memory(layout.numel, dtype) for layout, dtype in zip(LAYOUTS, DTYPES, strict=True)]
        coded = parse("topk:0.5")
        for codec in (None, coded):
            shards = Shards(members, ParameterServer())
            pushed = [Memory(one.numel, one.dtype) for one in along]
            along = [Memory(one.numel, one.dtype) for one in along]
            pulled = [np.zeros(one.numel, one.dtype) for one in along]
            more: Any = {"codec": codec, "along": along, "pull": Cast("bfloat16")}
            with closing(Store(shards, LAYOUTS, pushed, pulled, change, **more)) as store:
                store.begin(range(members.size), 0, 4 * members.size)
                while (step := store.claim()) is not None:
                    for vector, memory in enumerate(pushed):
                        memory.mine[:] = value_of(step, vector)
                        along[vector].mine[:] = value_of(step + 100, vector)
                        store.encode(vector, np.zeros(memory.numel, memory.dtype))
                    store.push({"step": step})
                store.finish()
                for vector, found in enumerate(pulled):
                    if codec is None:
                        wanted = sum(value_of(step, vector) for step in range(4 * members.size))
                        np.testing.assert_array_equal(found, wanted)
                    assert members.gather_objects(found.tobytes()) == [found.tobytes()] * members.size
        members.barrier()


def test_workers_elsewhere_pull_rounded_parameters(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    if group.size < 2:
        pytest.skip("two hosts")
    with hosts_of(group, monkeypatch) as members:
        store, shards, pushed, pulled = make_store(members, ParameterServer(1), pull=Cast("bfloat16"))
        server = members.members.index(shards.servers[0])
        workers = [rank for rank in range(members.size) if rank != server]
        exactly = [one.copy() for one in pulled]
        rounded = [_rounded(one) for one in exactly]
        assert any(not np.array_equal(one, other) for one, other in zip(rounded, exactly, strict=True))
        with closing(store):
            store.begin(workers, 0, 3 * len(workers))
            while store.claim() is not None:
                far = members.hosts[members.rank] != members.hosts[server]
                for found, wanted in zip(pulled, rounded if far else exactly, strict=True):
                    np.testing.assert_array_equal(found, wanted)
                for memory in pushed:
                    memory.mine[:] = 0
                store.push(None)
            store.finish()
            for found, wanted in zip(pulled, exactly, strict=True):
                np.testing.assert_array_equal(found, wanted)
        members.barrier()


def _rounded(x: Any) -> Any:
    bits = x.astype(np.float32).view(np.uint32)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return kept.view(np.float32).astype(x.dtype)


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
