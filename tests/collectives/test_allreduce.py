"""All-reduce by every algorithm, against NumPy."""

import hashlib
import itertools
from typing import Any, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from hpcvol.collectives import Algorithm, Op, allreduce, broadcast, library, ring, slices
from hpcvol.collectives.algorithms import ON_NODE
from hpcvol.collectives.checks import DTYPE_NAMES
from hpcvol.comm import Group, start, vectors
from hpcvol.errors import ConfigError

ALGORITHMS: list[Algorithm] = [name for name in get_args(Algorithm) if name != "cross_memory"]
EVERY_ALGORITHM: list[Algorithm] = [*ALGORITHMS, "cross_memory"]  # which not every system permits
FLOATS = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
DTYPES = [*FLOATS, np.dtype(np.int32), np.dtype(np.int64)]
NUMPY: dict[Op, np.ufunc] = {"sum": np.add, "min": np.minimum, "max": np.maximum, "product": np.multiply}
# None, one, fewer than ranks, as many, prime, of several pieces.
NUMELS = [0, 1, 2, 3, 4, 5, 97, 70_001]


@pytest.fixture(params=EVERY_ALGORITHM)
def algorithm(group: Group, request: pytest.FixtureRequest) -> Algorithm:
    """Every algorithm that works here."""
    if request.param in ON_NODE and not ON_NODE[request.param].usable(group):
        pytest.skip(f"{request.param} needs {ON_NODE[request.param].needs}")
    found: Algorithm = request.param
    return found


def integers(rank: int, numel: int, dtype: Any) -> npt.NDArray[Any]:
    """Small integers, whose sums and products over 4 ranks are exact in every dtype."""
    return np.random.default_rng([rank, numel]).integers(-4, 5, numel).astype(dtype)


def normal(rank: int, numel: int, dtype: Any) -> npt.NDArray[Any]:
    return np.random.default_rng([rank, numel]).standard_normal(numel).astype(dtype)


def expected_of(op: Op, rows: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """What NumPy says in float64, which holds whatever small integers come to."""
    wide = [row.astype(np.float64) for row in rows]
    result = NUMPY["sum" if op == "mean" else op].reduce(wide, axis=0)
    return result / len(rows) if op == "mean" else result


def test_all_dtypes_are_tried() -> None:
    assert {dtype.name for dtype in DTYPES} == set(DTYPE_NAMES)


@pytest.mark.limit_seconds(240)  # the first to come compiles the kernels of all dtypes and operations
def test_equals_numpy_exactly(group: Group, algorithm: Algorithm) -> None:
    for dtype, op in itertools.product(DTYPES, NUMPY):
        for numel in NUMELS if op == "sum" else (3, 97):
            vector = integers(group.rank, numel, dtype)
            allreduce(group, vector, op, algorithm)
            expected = expected_of(op, [integers(rank, numel, dtype) for rank in range(group.size)])
            case = f"{op} of {numel} {dtype.name}"
            np.testing.assert_array_equal(vector.astype(np.float64), expected, err_msg=case, strict=True)


def test_a_mean_is_the_sum_divided_once(group: Group, algorithm: Algorithm) -> None:
    for dtype, numel in itertools.product(FLOATS, (1, 97, 5_003)):
        vector = integers(group.rank, numel, dtype)
        allreduce(group, vector, "mean", algorithm)
        expected = expected_of("mean", [integers(rank, numel, dtype) for rank in range(group.size)])
        np.testing.assert_array_equal(vector, expected.astype(dtype), err_msg=dtype.name)


def test_random_floats_are_right_within_rounding(group: Group, algorithm: Algorithm) -> None:
    for dtype, op in itertools.product(FLOATS, ("sum", "mean", "product")):
        rows = [normal(rank, 1009, dtype) for rank in range(group.size)]
        vector = rows[group.rank].copy()
        allreduce(group, vector, op, algorithm)
        # Each of the combinations and the division rounds by half a unit in the last place of what it has at most.
        unit = float(ml_dtypes.finfo(dtype).eps)
        wide = [np.abs(row.astype(np.float64)) for row in rows]
        most = np.multiply.reduce(wide, axis=0) if op == "product" else np.sum(wide, axis=0)
        error = np.abs(vector.astype(np.float64) - expected_of(op, rows))
        assert np.all(error <= group.size * unit * most + 1e-7), f"{op} of {dtype.name}: {np.max(error)}"


def test_all_ranks_end_with_the_same_bits_every_time(group: Group, algorithm: Algorithm) -> None:
    for numel, dtype, op in itertools.product((1, 97, 70_001), FLOATS, (*NUMPY, "mean")):
        digests = set()
        for _ in range(2):
            vector = normal(group.rank, numel, dtype)
            vector[::5] = 0.0 if group.rank % 2 else -0.0
            if op in ("min", "max"):
                vector[1::7] = np.nan if group.rank == 1 else np.inf
            allreduce(group, vector, op, algorithm)
            digests |= set(group.gather_objects(hashlib.sha256(vector.tobytes()).hexdigest()))
        assert len(digests) == 1, f"{op} of {numel} {dtype.name}"


def test_minimum_and_maximum_have_one_answer_for_nan_and_zeros(group: Group, algorithm: Algorithm) -> None:
    """The same bits whatever the algorithm and the number of ranks: NaN wins, and -0 is below 0."""
    last = group.rank == group.size - 1
    mine, other = [-0.0, np.nan, -np.inf, 1.0, -np.nan], [0.0, 1.0, np.inf, np.nan, np.nan]
    alone = group.size == 1
    for dtype in FLOATS:
        for op, zero, infinity in (("min", -0.0, -np.inf), ("max", 0.0, np.inf)):
            vector = np.array(mine if last else other, dtype)
            allreduce(group, vector, op, algorithm)
            if alone:
                continue
            assert np.isnan(vector[[1, 3, 4]].astype(np.float32)).all()
            assert np.signbit(vector[0].astype(np.float32)) == np.signbit(np.float32(zero))
            assert vector[2].astype(np.float32) == infinity
            same = vector[[1, 3, 4]].view(np.uint8).reshape(3, dtype.itemsize)
            assert (same == same[0]).all()


def test_a_sum_is_nan_where_a_term_is(group: Group) -> None:
    for algorithm, dtype, op in itertools.product(ALGORITHMS, FLOATS, ("sum", "mean", "product")):
        vector = np.array([np.nan if group.rank == 0 else 1.0, 1.0], dtype)
        allreduce(group, vector, op, algorithm)
        assert np.isnan(vector.astype(np.float32)).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_all_algorithms_wrap_integers_alike(group: Group, dtype: type) -> None:
    limits = np.iinfo(dtype)
    results = []
    for algorithm, op in itertools.product(ALGORITHMS, ("sum", "product")):
        vector = np.random.default_rng(group.rank).integers(limits.min, limits.max, 1009, dtype)
        allreduce(group, vector, op, algorithm)
        results.append(vector)
    for of_op in (results[::2], results[1::2]):
        for result in of_op:
            np.testing.assert_array_equal(result, of_op[0])


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 23])
def test_long_vectors_go_in_pieces(group: Group, numel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "MAX_PIECE_NUMEL", 3)
    monkeypatch.setattr(slices, "PIECE_NBYTES", 16)
    for algorithm in ALGORITHMS:
        vector = integers(group.rank, numel, np.float64)
        allreduce(group, vector, "mean", algorithm)
        expected = expected_of("mean", [integers(rank, numel, np.float64) for rank in range(group.size)])
        np.testing.assert_array_equal(vector, expected)


