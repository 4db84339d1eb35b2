"""Sums of encoded vectors: the same bits on all ranks, and what the sum lacks is in the residuals."""

from typing import Any

import numpy as np
import pytest

from hpcvol.codecs import Cast, Codec, LowRank, Quantise, Seeds, parse
from hpcvol.collectives.encoded import EncodedSum, Way, how
from hpcvol.collectives.low_rank import LowRankSum, Matrix
from hpcvol.comm import Group
from hpcvol.errors import CommError

NUMEL = 3001
SEED = 7
# Each way, with each family that can go it.
WAYS: list[tuple[str, Way]] = [
    ("int8", "gathered"),
    ("sign", "two_shots"),
    ("int8", "two_shots"),
    ("bf16", "two_shots"),
    ("bf16", "gathered"),
    ("ternary", "two_shots"),
    ("topk:0.05", "gathered"),
    ("topk:0.05", "merged"),
    ("topk:0.05+int8", "gathered"),
    ("threshold:1", "gathered"),
    ("threshold:1", "merged"),
    ("randomk:0.1", "summed"),
    ("randomk:0.1+int4", "gathered"),
]


def codec_of(name: str) -> Codec:
    codec = parse(name)
    assert codec is not None
    assert not isinstance(codec, LowRank)
    return codec


def vector_of(rank: int, step: int, numel: int = NUMEL, dtype: Any = np.float32) -> Any:
    return np.random.default_rng([rank, step]).standard_normal(numel).astype(dtype)


def same_everywhere(group: Group, vector: Any) -> bool:
    return group.gather_objects(vector.tobytes()) == [vector.tobytes()] * group.size


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "way"), WAYS)
def test_what_the_sum_lacks_is_in_the_residuals(group: Group, name: str, way: Way, dtype: Any) -> None:
    codec = codec_of(name)
    total = EncodedSum(group, codec, NUMEL, np.dtype(dtype), way)
    residual = np.zeros(NUMEL, dtype) if codec.residual_rows else None
    summed, wanted = np.zeros(NUMEL), np.zeros(NUMEL)
    for step in range(3):
        vector = vector_of(group.rank, step, dtype=dtype)
        total.sum(vector, residual, SEED, step)
        assert same_everywhere(group, vector)
        summed += vector
        wanted += sum(vector_of(rank, step, dtype=dtype).astype(np.float64) for rank in range(group.size))
    if residual is not None:
        summed += sum(group.gather_objects(residual.astype(np.float64)))
        np.testing.assert_allclose(summed, wanted, atol=2e-5)


@pytest.mark.parametrize("name", ["int8", "topk:0.05+int8", "ternary", "bf16"])
def test_gathered_is_the_sum_of_what_each_payload_stands_for(group: Group, name: str) -> None:
    codec = codec_of(name)
    vector = vector_of(group.rank, 0)
    EncodedSum(group, codec, NUMEL, vector.dtype, "gathered").sum(vector, np.zeros_like(vector), SEED, 5)
    wanted = np.zeros_like(vector)
    for rank in range(group.size):
        x, payload, seeds = (
            vector_of(rank, 0),
            np.empty(codec.room(NUMEL, vector.dtype), np.uint8),
            Seeds.of(SEED, 5, rank),
        )
        used = codec.encode(x, np.zeros_like(x), seeds, payload)
        codec.accumulate(payload[:used], seeds, wanted)
    if group.size == 1:  # nothing is sent, so nothing is lost
        wanted = vector_of(0, 0)
    np.testing.assert_array_equal(vector, wanted)


@pytest.mark.parametrize("name", ["topk:0.05", "topk:0.05+dgc:2", "threshold:1+dgc"])
def test_merged_and_gathered_are_one_sum(group: Group, name: str) -> None:
    codec, found = codec_of(name), []
    for way in ("gathered", "merged"):
        residual = np.zeros(codec.residual_rows * NUMEL)
        total = EncodedSum(group, codec, NUMEL, residual.dtype, way)  # type: ignore[arg-type]
        vectors = [vector_of(group.rank, step, dtype=np.float64) for step in range(4)]
        for step, vector in enumerate(vectors):
            total.sum(vector, residual, SEED, step)
            assert same_everywhere(group, vector)
        found.append(np.concatenate([*vectors, residual]))
    np.testing.assert_allclose(*found, atol=1e-12)


