"""All-reduce in shared memory, against NumPy; and what becomes of late, missing and mismatched ranks."""

import hashlib
import itertools
import re
import time
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from hpcvol.collectives import direct
from hpcvol.collectives.direct import SharedVector, share
from hpcvol.collectives.rendezvous import ops_of
from hpcvol.comm import Group
from hpcvol.comm.calls import BOARD_NUMEL, Call
from hpcvol.errors import MemberError, MismatchError

FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
INTEGERS = [np.int32, np.int64]
OPS = ops_of(np.dtype(np.float32))
# None, one, fewer than ranks, as many, prime, more than a line each, large.
NUMELS = [0, 1, 2, 3, 4, 5, 97, 1009, 70_001]


def shared(group: Group, numel: int, dtype: Any) -> SharedVector:
    vector = share(group, numel, dtype)
    assert vector is not None
    return vector


def terms(size: int, numel: int, dtype: Any, op: str) -> list[npt.NDArray[Any]]:
    """Small integers by rank: sums, means and products of four of them are exact in every dtype."""
    rows = []
    for rank in range(size):
        row = np.random.default_rng([rank, numel]).integers(-4, 4, numel)
        rows.append((row * size if op == "mean" else row).astype(dtype))
    return rows


def oracle(rows: list[npt.NDArray[Any]], op: str) -> npt.NDArray[Any]:
    wide = np.array(rows).astype(np.int64 if rows[0].dtype.kind == "i" else np.float64)
    functions: dict[str, Any] = {"sum": np.sum, "mean": np.mean, "min": np.min, "max": np.max, "product": np.prod}
    return np.asarray(functions[op](wide, axis=0)).astype(rows[0].dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=lambda dtype: np.dtype(dtype).name)
def test_equals_numpy_exactly(group: Group, dtype: Any) -> None:
    vector = shared(group, max(NUMELS), dtype)
    for numel, op in itertools.product(NUMELS, ops_of(np.dtype(dtype))):
        rows = terms(group.size, numel, dtype, op)
        vector.mine[:numel] = rows[group.rank]
        vector.mine[numel:] = group.rank
        vector.allreduce(op, 0, numel)
        np.testing.assert_array_equal(vector.mine[:numel], oracle(rows, op), err_msg=f"{op} of {numel}", strict=True)
        assert (vector.mine[numel:].astype(np.int64) == group.rank).all()


