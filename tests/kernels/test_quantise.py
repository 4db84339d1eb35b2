"""Quantisers against NumPy, and what they promise."""

import os
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcvol.kernels import quantise
from hpcvol.kernels.quantise import Quantiser

pytestmark = pytest.mark.without_mpi

PLAIN = os.environ.get("NUMBA_DISABLE_JIT") == "1"
QUANTISERS = {
    "int8": quantise.INT8,
    "int4": quantise.INT4,
    "ternary": quantise.TERNARY,
    "sign": quantise.SIGN_MEAN,
    "fp8": quantise.FLOAT8,
    "qsgd:1": quantise.qsgd(1),
    "qsgd:7": quantise.qsgd(7),
    "qsgd:100": quantise.qsgd(100),
    "int8 by 16": quantise.INT8._replace(block_numel=16),
    "sign by 64": quantise.SIGN_MEAN._replace(block_numel=64),
    "fp8 by 1024": quantise.FLOAT8._replace(block_numel=1024),
}
NEAREST = {name: q for name, q in QUANTISERS.items() if q.rounding == quantise.NEAREST}
STOCHASTIC = {name: q for name, q in QUANTISERS.items() if q.rounding == quantise.STOCHASTIC}
by_quantiser = pytest.mark.parametrize("quantiser", QUANTISERS.values(), ids=QUANTISERS)
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
by_numel = pytest.mark.parametrize("numel", [0, 1, 9, 255, 256, 257, 16 * 256 + 511])

Vector = npt.NDArray[Any]
Payload = tuple[npt.NDArray[np.uint8], Vector]


def empty(numel: int, quantiser: Quantiser, dtype: Any) -> Payload:
    codes = np.full(quantise.code_nbytes(numel, quantiser), 0xA5, np.uint8)
    return codes, np.full(quantise.num_blocks(numel, quantiser), 7, dtype)


def encoded(x: Vector, quantiser: Quantiser, seed: int = 5) -> Payload:
    codes, scales = empty(x.size, quantiser, x.dtype)
    with np.errstate(all="ignore"):
        quantise.encode(x, quantiser, seed, codes, scales)
    return codes, scales


def decoded(payload: Payload, quantiser: Quantiser, numel: int) -> Vector:
    out = np.zeros(numel, payload[1].dtype)
    quantise.accumulate(*payload, quantiser, out)
    return out


def normal(numel: int, dtype: Any, seed: int = 0) -> Vector:
    return np.random.default_rng((numel, seed)).standard_normal(numel).astype(dtype)


# The oracle.


def scales_of(x: Vector, quantiser: Quantiser) -> Vector:
    blocks = [x[begin : begin + quantiser.block_numel] for begin in range(0, x.size, quantiser.block_numel)]
    sizes = {
        quantise.ABSMAX: lambda block: np.abs(block).max(),
        quantise.NORM: lambda block: np.sqrt((block.astype(np.float64) ** 2).sum()),
        quantise.MEAN: lambda block: np.abs(block).astype(np.float64).mean(),
    }
    found = np.array([sizes[quantiser.scale](block) for block in blocks], np.float64) / quantiser.levels
    least = 0 if quantiser.scale == quantise.MEAN else np.finfo(x.dtype).tiny
    return np.maximum(found, least).astype(x.dtype)


def levels_of(x: Vector, scales: Vector, quantiser: Quantiser) -> Vector:
    """The levels of roundings that leave nothing to chance."""
    exact = x * np.repeat(x.dtype.type(1) / scales, quantiser.block_numel)[: x.size]
    if quantiser.rounding == quantise.SIGN:
        return np.where(x < 0, -1, 1)
    if quantiser.rounding == quantise.E4M3:
        return exact.astype(ml_dtypes.float8_e4m3fn)
    return np.rint(exact).astype(np.int64)


