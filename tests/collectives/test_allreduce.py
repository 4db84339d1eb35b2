"""All-reduce and broadcast against NumPy."""

import hashlib
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hpcvol.collectives import Algorithm, Op, allreduce, broadcast, library, ring
from hpcvol.collectives.choose import DTYPES
from hpcvol.comm import Group, start, vectors

ALGORITHMS: list[Algorithm] = ["ring", "library", "auto"]
NUMPY: dict[Op, np.ufunc] = {"sum": np.add, "min": np.minimum, "max": np.maximum}
# None, one, fewer than ranks, as many, prime, large.
NUMELS = [0, 1, 2, 3, 4, 5, 97, 70_001]


def integers(rank: int, numel: int, dtype: Any) -> npt.NDArray[Any]:
    """Small integers, whose sums are exact in every dtype."""
    return np.random.default_rng([rank, numel]).integers(-1000, 1000, numel).astype(dtype)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equals_numpy_exactly(group: Group, algorithm: Algorithm) -> None:
    for numel, dtype, op in itertools.product(NUMELS, DTYPES, NUMPY):
        expected = NUMPY[op].reduce([integers(rank, numel, dtype) for rank in range(group.size)], axis=0, dtype=dtype)
        vector = integers(group.rank, numel, dtype)
        allreduce(group, vector, op, algorithm)
        case = f"{op} of {numel} {np.dtype(dtype).name}"
        np.testing.assert_array_equal(vector, expected, err_msg=case, strict=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_ranks_end_with_the_same_bits(group: Group, algorithm: Algorithm) -> None:
    for numel, dtype, op in itertools.product((1, 97, 5_003, 70_001), (np.float32, np.float64), NUMPY):
        vector = np.random.default_rng([group.rank, numel]).standard_normal(numel).astype(dtype)
        vector[::5] = 0.0 if group.rank % 2 else -0.0
        allreduce(group, vector, op, algorithm)
        digests = group.gather_objects(hashlib.sha256(vector.tobytes()).hexdigest())
        assert len(set(digests)) == 1, f"{op} of {numel} {np.dtype(dtype).name}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sums_of_random_floats_are_close_to_float64(group: Group, algorithm: Algorithm) -> None:
    rows = [np.random.default_rng(rank).standard_normal(1009) for rank in range(group.size)]
    vector = rows[group.rank].astype(np.float32)
    allreduce(group, vector, "sum", algorithm)
    np.testing.assert_allclose(vector, np.sum(rows, axis=0), rtol=0, atol=group.size * 1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ring_and_library_wrap_integers_alike(group: Group, dtype: type) -> None:
    limits = np.iinfo(dtype)
    vector = np.random.default_rng(group.rank).integers(limits.min, limits.max, 1009, dtype)
    other = vector.copy()
    ring.allreduce(group, vector, "sum")
    library.allreduce(group, other, "sum")
    np.testing.assert_array_equal(vector, other)


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 23])
def test_vectors_longer_than_a_message_go_in_pieces(group: Group, numel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "MAX_PIECE_NUMEL", 3)
    monkeypatch.setattr(ring, "PIECE_NBYTES", 16)
    for algorithm in ALGORITHMS:
        vector = integers(group.rank, numel, np.float64)
        allreduce(group, vector, "max", algorithm)
        expected = np.maximum.reduce([integers(rank, numel, np.float64) for rank in range(group.size)], axis=0)
        np.testing.assert_array_equal(vector, expected)
        broadcast(group, vector)
        np.testing.assert_array_equal(vector, expected)


def test_parts_of_an_array_are_reduced_in_place(group: Group) -> None:
    array = np.full(10, group.rank, np.float32)
    allreduce(group, array[3:7], algorithm="ring")
    total = sum(range(group.size))
    np.testing.assert_array_equal(array, [group.rank] * 3 + [total] * 4 + [group.rank] * 3)


def test_broadcast_gives_all_the_values_of_root(group: Group) -> None:
    for numel, dtype, root in itertools.product(NUMELS, DTYPES, range(group.size)):
        vector = integers(group.rank, numel, dtype)
        broadcast(group, vector, root)
        np.testing.assert_array_equal(vector, integers(root, numel, dtype))


def read_only(vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
    vector.flags.writeable = False
    return vector


@pytest.mark.parametrize(
    ("vector", "error", "says"),
    [
        (np.zeros(8, np.float32)[::2], ValueError, "not contiguous"),
        (np.zeros((2, 2), np.float32), ValueError, r"found shape \(2, 2\)"),
        (np.zeros(2, np.float16), TypeError, "float16"),
        (np.zeros(2, np.complex64), TypeError, "complex64"),
        (np.zeros(2, np.uint8), TypeError, "expected one of float32, float64, int32, int64"),
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
    with pytest.raises(ValueError, match="unknown op 'prod': expected one of sum, min, max"):
        allreduce(group, vector, "prod")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown algorithm 'tree': expected one of auto, ring, library"):
        allreduce(group, vector, algorithm="tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"no rank {group.size}"):
        broadcast(group, vector, root=group.size)