def test_any_part_is_combined_and_the_rest_left_alone(group: Group) -> None:
    vector = shared(group, 1000, np.float32)
    for start, stop in [(0, 1000), (1, 999), (15, 17), (16, 32), (500, 500), (999, 1000), (37, 501)]:
        vector.mine[:] = np.arange(1000) + group.rank
        vector.allreduce("sum", start, stop)
        expected = (np.arange(1000) + group.rank).astype(np.float32)
        expected[start:stop] = np.arange(start, stop) * group.size + sum(range(group.size))
        np.testing.assert_array_equal(vector.mine, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_all_ranks_end_with_the_same_bits_every_time(group: Group, dtype: Any) -> None:
    vector = shared(group, 5003, dtype)
    for op in OPS:
        values = np.random.default_rng(group.rank).standard_normal(5003)
        values[::5] = 0.0 if group.rank % 2 else -0.0
        values[::97] = np.nan if group.rank == 0 else 1.0
        values[::101] = np.inf if group.rank else 1.0
        digests = set()
        for _ in range(3):
            vector.mine[:] = values.astype(dtype)
            vector.allreduce(op)
            digests |= set(group.gather_objects(hashlib.sha256(vector.mine.tobytes()).hexdigest()))
        assert len(digests) == 1, op


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_floats_are_combined_in_the_order_of_ranks_and_rounded_as_promised(group: Group, dtype: Any) -> None:
    rows = [np.random.default_rng(rank).standard_normal(1009).astype(dtype) for rank in range(group.size)]
    compute = np.float64 if dtype is np.float64 else np.float32
    total = rows[0].astype(compute)
    for row in rows[1:]:
        total = total + row.astype(compute)
    vector = shared(group, 1009, dtype)
    vector.mine[:] = rows[group.rank]
    vector.allreduce("sum")
    np.testing.assert_array_equal(vector.mine, total.astype(dtype))
    vector.mine[:] = rows[group.rank]
    vector.allreduce("mean", divisor=77)
    np.testing.assert_array_equal(vector.mine, (total / compute(77)).astype(dtype))
    vector.mine[:] = rows[group.rank]
    vector.allreduce("mean")
    np.testing.assert_array_equal(vector.mine, (total / compute(group.size)).astype(dtype))
    np.testing.assert_allclose(
        vector.mine.astype(float),
        np.mean([row.astype(float) for row in rows], axis=0),
        rtol=0,
        atol=4 * group.size * float(ml_dtypes.finfo(dtype).eps),
    )


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_around(group: Group, dtype: type) -> None:
    limits = np.iinfo(dtype)
    rows = [np.random.default_rng(rank).integers(limits.min, limits.max, 1009, dtype) for rank in range(group.size)]
    vector = shared(group, 1009, dtype)
    vector.mine[:] = rows[group.rank]
    vector.allreduce("sum")
    np.testing.assert_array_equal(vector.mine, np.add.reduce(rows, dtype=dtype))


@pytest.mark.limit_seconds(300)  # on a busy machine each of 4000 calls takes as long as others' time slices
def test_a_long_row_of_calls_on_two_vectors(group: Group) -> None:
    """Boards are written again right after a call: nothing of one call may be taken for the next one's."""
    one, two = shared(group, 64, np.int64), shared(group, 100, np.float32)
    for turn in range(2000):
        one.mine[:] = turn + group.rank
        two.mine[:] = turn
        one.allreduce("max")
        two.allreduce("sum", turn % 50, 100)
        assert one.mine[0] == one.mine[-1] == turn + group.size - 1
        assert two.mine[99] == turn * group.size


@pytest.mark.parametrize("num_slices", [None, 1, 2])
def test_the_two_halves_of_an_allreduce(group: Group, num_slices: int | None) -> None:
    if num_slices is not None and num_slices > group.size:
        num_slices = None
    vector = shared(group, 1009, np.float32)
    for start, stop in [(0, 1009), (3, 40), (7, 7), (100, 101)]:
        vector.mine[:] = np.arange(1009) + group.rank
        part = vector.reduce_slice("sum", start, stop, num_slices)
        place = vector.slice_of(group.rank, start, stop, num_slices)
        np.testing.assert_array_equal(part, (np.arange(1009) * group.size + sum(range(group.size)))[place])
        part *= 2
        vector.spread_slice()
        expected = (np.arange(1009) + group.rank).astype(np.float32)
        expected[start:stop] = 2 * (np.arange(start, stop) * group.size + sum(range(group.size)))
        np.testing.assert_array_equal(vector.mine, expected)


def test_own_vector_is_aligned_and_stays_where_it_is(group: Group) -> None:
    vector = shared(group, 100, np.float32)
    assert vector.mine.ctypes.data % 64 == 0
    vector.mine[:] = group.rank + 1
    part = group.split(group.rank % 2)
    fewer = vector.with_peers_of(part)
    assert fewer is not None
    assert fewer.mine.ctypes.data == vector.mine.ctypes.data
    fewer.allreduce("sum")
    assert vector.mine[0] == sum(rank + 1 for rank in range(group.size) if rank % 2 == group.rank % 2)
    part.close()


def test_a_late_rank_is_waited_for(group: Group) -> None:
    """Far longer than a kernel waits before it returns to Python."""
    vector = shared(group, 1000, np.float32)
    lapses = 0
    progress = group.progress

    def counted() -> None:
        nonlocal lapses
        lapses += 1
        progress()

    group.progress = counted  # type: ignore[method-assign]
    vector.mine[:] = 1
    if group.rank == group.size - 1:
        time.sleep(0.3)
    vector.allreduce()
    assert (vector.mine == group.size).all()
    assert lapses > 0 or group.rank == group.size - 1


@pytest.mark.parametrize("what", ["length", "op", "dtype", "name"])
def test_a_mismatch_shows_both_sides(group: Group, what: str) -> None:
    own = group.split(0)
    vector = shared(own, 100, np.float32)
    other = shared(own, 100, np.int32)
    odd = own.rank == own.size - 1
    calls = {
        "length": lambda: vector.allreduce("sum", 0, 99 if odd else 100),
        "op": lambda: vector.allreduce("max" if odd else "sum"),
        "dtype": lambda: (other if odd else vector).allreduce("sum"),
        "name": lambda: own.calls.begin(Call.of("barrier")) if odd else vector.allreduce("sum"),
    }
    if own.size == 1:
        return
    said = {
        "length": ("allreduce sum float32[99]", "allreduce sum float32[100]"),
        "op": ("allreduce max float32[100]", "allreduce sum float32[100]"),
        "dtype": ("allreduce sum int32[100]", "allreduce sum float32[100]"),
        "name": ("barrier", "allreduce sum float32[100]"),
    }[what]
    if what == "name" and odd:
        calls[what]()
    else:
        with pytest.raises(MismatchError) as caught:
            calls[what]()
        assert all(text in str(caught.value) for text in said), caught.value
        assert f"{own.name_of(own.size - 1)} calls {said[0]}" in str(caught.value)
    group.barrier()
    own.close()


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_rank_that_went_on_without_the_others(group: Group, ahead: int) -> None:
    own = group.split(0)
    vector = shared(own, 100, np.float32)
    if own.rank == 0:
        for name in ("broadcast", "scatter")[:ahead]:
            own.calls.begin(Call.of(name))
            own.calls.end()
        own.calls.begin(Call.of("gather"))
    group.barrier()
    if own.rank > 0:
        says = f"{own.name_of(0)} calls broadcast" if ahead == 1 else "has gone on to later calls"
        with pytest.raises(MismatchError, match=re.escape(says)):
            vector.allreduce()
    group.barrier()
    own.close()


def test_a_missing_rank_is_reported_by_poll(group: Group) -> None:
    own = group.split(0)
    vector = shared(own, 100, np.float32)
    if own.rank < own.size - 1:
        own.calls.fail(own.calls.identity[0] + 1, MemberError("the last one is missing"))
        with pytest.raises(MemberError, match="is missing"):
            vector.allreduce()
    group.barrier()
    own.close()


def test_what_cannot_be_is_refused_by_name(group: Group) -> None:
    floats, integers = shared(group, 10, np.float32), shared(group, 10, np.int64)
    with pytest.raises(ValueError, match="no elements 3 to 11 in a vector of 10"):
        floats.allreduce("sum", 3, 11)
    with pytest.raises(ValueError, match="unknown op 'mean' for int64: expected one of sum, min, max, product"):
        integers.allreduce("mean")
    with pytest.raises(ValueError, match="unknown op 'xor'"):
        floats.reduce_slice("xor")


def test_without_shared_memory_there_is_no_vector(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "allocate", lambda *_: None)
    assert share(group, 10, np.float32) is None


def test_kernels_and_boards_agree_on_places() -> None:
    from hpcvol.comm import calls
    from hpcvol.kernels import combine
    from hpcvol.kernels import direct as kernels

    for name in ("FINGERPRINT", "ENTERED_NS", "ENTERED", "DONE", "LEFT_FINGERPRINT", "LEFT_NS", "LEFT"):
        assert getattr(kernels, name) == 8 * getattr(calls, name), name
    assert kernels.BOARD_NUMEL == BOARD_NUMEL
    assert [calls.OPS[code] for code in (combine.SUM, combine.MEAN, combine.MIN, combine.MAX, combine.PRODUCT)] == [
        *OPS
    ]
    assert kernels.NUMEL_BITS == calls.NUMEL_BITS