def codes_of(levels: Vector, quantiser: Quantiser) -> Vector:
    if quantiser.rounding == quantise.E4M3:
        return levels.view(np.uint8)
    values = (levels < 0) if quantiser.width == 1 else levels & ((1 << quantiser.width) - 1)
    bits = (values[:, None].astype(np.int64) >> np.arange(quantiser.width)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little")


def unpacked(codes: Vector, quantiser: Quantiser, numel: int) -> Vector:
    bits = np.unpackbits(codes, bitorder="little")[: numel * quantiser.width].reshape(numel, quantiser.width)
    values = bits.astype(np.int64) @ (1 << np.arange(quantiser.width))
    return np.where(values >> (quantiser.width - 1), values - (1 << quantiser.width), values)


@by_quantiser
@by_dtype
@by_numel
def test_payloads_are_those_of_the_oracle(quantiser: Quantiser, dtype: Any, numel: int) -> None:
    memory = normal(numel + 1, dtype)
    x, kept = memory[1:], memory.copy()
    codes, scales = encoded(x, quantiser)
    assert codes.size == -(-numel * quantiser.width // 8)
    assert scales.size == -(-numel // quantiser.block_numel)
    np.testing.assert_allclose(scales, scales_of(x, quantiser), rtol=20 * np.finfo(dtype).eps)
    repeated = np.repeat(scales, quantiser.block_numel)[:numel]
    if quantiser.rounding == quantise.STOCHASTIC:
        levels = unpacked(codes, quantiser, numel)
        assert (np.abs(levels) <= quantiser.levels).all()
        exact = x / repeated
        assert (np.abs(levels - exact) < 1 + 1e-5).all()
        assert ((levels == 0) | (np.sign(levels) == np.sign(x))).all()
    else:
        levels = levels_of(x, scales, quantiser)
        np.testing.assert_array_equal(codes, codes_of(levels, quantiser))
    np.testing.assert_array_equal(decoded((codes, scales), quantiser, numel), levels.astype(dtype) * repeated)
    np.testing.assert_array_equal(memory, kept)


@by_quantiser
@by_dtype
@by_numel
def test_with_feedback_nothing_is_lost(quantiser: Quantiser, dtype: Any, numel: int) -> None:
    residual, given_in, told = np.zeros(numel, dtype), np.zeros(numel), np.zeros(numel)
    largest = 1.0
    for step in range(4):
        x = normal(numel, dtype, step)
        kept, corrected = x.copy(), x + residual
        payload = empty(numel, quantiser, dtype)
        quantise.encode_with_feedback(x, residual, quantiser, step, *payload)
        for found, wanted in zip(payload, encoded(corrected, quantiser, step), strict=True):
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(residual, corrected - decoded(payload, quantiser, numel))
        np.testing.assert_array_equal(x, kept)
        given_in, told = given_in + x, told + decoded(payload, quantiser, numel)
        largest = max(largest, np.abs(corrected).max(initial=0), np.abs(told).max(initial=0))
    np.testing.assert_allclose(told + residual, given_in, rtol=0, atol=16 * largest * np.finfo(dtype).eps)


@by_quantiser
@by_dtype
def test_decoding_adds(quantiser: Quantiser, dtype: Any) -> None:
    x, start = normal(700, dtype), normal(700, dtype, 1)
    payload, out = encoded(x, quantiser), start.copy()
    quantise.accumulate(*payload, quantiser, out)
    np.testing.assert_array_equal(out, start + decoded(payload, quantiser, 700))


@pytest.mark.parametrize("quantiser", NEAREST.values(), ids=NEAREST)
@by_dtype
def test_rounding_to_nearest_is_off_by_half_a_scale_at_most(quantiser: Quantiser, dtype: Any) -> None:
    tiny = np.finfo(dtype).tiny
    for factor in (1.0, 1e30, 1e-30, tiny, tiny * 100, 1e-4 * tiny):
        x = (normal(1000, np.float64) * factor).astype(dtype)
        payload = encoded(x, quantiser)
        scales = np.repeat(payload[1], quantiser.block_numel)[:1000].astype(np.float64)
        error = np.abs(decoded(payload, quantiser, 1000).astype(np.float64) - x)
        assert (error <= scales * (0.5 + quantiser.levels * 2 * np.finfo(dtype).eps)).all()


@by_dtype
def test_float8_is_off_by_a_sixteenth_at_most(dtype: Any) -> None:
    x = normal(1000, dtype)
    codes, scales = encoded(x, quantise.FLOAT8)
    least = np.repeat(scales, 256)[:1000] * 2.0**-10  # half of its least number
    error = np.abs(decoded((codes, scales), quantise.FLOAT8, 1000) - x)
    assert (error <= np.maximum(np.abs(x) / 16 * (1 + 1e-5), least * (1 + 1e-5))).all()


@by_dtype
def test_sign_keeps_a_part_of_what_is_there(dtype: Any) -> None:
    """Karimireddy et al. 2019, lemma 8: |x - decoded|² = (1 - |x|₁² / (d |x|₂²)) |x|₂² for a block of d elements."""
    x = normal(1024, dtype) ** 3
    error = (x - decoded(encoded(x, quantise.SIGN_MEAN), quantise.SIGN_MEAN, 1024)).astype(np.float64)
    for block, lost in zip(x.astype(np.float64).reshape(-1, 256), error.reshape(-1, 256), strict=True):
        expected = (block**2).sum() - np.abs(block).sum() ** 2 / 256
        assert (lost**2).sum() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("quantiser", STOCHASTIC.values(), ids=STOCHASTIC)
@by_dtype
def test_rounding_by_chance_is_unbiased(quantiser: Quantiser, dtype: Any) -> None:
    """The mean over seeds, and over elements, is within five and a half standard deviations of what it should be."""
    num_seeds, numel = (100, 300) if PLAIN else (2000, 3000)
    x = normal(numel, dtype)
    told = np.zeros(numel)
    for seed in range(num_seeds):
        payload = encoded(x, quantiser, seed)
        told += decoded(payload, quantiser, numel)
    scales = np.repeat(payload[1], quantiser.block_numel)[:numel].astype(np.float64)
    share = np.modf(np.abs(x) / scales)[0]
    deviation = scales * np.sqrt(share * (1 - share))
    error = told / num_seeds - x
    # Elements that are all but certain have no normal distribution of means.
    likely = share * (1 - share) * num_seeds > 9
    assert likely.any()
    assert (np.abs(error) < 5.5 * deviation / np.sqrt(num_seeds) + 1e-6)[likely].all()
    assert abs(error.sum()) < 5.5 * np.sqrt((deviation**2).sum() / num_seeds)


@pytest.mark.parametrize("quantiser", STOCHASTIC.values(), ids=STOCHASTIC)
def test_chance_follows_from_seed_and_index_alone(quantiser: Quantiser) -> None:
    x = normal(2048, np.float32)
    whole, again, other = (encoded(x, quantiser, seed)[0] for seed in (3, 3, 1 << 40))
    np.testing.assert_array_equal(whole, again)
    assert (whole != other).any()
    shorter = encoded(x[:700].copy(), quantiser, 3)[0]
    np.testing.assert_array_equal(shorter[: 512 * quantiser.width // 8], whole[: 512 * quantiser.width // 8])


@pytest.mark.parametrize("levels", [1, 4, 7, 100])
def test_qsgd_keeps_the_bound_of_its_paper(levels: int) -> None:
    """Alistarh et al. 2017, lemma 3.1: E|x - decoded|² <= min(d / s², √d / s) |x|² for a block of d elements."""
    quantiser, x = quantise.qsgd(levels), normal(256, np.float32)
    errors = [((decoded(encoded(x, quantiser, s), quantiser, 256) - x) ** 2).sum() for s in range(10 if PLAIN else 200)]
    assert np.mean(errors) <= min(256 / levels**2, 16 / levels) * (x**2).sum()


@by_quantiser
@by_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_that_is_not_finite_is_told_as_such(quantiser: Quantiser, dtype: Any, bad: float) -> None:
    numel, block = 2600, quantiser.block_numel
    x, residual = normal(numel, dtype), np.full(numel, 0.01, dtype)
    places = [3, 1100, numel - 1]
    x[places] = bad
    payload, kept = empty(numel, quantiser, dtype), x.copy()
    with np.errstate(all="ignore"):
        quantise.encode_with_feedback(x, residual, quantiser, 1, *payload)
    lost = np.isin(np.arange(numel) // block, [place // block for place in places])
    told = decoded(payload, quantiser, numel)
    np.testing.assert_array_equal(np.isnan(told), lost)
    np.testing.assert_array_equal(residual[lost], 0)
    np.testing.assert_allclose((told + residual)[~lost], (kept + dtype(0.01))[~lost], atol=1e-5)


@by_quantiser
@by_dtype
def test_numbers_at_the_ends_of_the_range(quantiser: Quantiser, dtype: Any) -> None:
    limits = np.finfo(dtype)
    for value in (limits.max / 64, limits.tiny, limits.smallest_subnormal, -limits.smallest_subnormal, 0.0, -0.0):
        x = np.full(300, value, dtype)
        with np.errstate(all="ignore"):
            told = decoded(encoded(x, quantiser), quantiser, 300)
        assert np.isfinite(told).all()
        bound = 1.5 * np.abs(x) if quantiser.scale != quantise.NORM else np.abs(x) * 16 / quantiser.levels
        assert (np.abs(told - x) <= np.maximum(bound, limits.tiny)).all()


@settings(max_examples=10 if PLAIN else 60, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=300),
    st.sampled_from(list(QUANTISERS)),
    st.integers(0, 2**63 - 1),
)
def test_whatever_is_encoded_is_there_again(values: list[float], name: str, seed: int) -> None:
    quantiser, x = QUANTISERS[name], np.array(values, np.float32)
    residual, payload = np.zeros_like(x), empty(x.size, QUANTISERS[name], np.float32)
    with np.errstate(under="ignore"):
        quantise.encode_with_feedback(x, residual, quantiser, seed, *payload)
        told = decoded(payload, quantiser, x.size)
    largest = max(np.abs(told).max(initial=0), np.abs(x).max(initial=0))
    np.testing.assert_allclose(told.astype(np.float64) + residual, x, rtol=0, atol=2e-7 * largest)


def test_the_same_tests_pass_without_the_compiler() -> None:
    if PLAIN:
        pytest.skip("this is the run without the compiler")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert "1 skipped" in run.stdout
