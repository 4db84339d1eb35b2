"""All-reduce of any vectors of one node, staged and by cross-memory attach, against NumPy; and ranks that go astray."""

import hashlib
import itertools
import time
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from hpcvol.collectives import cross_memory, staged
from hpcvol.collectives.rendezvous import ops_of
from hpcvol.comm import Group
from hpcvol.comm.calls import Call
from hpcvol.errors import MemberError, MismatchError
from hpcvol.kernels import staged as staged_kernels

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32, np.int64]
# None, one, fewer than ranks, as many, prime, no longer small, several pieces.
NUMELS = [0, 1, 2, 3, 4, 5, 97, 70_001, 400_009]

algorithms = pytest.mark.parametrize("algorithm", [staged, cross_memory], ids=lambda module: module.__name__[19:])


def integers(rank: int, numel: int, dtype: Any, op: str, size: int) -> npt.NDArray[Any]:
    """Small integers: sums, means and products of four of them are exact in every dtype."""
    row = np.random.default_rng([rank, numel]).integers(-4, 4, numel)
    return (row * size if op == "mean" else row).astype(dtype)


def oracle(rows: list[npt.NDArray[Any]], op: str) -> npt.NDArray[Any]:
    wide = np.array(rows).astype(np.int64 if rows[0].dtype.kind == "i" else np.float64)
    functions: dict[str, Any] = {"sum": np.sum, "mean": np.mean, "min": np.min, "max": np.max, "product": np.prod}
    return np.asarray(functions[op](wide, axis=0)).astype(rows[0].dtype)


def usable(algorithm: ModuleType, group: Group) -> ModuleType:
    if not algorithm.usable(group):
        pytest.skip("this system does not let processes read each other's memory")
    return algorithm


@algorithms
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_equals_numpy_exactly(group: Group, algorithm: ModuleType, dtype: Any) -> None:
    usable(algorithm, group)
    for numel, op in itertools.product(NUMELS, ops_of(np.dtype(dtype))):
        rows = [integers(rank, numel, dtype, op, group.size) for rank in range(group.size)]
        around = np.full(numel + 2, group.rank, dtype)
        around[1:-1] = rows[group.rank]
        algorithm.allreduce(group, around[1:-1], op)
        np.testing.assert_array_equal(around[1:-1], oracle(rows, op), err_msg=f"{op} of {numel}", strict=True)
        assert (around[[0, -1]].astype(int) == group.rank).all()


@algorithms
def test_random_floats_have_the_same_bits_everywhere_every_time(group: Group, algorithm: ModuleType) -> None:
    usable(algorithm, group)
    for numel, dtype in itertools.product((97, 5_003, 300_007), (np.float32, np.float64)):
        rows = [np.random.default_rng([rank, numel]).standard_normal(numel).astype(dtype) for rank in range(group.size)]
        total = rows[0].copy()
        for row in rows[1:]:
            total += row
        digests = set()
        for _ in range(2):
            vector = rows[group.rank].copy()
            algorithm.allreduce(group, vector, "sum")
            np.testing.assert_array_equal(vector, total)
            digests |= set(group.gather_objects(hashlib.sha256(vector.tobytes()).hexdigest()))
        assert len(digests) == 1


@algorithms
def test_a_long_row_of_calls_of_changing_lengths(group: Group, algorithm: ModuleType) -> None:
    """Slots and lines are written again right after a call: nothing of one may be taken for the next one's."""
    usable(algorithm, group)
    vector = np.empty(20_000, np.int64)
    for turn in range(600):
        part = vector[: (1, 100, 20_000)[turn % 3]]
        part[:] = np.arange(part.size) + turn * group.rank
        algorithm.allreduce(group, part, "sum")
        assert part[0] == turn * sum(range(group.size))
        assert part[-1] == (part.size - 1) * group.size + part[0]