def test_one_large_vector(group: Group) -> None:
    for algorithm in ALGORITHMS:
        vector = np.full(3_000_017, group.rank + 1, np.float32)
        vector[::1000] = group.rank
        allreduce(group, vector, "sum", algorithm)
        total = sum(range(group.size))
        assert (vector[::1000] == total).all()
        assert int(vector.sum(dtype=np.float64)) == (total + group.size) * vector.size - group.size * 3001


def test_parts_of_an_array_are_reduced_in_place(group: Group) -> None:
    for algorithm in ALGORITHMS:
        array = np.full(10, group.rank, np.float32)
        allreduce(group, array[3:7], algorithm=algorithm)
        total = sum(range(group.size))
        np.testing.assert_array_equal(array, [group.rank] * 3 + [total] * 4 + [group.rank] * 3)


def test_a_result_can_go_elsewhere(group: Group) -> None:
    vector, out = np.full(9, group.rank + 1.0), np.zeros(9)
    allreduce(group, vector, "max", out=out)
    np.testing.assert_array_equal(out, np.full(9, float(group.size)))
    np.testing.assert_array_equal(vector, np.full(9, group.rank + 1.0))
    allreduce(group, vector, "max", out=vector)
    np.testing.assert_array_equal(vector, out)


def test_a_result_that_overlaps_its_input_is_refused() -> None:
    array = np.zeros(10)
    with pytest.raises(ValueError, match="overlap by 32 bytes: expected apart from each other, or the same vector"):
        allreduce(start(), array[:7], out=array[3:])
    with pytest.raises(TypeError, match="input of float64 and output of float32"):
        allreduce(start(), array, out=np.zeros(10, np.float32))
    with pytest.raises(ValueError, match="the output has 9 elements, and 10 are expected"):
        allreduce(start(), array, out=np.zeros(9))


def test_modules_can_be_called_without_the_checks(group: Group) -> None:
    for allreduce_ in (ring.allreduce, library.allreduce):
        vector = np.array([group.rank], np.int64)
        allreduce_(group, vector, "sum")
        assert vector[0] == sum(range(group.size))


def read_only(vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
    vector.flags.writeable = False
    return vector


@pytest.mark.parametrize(
    ("vector", "error", "says"),
    [
        (np.zeros(8, np.float32)[::2], ValueError, "not contiguous"),
        (np.zeros((2, 2), np.float32), ValueError, r"found shape \(2, 2\)"),
        (np.zeros(2, np.complex64), TypeError, "complex64"),
        (np.zeros(2, np.uint8), TypeError, "expected one of float32, float64, float16, bfloat16, int32, int64"),
        (np.zeros(2, ">f4"), TypeError, "native byte order"),
        (read_only(np.zeros(2, np.float32)), ValueError, "read-only"),
        ([1.0, 2.0], TypeError, "found list"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_name(
    vector: npt.NDArray[Any], error: type[Exception], says: str
) -> None:
    alone = start()
    with pytest.raises(error, match=says):
        allreduce(alone, vector)
    with pytest.raises(error, match=says):
        broadcast(alone, vector)


def test_unknown_choices_are_refused_by_name(group: Group) -> None:
    vector = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="unknown op 'prod': expected one of sum, mean, min, max, product"):
        allreduce(group, vector, "prod")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown algorithm 'tree': expected one of auto, ring, recursive_doubling"):
        allreduce(group, vector, algorithm="tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a mean of int32 is no integer"):
        allreduce(group, np.zeros(2, np.int32), "mean")