@pytest.mark.parametrize("numel", [0, 1, 3, 257])
def test_short_vectors(group: Group, numel: int) -> None:
    for name, way in WAYS:
        vector = vector_of(group.rank, 0, numel)
        EncodedSum(group, codec_of(name), numel, vector.dtype, way).sum(vector, np.zeros_like(vector), SEED, 0)
        assert same_everywhere(group, vector), (name, way)


def test_the_way_follows_from_codec_and_ranks() -> None:
    assert [how(codec_of("int8"), n) for n in (2, 3, 16)] == ["gathered", "two_shots", "two_shots"]
    assert [how(codec_of("topk:0.1"), n) for n in (2, 8, 9)] == ["gathered", "gathered", "merged"]
    assert how(codec_of("topk:0.1+int8"), 100) == "gathered"
    assert how(codec_of("randomk:0.1"), 2) == "summed"


class Cut(Quantise):
    """The last byte of each payload is not sent."""

    def encode(self, x: Any, residual: Any, seeds: Seeds, payload: Any) -> int:
        return super().encode(x, residual, seeds, payload) - 1


@pytest.mark.parametrize("way", ["gathered", "two_shots"])
def test_what_is_no_payload_is_refused_by_name(group: Group, way: Way) -> None:
    if group.size == 1:
        pytest.skip("nothing is sent")
    vector = vector_of(group.rank, 0)
    total = EncodedSum(group, Cut("int8"), NUMEL, vector.dtype, way)
    with pytest.raises(CommError, match=r"what member \d .* has sent cannot be decoded: a payload of \d+ bytes"):
        total.sum(vector, None, SEED, 0)


MATRICES = [Matrix(5, 40, 30), Matrix(1300, 3, 4), Matrix(1312, 20, 60)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("values", [None, Cast("bfloat16")], ids=str)
def test_low_rank_loses_nothing_over_steps(group: Group, values: Cast | None, dtype: Any) -> None:
    total = LowRankSum(group, LowRank(2, values), NUMEL, np.dtype(dtype), MATRICES)
    residual, factors = np.zeros(NUMEL, dtype), np.zeros(total.factors_numel, dtype)
    summed, wanted = np.zeros(NUMEL), np.zeros(NUMEL)
    for step in range(3):
        vector = vector_of(group.rank, step, dtype=dtype)
        total.sum(vector, residual, factors, SEED, step)
        assert same_everywhere(group, vector)
        assert same_everywhere(group, factors)
        summed += vector
        wanted += sum(vector_of(rank, step, dtype=dtype).astype(np.float64) for rank in range(group.size))
    kept = sum(group.gather_objects(residual.astype(np.float64)))
    np.testing.assert_allclose(summed + kept, wanted, atol=1e-4 if dtype == np.float32 else 1e-12)
    for start, stop in ((0, 5), (1300, 1312), (2512, NUMEL)):  # no matrix, or too small
        assert bool(kept[start:stop].any()) == (values is not None and group.size > 1)
    if group.size > 1:
        numel = 2 * (40 + 30 + 20 + 60) + NUMEL - 2400
        assert total.sent_nbytes == (group.size - 1) * (np.dtype(dtype).itemsize if values is None else 2) * numel


def test_a_matrix_of_that_rank_is_summed_as_it_is(group: Group) -> None:
    def thin(rank: int) -> Any:
        random = np.random.default_rng(rank)
        return np.outer(random.standard_normal(40), np.arange(1.0, 31))

    total = LowRankSum(group, LowRank(2), 1200, np.dtype(np.float64), [Matrix(0, 40, 30)])
    vector, residual = thin(group.rank).ravel(), np.zeros(1200)
    total.sum(vector, residual, np.zeros(total.factors_numel), SEED, 0)
    np.testing.assert_allclose(vector, sum(thin(rank) for rank in range(group.size)).ravel(), atol=1e-10)
    np.testing.assert_allclose(sum(group.gather_objects(residual)), 0, atol=1e-10)


def test_rows_within_a_slice() -> None:
    matrix = Matrix(10, 4, 5)
    assert matrix.within(0, 100) == matrix
    assert matrix.within(12, 28) == Matrix(3, 2, 5)
    assert matrix.within(16, 18).rows == 0
    assert matrix.within(40, 90).rows == 0
    assert matrix.within(0, 5).rows == 0
