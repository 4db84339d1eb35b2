"""The selector's three rules against NumPy, which sorts: top-k, threshold and random-k, with and without feedback."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.kernels import top_k as top_k_module
from hpcvol.kernels.magnitude import magnitude
from hpcvol.kernels.radix import kth_magnitude
from hpcvol.kernels.random_k import random_indices, random_k
from hpcvol.kernels.sparse import MAX_NUMEL, check
from hpcvol.kernels.threshold import threshold
from hpcvol.kernels.top_k import top_k, top_k_by_radix

pytestmark = pytest.mark.without_mpi

NUMEL, K, SEED = 10_007, 200, 7  # so many that survivors of a useless threshold have to be trimmed on the way
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
by_feedback = pytest.mark.parametrize("feedback", [True, False], ids=["feedback", "plain"])


def normal(numel: int = NUMEL) -> Any:
    return np.random.default_rng(numel).standard_normal(numel)


def sampled() -> Any:
    """The places that `top_k` looks at first, under this seed."""
    places = np.empty((NUMEL + 7) // 8, np.int32)
    random_indices(NUMEL, SEED, places)
    return places


def large_where_sampled() -> Any:
    """Fewer than k elements stand out, and the sample takes them for what all are like."""
    values = normal()
    values[sampled()[::20]] *= 1e6
    return values


def small_where_sampled() -> Any:
    values = np.arange(1.0, NUMEL + 1)
    values[sampled()] = 0
    return values


def non_finite() -> Any:
    values = normal()
    values[::300], values[7::400], values[9::500] = np.nan, -np.inf, np.inf
    return values


GRADIENTS: dict[str, Callable[[], Any]] = {
    "normal": normal,
    "heavy-tailed": lambda: np.random.default_rng(0).standard_cauchy(NUMEL) ** 3,
    "constant": lambda: np.full(NUMEL, -0.5),
    "zero": lambda: np.where(np.arange(NUMEL) % 2, 0.0, -0.0),
    "sparse": lambda: np.where(np.random.default_rng(1).random(NUMEL) < 0.005, normal(), 0.0),
    "ascending": lambda: np.sort(np.abs(normal())),
    "descending": lambda: np.sort(np.abs(normal()))[::-1],
    "few magnitudes": lambda: np.round(normal()),
    "denormal": lambda: np.round(normal() * 100) * 1e-45,
    "large where sampled": large_where_sampled,
    "small where sampled": small_where_sampled,
    "non-finite": non_finite,
}


def magnitudes(values: Any) -> Any:
    return np.abs(values).view(f"i{values.itemsize}").astype(np.int64)


def largest(values: Any, k: int) -> Any:
    """Indices of the k largest magnitudes, ascending, of equal ones those that come first."""
    return np.sort(np.argsort(-magnitudes(values), kind="stable")[:k])


def select(rule: Callable[..., Any], x: Any, feedback: bool, room: int, *parameters: Any) -> tuple[Any, Any]:
    """Apply a rule; check all that holds for each of them, and return the indices and x plus the residual before."""
    kept = x.copy()
    with np.errstate(all="ignore"):
        residual = x / 2 if feedback else None  # so that magnitudes that are equal stay so
        corrected = x + residual if residual is not None else x
        indices, values = np.empty(room, np.int32), np.empty(room, x.dtype)
        found = rule(x, residual, *parameters, indices, values)
    indices, values = indices[:found], values[:found]
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_array_equal(values, corrected[indices])
    assert (np.diff(indices) > 0).all()
    if residual is not None:
        decoded = np.zeros_like(x)
        decoded[indices] = values
        assert not residual[indices].any()
        residual[indices] = values
        np.testing.assert_array_equal(residual, corrected)  # decoded plus residual is x plus residual, to the bit
    return indices, corrected


@by_dtype
@by_feedback
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_top_k_is_exactly_the_k_largest(gradient: str, feedback: bool, dtype: Any) -> None:
    x = GRADIENTS[gradient]().astype(dtype)
    for k in (1, K):
        indices, corrected = select(top_k, x, feedback, k, SEED)
        np.testing.assert_array_equal(indices, largest(corrected, k))


@by_dtype
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_radix_selection_alone_selects_the_same(gradient: str, dtype: Any) -> None:
    x = GRADIENTS[gradient]().astype(dtype)
    ordered = np.sort(magnitudes(x))[::-1]
    for k in (K, NUMEL - 1):
        indices, values = np.empty(k, np.int32), np.empty(k, dtype)
        top_k_by_radix(x, indices, values)
        np.testing.assert_array_equal(indices, largest(x, k))
        np.testing.assert_array_equal(values, x[indices])
        assert kth_magnitude(x, k) == (ordered[k - 1], k - np.count_nonzero(ordered > ordered[k - 1]))


@by_dtype
def test_samples_mislead_where_they_are_meant_to(dtype: Any) -> None:
    """The cases above would say nothing of the fallback and of trimming if these thresholds were any good."""
    found = {}
    for name in ("normal", "large where sampled", "small where sampled", "constant"):
        x = GRADIENTS[name]().astype(dtype)
        found[name] = np.count_nonzero(magnitudes(x) >= top_k_module._sampled_threshold(x, None, SEED, K))
    assert K <= found["normal"] <= 2.5 * K
    assert found["large where sampled"] < K
    assert min(found["small where sampled"], found["constant"]) > 2 * K + top_k_module._ROOM


@by_dtype
def test_hardly_any_sample_finds_too_few(dtype: Any) -> None:
    x = normal().astype(dtype)
    found = [np.count_nonzero(magnitudes(x) >= top_k_module._sampled_threshold(x, None, seed, K)) for seed in range(30)]
    assert min(found) >= K
    assert np.mean(found) < 2 * K


@by_dtype
@by_feedback
@given(data=st.data())
def test_small_vectors(data: st.DataObject, feedback: bool, dtype: Any) -> None:
    some = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, np.inf, -np.inf, np.nan]) | st.floats(-1e30, 1e30)
    x = np.array(data.draw(st.lists(some, max_size=40)), dtype)
    k = data.draw(st.integers(0, x.size))
    indices, corrected = select(top_k, x, feedback, k, data.draw(st.integers(0, 2**63 - 1)))
    np.testing.assert_array_equal(indices, largest(corrected, k))
    least = abs(data.draw(st.floats(-2, 2) | st.just(np.inf)))
    indices, corrected = select(threshold, x, feedback, x.size, least)
    np.testing.assert_array_equal(indices, np.flatnonzero(~(np.abs(corrected) < dtype(least))))
    assert select(random_k, x, feedback, k, data.draw(st.integers(0, 2**63 - 1)))[0].size == k


@by_dtype
@by_feedback
def test_a_threshold_stops_where_room_ends(dtype: Any, feedback: bool) -> None:
    for room in (0, 1, 17, 100):
        indices, corrected = select(threshold, normal(1000).astype(dtype), feedback, room, 0.5)
        np.testing.assert_array_equal(indices, np.flatnonzero(np.abs(corrected) >= 0.5)[:room])


@pytest.mark.parametrize(("numel", "k"), [(1, 1), (7, 7), (10, 3), (1000, 999), (10_007, 5000), (MAX_NUMEL, 9)])
def test_random_indices_are_one_of_each_stratum(numel: int, k: int) -> None:
    drawn = np.empty((2, k), np.int32)
    for seed in (0, 1, 2**63 - 1):
        for row in drawn:
            random_indices(numel, seed, row)
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert drawn[0, 0] >= 0
        assert drawn[0, -1] < numel
        gaps = np.diff(drawn[0].astype(np.int64))
        assert (gaps > 0).all()
        assert (gaps <= 2 * -(-numel // k)).all()


def test_random_indices_stay_what_they_are() -> None:
    """Ranks of different versions and machines have to draw the same ones."""
    drawn = np.empty(6, np.int32)
    random_indices(10**9, 12345678901234567, drawn)
    assert drawn.tolist() == [79382037, 310412555, 425906292, 641198947, 829299945, 980959214]


@pytest.mark.parametrize(("numel", "k"), [(10, 3), (7, 5), (64, 1), (9, 9)])
def test_every_element_is_drawn_as_often(numel: int, k: int) -> None:
    """Scaled by n / k random-k is unbiased: each frequency is k / n within five standard deviations."""
    seeds, drawn = 1000, np.empty(k, np.int32)
    counts = np.zeros(numel)
    for seed in range(seeds):
        random_indices(numel, seed, drawn)
        counts[drawn] += 1
    share = k / numel
    assert np.abs(counts - seeds * share).max() <= 5 * np.sqrt(seeds * share * (1 - share))


def test_what_does_not_fit_is_refused() -> None:
    x, indices, values = np.ones(3, np.float32), np.zeros(4, np.int32), np.zeros(4, np.float32)
    residual = np.ones(3, np.float32)
    for rule, parameter in ((top_k, 0), (threshold, 0.5), (random_k, 0)):
        with pytest.raises(ValueError, match="than there are"):
            rule(x, residual, parameter, indices, values)
        with pytest.raises(ValueError, match="as many values as indices"):
            rule(x, residual, parameter, indices[:2], values[:3])
        with pytest.raises(ValueError, match="as long as"):
            rule(x, residual[:2], parameter, indices[:2], values[:2])
    for least in (-1.0, np.nan):
        with pytest.raises(ValueError, match="at least 0"):
            threshold(x, residual, least, indices[:2], values[:2])
    with pytest.raises(ValueError, match="2\\^31"):
        check(np.broadcast_to(np.float32(0), (MAX_NUMEL + 1,)), None, indices, values)
    np.testing.assert_array_equal(residual, 1)


@by_dtype
def test_magnitudes_are_ordered(dtype: Any) -> None:
    values = np.array([0, 1e-45, 1e-30, 1, 1.5, 1e30, np.inf, np.nan], dtype)
    found = [magnitude(value) for value in values]
    assert found == sorted(found) == magnitudes(-values).tolist()
