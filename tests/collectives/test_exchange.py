"""Everything but all-reduce, against NumPy."""

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from hpcvol.collectives import (
    all_gather,
    all_to_all,
    barrier,
    broadcast,
    gather,
    receive,
    reduce_scatter,
    scatter,
    send,
    slices,
)
from hpcvol.comm import Group, start
from hpcvol.comm.messages import MAX_TAG
from hpcvol.errors import MismatchError

Array = npt.NDArray[Any]
DTYPES = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32, np.int64)]
# Elements for each of 4 ranks: none at all, some with none, unequal, and more than one piece.
COUNTS = [[0, 0, 0, 0], [3, 0, 5, 1], [1, 2, 3, 4], [70_001, 3, 0, 80_000]]


def values(rank: int, numel: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng([rank, numel]).integers(-4, 5, numel).astype(dtype)


def slice_of(counts: list[int], rank: int) -> slice:
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_reduce_scatter(group: Group, counts: list[int]) -> None:
    counts = counts[: group.size]
    rows = [values(rank, sum(counts)) for rank in range(group.size)]
    expected = np.sum(rows, axis=0)[slice_of(counts, group.rank)]
    vector, out = rows[group.rank].copy(), np.zeros(counts[group.rank], np.float32)
    reduce_scatter(group, vector, out, counts=counts)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(vector, rows[group.rank])
    reduce_scatter(group, vector, vector[slice_of(counts, group.rank)], counts=counts)
    np.testing.assert_array_equal(vector[slice_of(counts, group.rank)], expected)


def test_reduce_scatter_of_every_dtype_and_op(group: Group) -> None:
    ufuncs = {"sum": np.add, "min": np.minimum, "max": np.maximum, "product": np.multiply}
    for dtype, op in itertools.product(DTYPES, ufuncs):
        rows = [values(rank, 5 * group.size, dtype) for rank in range(group.size)]
        out = np.zeros(5, dtype)
        reduce_scatter(group, rows[group.rank], out, op)  # type: ignore[arg-type]
        expected = ufuncs[op].reduce([row.astype(np.float64) for row in rows], axis=0)
        np.testing.assert_array_equal(out.astype(np.float64), expected[5 * group.rank :][:5], err_msg=f"{op} {dtype}")
    mean = np.zeros(1)
    reduce_scatter(group, np.full(group.size, float(group.rank)), mean, "mean")
    assert mean[0] == sum(range(group.size)) / group.size


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_all_gather(group: Group, counts: list[int]) -> None:
    counts = counts[: group.size]
    expected = np.concatenate([values(rank, count) for rank, count in enumerate(counts)])
    mine, out = values(group.rank, counts[group.rank]), np.zeros(sum(counts), np.float32)
    all_gather(group, mine, out, counts)
    np.testing.assert_array_equal(out, expected)
    out.fill(0)
    out[slice_of(counts, group.rank)] = mine
    all_gather(group, out[slice_of(counts, group.rank)], out, counts)  # the input is this rank's slice of the output
    np.testing.assert_array_equal(out, expected)


def test_gathers_and_scatters_carry_every_dtype(group: Group) -> None:
    for dtype in DTYPES:
        expected = np.concatenate([values(rank, 3, dtype) for rank in range(group.size)])
        out = np.zeros(3 * group.size, dtype)
        all_gather(group, values(group.rank, 3, dtype), out)
        np.testing.assert_array_equal(out, expected, err_msg=dtype.name)
        back = np.zeros(3, dtype)
        scatter(group, out, back)
        np.testing.assert_array_equal(back, values(group.rank, 3, dtype), err_msg=dtype.name)


def test_broadcast_gives_all_the_values_of_root(group: Group) -> None:
    for numel, root in itertools.product([0, 1, 3, 97, 20_011, 200_003], range(group.size)):
        vector = values(group.rank, numel)
        broadcast(group, vector, root)
        np.testing.assert_array_equal(vector, values(root, numel), err_msg=f"{numel} from {root}")


@pytest.mark.parametrize("in_place", [False, True])
def test_all_to_all_of_equal_slices(group: Group, in_place: bool) -> None:
    for each in (0, 1, 1003):
        rows = [values(rank, each * group.size) for rank in range(group.size)]
        vector = rows[group.rank].copy()
        out = vector if in_place else np.zeros_like(vector)
        all_to_all(group, vector, out)
        np.testing.assert_array_equal(out, np.concatenate([row[each * group.rank :][:each] for row in rows]))


def test_all_to_all_of_unequal_slices(group: Group) -> None:
    counts = [[(3 * source + 7 * to) % 5 * 1000 for to in range(group.size)] for source in range(group.size)]
    rows = [values(source, sum(counts[source])) for source in range(group.size)]
    received = [counts[source][group.rank] for source in range(group.size)]
    out = np.zeros(sum(received), np.float32)
    all_to_all(group, rows[group.rank], out, counts[group.rank], received)
    expected = [row[slice_of(counts[source], group.rank)] for source, row in enumerate(rows)]
    np.testing.assert_array_equal(out, np.concatenate(expected))


@pytest.mark.parametrize("counts", [None, *COUNTS], ids=str)
def test_gather_and_scatter(group: Group, counts: list[int] | None) -> None:
    numels = [11] * group.size if counts is None else counts[: group.size]
    given = None if counts is None else numels
    mine = values(group.rank, numels[group.rank])
    whole = np.concatenate([values(rank, numel) for rank, numel in enumerate(numels)])
    for root in range(group.size):
        out = np.zeros(sum(numels), np.float32) if group.rank == root else None
        gather(group, mine, out, root, given)
        if out is not None:
            np.testing.assert_array_equal(out, whole)
        back = np.zeros_like(mine) if out is None else out[slice_of(numels, root)]  # in place on root
        scatter(group, out, back, root, given)
        np.testing.assert_array_equal(back, mine)


def test_send_and_receive_keep_their_order(group: Group) -> None:
    sent = [values(group.rank, numel, dtype) for numel, dtype in itertools.product((0, 1, 300_001), DTYPES)]
    for source, destination in itertools.permutations(range(group.size), 2):
        for number, vector in enumerate(sent):
            if group.rank == source:
                send(group, vector, destination, tag=MAX_TAG if number % 2 else 0)
            elif group.rank == destination:
                out = np.zeros_like(vector)
                receive(group, out, source, tag=MAX_TAG if number % 2 else 0)
                np.testing.assert_array_equal(out, values(source, vector.size, vector.dtype))


@pytest.mark.parametrize("wrong", [np.zeros(4, np.float32), np.zeros(3, np.int32)], ids=["length", "dtype"])
def test_a_receiver_that_expects_something_else_is_told_both(group: Group, wrong: Array) -> None:
    if group.size == 1:
        pytest.skip("nobody to send to")
    if group.rank == 1:
        send(group, np.ones(3, np.float32), 0)
        send(group, np.full(2, 7.0), 0)
    if group.rank == 0:
        with pytest.raises(MismatchError, match=rf"expects {wrong.dtype}\[{wrong.size}\] from .* sent float32\[3\]"):
            receive(group, wrong, 1)
        following = np.zeros(2)
        receive(group, following, 1)
        assert following.tolist() == [7.0, 7.0]


def test_nobody_leaves_a_barrier_before_all_are_in_it(group: Group) -> None:
    # The last rank sends word before it comes: who has left the barrier must find that word there.
    for _ in range(5):
        last = group.size - 1
        if group.rank == last:
            for rank in range(last):
                send(group, np.ones(1), rank)
        barrier(group)
        if group.rank != last:
            assert group.communicator.Iprobe(source=last)
            receive(group, np.zeros(1), last)


def test_members_that_give_different_counts_are_told(group: Group) -> None:
    if group.size == 1:
        pytest.skip("nobody to disagree with")
    counts = [2] * group.size
    if group.rank == group.size - 1:
        counts[:2] = [1, 3]
    out = np.zeros(2 * group.size)
    calls: list[Callable[[], None]] = [
        lambda: all_gather(group, np.zeros(counts[group.rank]), out, counts),
        lambda: reduce_scatter(group, out, np.zeros(counts[group.rank]), counts=counts),
        lambda: gather(group, np.zeros(counts[group.rank]), out, counts=counts),
        lambda: scatter(group, out, np.zeros(counts[group.rank]), counts=counts),
    ]
    for call in calls:
        with pytest.raises(MismatchError, match=r"members disagree about counts: .* gives \[2, 2.* \[1, 3"):
            call()
    with pytest.raises(MismatchError, match=r"has 2 elements for member . \(.*\), which expects "):
        all_to_all(group, out, np.zeros(sum(counts)), [2] * group.size, counts)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda one, array: reduce_scatter(one, array[:8], array[4:]), "the output has 6 elements, and 8 are expected"),
        (lambda one, array: reduce_scatter(one, array[:8], array[2:]), "overlap by 48 bytes: .* this rank's slice"),
        (lambda one, array: all_gather(one, array[:8], array[2:]), "overlap by 48 bytes: .* this rank's slice"),
        (lambda one, array: all_to_all(one, array[:8], array[2:]), "overlap by 48 bytes: .* the same vector"),
        (lambda one, array: gather(one, array[:8], array[2:]), "overlap by 48 bytes"),
        (lambda one, array: scatter(one, array[:8], array[2:]), "overlap by 48 bytes"),
        (lambda one, array: gather(one, array), "rank 0 is the root of this gather: it needs an output"),
        (lambda one, array: scatter(one, None, array), "rank 0 is the root of this scatter: it needs an input"),
        (lambda one, array: broadcast(one, array, 1), "no rank 1 for the root: the group has ranks 0 to 0"),
        (lambda one, array: all_gather(one, array, array, [3, 4]), r"counts = \[3, 4\]: expected 1 numbers"),
        (
            lambda one, array: all_gather(one, array, array, [-1]),
            r"counts = \[-1\]: expected 1 numbers, .* zero or more",
        ),
        (lambda one, array: all_to_all(one, array, array, [10]), "expected both send_counts and receive_counts"),
        (lambda one, array: send(one, array, 0), "rank 0 cannot send to or from itself"),
        (lambda one, array: receive(one, array, 3), "no rank 3 for the receive"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[Group, Array], None], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(start(), np.zeros(10))


def test_an_uneven_vector_needs_counts(group: Group) -> None:
    if group.size == 1:
        pytest.skip("one rank takes anything")
    vector = np.zeros(group.size + 1)
    with pytest.raises(ValueError, match=f"{vector.size} elements, which {group.size} ranks cannot share out evenly"):
        reduce_scatter(group, vector, np.zeros(1))
    with pytest.raises(ValueError, match="cannot be shared out evenly"):
        all_to_all(group, vector, np.zeros_like(vector))


def test_small_pieces_come_together(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "PIECE_NBYTES", 16)
    vector = values(group.rank, 103)
    broadcast(group, vector, group.size - 1)
    np.testing.assert_array_equal(vector, values(group.size - 1, 103))
    out = np.zeros(103 * group.size, np.float32)
    all_gather(group, values(group.rank, 103), out)
    np.testing.assert_array_equal(out, np.concatenate([values(rank, 103) for rank in range(group.size)]))