@algorithms
def test_the_kinds_of_calls_can_be_mixed(group: Group, algorithm: ModuleType) -> None:
    usable(algorithm, group)
    for turn in range(50):
        one, two = np.full(50, group.rank), np.full(3000, group.rank)
        staged.allreduce(group, one, "max")
        algorithm.allreduce(group, two, "max")
        assert group.union(1 << group.rank) == (1 << group.size) - 1
        assert one[-1] == two[-1] == group.size - 1, turn


def test_pieces_of_every_number(group: Group) -> None:
    per_piece = staged_kernels.PIECE_NBYTES // 8
    for numel in (per_piece - 1, per_piece, per_piece + 1, 3 * per_piece, 3 * per_piece + 5):
        vector = np.arange(numel) + group.rank
        staged.allreduce(group, vector, "sum")
        np.testing.assert_array_equal(vector, np.arange(numel) * group.size + sum(range(group.size)))


@algorithms
@pytest.mark.parametrize("numel", [10, 100_000])
def test_a_late_rank_is_waited_for(group: Group, algorithm: ModuleType, numel: int) -> None:
    """Far longer than a kernel waits before it returns to Python."""
    usable(algorithm, group)
    vector = np.ones(numel, np.float32)
    algorithm.allreduce(group, vector, "max")
    if group.rank == 0:
        time.sleep(0.2)
    algorithm.allreduce(group, vector, "sum")
    assert (vector == group.size).all()


@algorithms
@pytest.mark.parametrize("what", ["length", "op", "name"])
def test_a_mismatch_shows_both_sides(group: Group, algorithm: ModuleType, what: str) -> None:
    own = group.split(0)
    usable(algorithm, own)
    vector = np.ones(100, np.float32)
    algorithm.allreduce(own, vector, "sum")
    odd = own.rank == own.size - 1
    if own.size > 1 and what == "name" and odd:
        own.calls.begin(Call.of("barrier"))
    elif own.size > 1:
        part = vector[:99] if odd and what == "length" else vector
        with pytest.raises(MismatchError) as caught:
            algorithm.allreduce(own, part, "max" if odd and what == "op" else "sum")
        said = {"length": "allreduce sum float32[99]", "op": "allreduce max float32[100]", "name": "barrier"}[what]
        assert "allreduce sum float32[100]" in str(caught.value)
        assert f"{own.name_of(own.size - 1)} calls {said}" in str(caught.value)
    group.barrier()
    own.close()


@algorithms
def test_a_missing_rank_is_reported_by_poll(group: Group, algorithm: ModuleType) -> None:
    own = group.split(0)
    usable(algorithm, own)
    vector = np.ones(100, np.float32)
    algorithm.allreduce(own, vector, "sum")
    if own.rank < own.size - 1:
        own.calls.fail(own.calls.identity[0] + 1, MemberError("the last one is missing"))
        with pytest.raises(MemberError, match="is missing"):
            algorithm.allreduce(own, vector, "sum")
    group.barrier()
    own.close()


@algorithms
def test_unknown_ops_are_refused_by_name(group: Group, algorithm: ModuleType) -> None:
    usable(algorithm, group)
    with pytest.raises(ValueError, match="unknown op 'mean' for int64: expected one of sum, min, max, product"):
        algorithm.allreduce(group, np.ones(3, np.int64), "mean")


@algorithms
def test_what_is_not_usable_says_so(group: Group, algorithm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    own = group.split(0)
    monkeypatch.setattr(algorithm, "allocate", lambda *_: None)
    assert not algorithm.usable(own)
    with pytest.raises(ValueError, match="ask `usable` first"):
        algorithm.allreduce(own, np.ones(3), "sum")
    own.close()


def test_without_permission_on_one_rank_cross_memory_is_not_used(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcvol.kernels import cross_memory as kernels

    own = group.split(0)
    if own.rank == own.size - 1:
        monkeypatch.setattr(kernels, "write_to", lambda *_: False)
    assert not cross_memory.usable(own)
    own.close()
