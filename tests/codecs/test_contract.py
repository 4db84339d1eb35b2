"""What every codec promises, for each of them: nothing is lost, payloads are as long as said, input is left alone."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcvol.codecs import Cast, Codec, LowRank, Momentum, Quantise, Seeds, Sparsify, parse
from hpcvol.errors import ConfigError

pytestmark = pytest.mark.without_mpi

NAMES = [
    "bf16",
    "fp16",
    "fp8",
    "int8",
    "int4",
    "sign",
    "ternary",
    "qsgd:7",
    "qsgd:1",
    "topk:0.01",
    "topk:0.3+int8",
    "topk:0.001+bf16",
    "randomk:0.1",
    "randomk:0.1+int4",
    "threshold:2",
    "threshold:0.001",
    "threshold:2+fp16",
]
LENGTHS = [0, 1, 15, 16, 255, 256, 257, 5000]
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
SEEDS = Seeds.of(0, 0, 0)

by_name = pytest.mark.parametrize("name", NAMES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def codec_of(name: str) -> Codec:
    codec = parse(name)
    assert codec is not None
    assert not isinstance(codec, LowRank)
    return codec


def gradient(numel: int, dtype: Any, seed: int = 0) -> Any:
    """Heavy tails, and zeros as of parameters that no sample reached."""
    random = np.random.default_rng([seed, numel])
    values = random.standard_t(3, numel)
    values[random.random(numel) < 0.1] = 0
    return values.astype(dtype)


def encoded(codec: Codec, x: Any, residual: Any, seeds: Seeds = SEEDS) -> Any:
    payload = np.full(codec.room(x.size, x.dtype), 0xA5, np.uint8)
    return payload[: codec.encode(x, residual, seeds, payload)]


def decoded(codec: Codec, payload: Any, like: Any, seeds: Seeds = SEEDS) -> Any:
    out = np.zeros_like(like)
    codec.accumulate(payload, seeds, out)
    return out


@by_dtype
@by_name
def test_with_feedback_nothing_is_lost_and_the_input_is_left_alone(name: str, dtype: Any) -> None:
    codec = codec_of(name)
    for numel in LENGTHS:
        residual, told, given_to = np.zeros(numel, dtype), np.zeros(numel), np.zeros(numel)
        for step in range(4):
            x, seeds = gradient(numel, dtype, step), Seeds.of(3, step, 1)
            before = x.copy()
            payload = encoded(codec, x, residual, seeds)
            np.testing.assert_array_equal(x, before)
            told += decoded(codec, payload, x, seeds)
            given_to += x
        scale = np.abs(given_to).max(initial=1)
        np.testing.assert_allclose(told + residual, given_to, atol=40 * np.finfo(dtype).eps * scale, err_msg=str(numel))


@by_dtype
@pytest.mark.parametrize("name", ["topk:0.1", "threshold:2", "randomk:0.1"])
def test_what_is_selected_and_what_is_kept_are_the_input_to_the_bit(name: str, dtype: Any) -> None:
    codec, x = codec_of(name), gradient(5000, dtype)
    residual = np.zeros_like(x)
    payload = encoded(codec, x, residual)
    out = decoded(codec, payload, x)
    np.testing.assert_array_equal(out + residual, x)
    assert not np.any((out != 0) & (residual != 0))


@by_dtype
@by_name
def test_a_payload_says_the_same_every_time_and_adds(name: str, dtype: Any) -> None:
    codec, x = codec_of(name), gradient(777, dtype)
    one = encoded(codec, x, None)
    np.testing.assert_array_equal(one, encoded(codec, x, None))
    added = np.ones_like(x)
    codec.accumulate(one, SEEDS, added)
    np.testing.assert_allclose(added - 1, decoded(codec, one, x), atol=1e-5)


@by_dtype
@pytest.mark.parametrize(
    ("name", "bits"),
    [("bf16", 16), ("fp16", 16), ("fp8", 8), ("int8", 8), ("int4", 4), ("ternary", 2), ("sign", 1), ("qsgd:7", 4)],
)
def test_payloads_are_as_long_as_documented(name: str, bits: int, dtype: Any) -> None:
    codec = codec_of(name)
    for numel in LENGTHS:
        codes = -(-numel * bits // 8)
        scales = -(-numel // 256) * dtype.itemsize if isinstance(codec, Quantise) else 0
        wanted = -(-codes // 64) * 64 + scales if isinstance(codec, Quantise) else codes
        assert encoded(codec, gradient(numel, dtype), None).size == wanted, numel


def test_indices_take_about_as_many_bytes_as_documented() -> None:
    x = gradient(100_000, np.float32)
    values = 4 * 1000
    assert values < encoded(codec_of("topk:0.01"), x, None).size < 128 + values + 1.2 * 1000
    assert encoded(codec_of("topk:0.001"), x, None).size < 128 + 400 + 2.1 * 100
    assert encoded(codec_of("topk:0.01+int8"), x, None).size < 192 + 1000 + 16 + 1.2 * 1000
    assert encoded(codec_of("randomk:0.01"), x, None).size == values


@pytest.mark.parametrize("name", ["ternary", "qsgd:7", "qsgd:1", "randomk:0.1"])
def test_unbiased_codecs_are_unbiased(name: str) -> None:
    """The mean over many seeds lies within 6 standard errors, element by element."""
    codec, x = codec_of(name), gradient(512, np.float64)
    if isinstance(codec, Sparsify):
        codec = Sparsify(codec.select, codec.amount, feedback=False)
    assert not codec.residual_rows
    draws = np.array(
        [decoded(codec, encoded(codec, x, None, s), x, s) for s in (Seeds.of(1, step, 0) for step in range(2000))]
    )
    error = draws.std(axis=0) / np.sqrt(len(draws))
    rare = 15 * np.abs(draws).max() / len(draws)  # whose deviation so few draws do not tell
    assert np.all(np.abs(draws.mean(axis=0) - x) <= 6 * error + rare)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("topk:0.25", 0.75),  # Stich, Cordonnier, Jaggi, 2018: at most 1 - k / n of the squared norm is lost
        ("int8", (0.5 / 127) ** 2 * 256),  # half a level in each element of a block
        ("int4", (0.5 / 7) ** 2 * 256),
        ("bf16", 2.0**-18),
        ("fp8", 2.0**-8),
    ],
)
def test_what_is_lost_is_bounded(name: str, share: float) -> None:
    for seed in range(5):
        x = gradient(4096, np.float64, seed)
        lost = x - decoded(codec_of(name), encoded(codec_of(name), x, None), x)
        assert np.square(lost).sum() <= share * np.square(x).sum()


def test_sign_loses_what_karimireddy_says() -> None:
    """1 - |x|1² / (n |x|2²) of the squared norm, block by block."""
    x = np.random.default_rng(0).standard_normal(256 * 8)
    lost = x - decoded(codec_of("sign"), encoded(codec_of("sign"), x, None), x)
    blocks = x.reshape(-1, 256)
    bound = np.square(blocks).sum(1) - np.abs(blocks).sum(1) ** 2 / 256
    np.testing.assert_allclose(np.square(lost.reshape(-1, 256)).sum(1), bound, rtol=1e-6)


@by_name
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(name: str, value: float) -> None:
    codec, x = codec_of(name), gradient(600, np.float32)
    x[301] = value
    residual = np.zeros_like(x)
    out = decoded(codec, encoded(codec, x, residual), x)
    assert not np.isfinite(out).all()


@by_name
def test_subnormal_numbers_lose_nothing_either(name: str) -> None:
    codec = codec_of(name)
    x = gradient(300, np.float32) * np.float32(1e-41)
    residual = np.zeros_like(x)
    out = decoded(codec, encoded(codec, x, residual), x)
    np.testing.assert_allclose(out + residual, x, atol=2e-38)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("fp8", "int8", "int4", "ternary", "sign")])
@settings(max_examples=30)
@given(cut=st.integers(0, 200), flip=st.integers(0, 10_000))
def test_a_damaged_payload_is_refused_or_decoded_within_the_vector(name: str, cut: int, flip: int) -> None:
    codec, x = codec_of(name), gradient(500, np.float32)
    payload = encoded(codec, x, None).copy()
    payload[flip % payload.size] ^= 1 << (flip % 8)
    around = np.full(1500, 7, np.float32)
    out = around[500:1000]
    with suppress(ValueError):
        codec.accumulate(payload[: payload.size - cut], SEEDS, out)
    assert np.all(around[:500] == 7)
    assert np.all(around[1000:] == 7)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("int9", "no codec is called 'int9'"),
        ("topk", "topk takes a number after a colon, such as topk:0.01"),
        ("topk:x", "topk takes a number"),
        ("topk:0", "a share of the elements"),
        ("topk:2", "above 0 and up to 1"),
        ("threshold:-1", "a magnitude, 0 or more"),
        ("qsgd:300", "expected 1 to 127"),
        ("powersgd:0", "expected at least 1"),
        ("int8+topk:0.1", "nothing else goes together"),
        ("topk:0.1+topk:0.1", "nothing else goes together"),
        ("powersgd:2+int8", "nothing else goes together"),
        ("topk:0.1+int8+int8", "nothing else goes together"),
        ("", "no codec is called ''"),
        ("int8:4", "no codec is called 'int8:4'"),
        ("topk:nan", "no codec is called"),
    ],
)
def test_what_is_no_codec_is_refused_with_what_there_is(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.codec") as caught:
        parse(text)
    assert part in str(caught.value)
    assert '"powersgd:RANK"' in str(caught.value)


def test_names_are_presets_of_four_families() -> None:
    assert parse("none") is None
    assert parse("bf16") == Cast("bfloat16")
    assert parse("int8") == Quantise("int8")
    assert parse("qsgd:3") == Quantise("qsgd", levels=3)
    assert parse("topk:0.01+int8") == Sparsify("topk", 0.01, Quantise("int8"))
    assert parse("topk:0.01+dgc") == Momentum(Sparsify("topk", 0.01))
    assert parse("topk:0.01+int8+dgc:20") == Momentum(Sparsify("topk", 0.01, Quantise("int8")), warm_up_steps=20)
    assert parse("powersgd:4") == LowRank(4)
    assert parse("powersgd:4+bf16") == LowRank(4, Cast("bfloat16"))


@by_dtype
@pytest.mark.parametrize("values", [None, Quantise("int8")], ids=str)
def test_momentum_is_that_of_the_paper(values: Quantise | None, dtype: Any) -> None:
    """Algorithm 1 of Deep Gradient Compression, but for its clipping, written plainly beside it."""
    numel, codec = 1000, Momentum(Sparsify("topk", 0.01, values), momentum=0.7, warm_up_steps=4)
    residual = np.zeros(2 * numel, dtype)
    velocity, unsent = np.zeros(numel), np.zeros(numel)
    for step, count in enumerate([250, 112, 50, 22, 10, 10]):  # a quarter, and each time 25^(1/4) times less
        x, seeds = gradient(numel, dtype, step), Seeds.of(3, step, 1)
        velocity = 0.7 * velocity + x
        unsent += velocity
        largest = np.argsort(np.abs(unsent))[-count:]
        payload = encoded(codec, x, residual, seeds)
        indices, found = codec.decode(payload, seeds, numel, dtype)
        assert set(indices.tolist()) == set(largest.tolist())
        np.testing.assert_allclose(found, unsent[indices], rtol=1e-5, atol=0 if values is None else 0.2)
        np.testing.assert_array_equal(decoded(codec, payload, x, seeds)[indices], found)
        velocity[largest] = 0
        unsent[indices] -= found
        np.testing.assert_allclose(residual, np.concatenate([unsent, velocity]), rtol=1e-4, atol=1e-5)


def test_momentum_of_all_that_there_is_is_that_of_sgd() -> None:
    codec = Momentum(Sparsify("topk", 0.01))
    residual, velocity = np.concatenate([np.ones(50), np.zeros(50)]), np.zeros(50)
    for step in range(5):
        x = gradient(50, np.float64, step)
        velocity = 0.9 * velocity + x
        codec.add_all(x, residual)
        np.testing.assert_allclose(x, velocity + (step == 0))  # once what was not sent before
    np.testing.assert_allclose(residual, np.concatenate([np.zeros(50), velocity]))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("randomk:0.1+dgc", "expected topk or threshold"),
        ("threshold:0.1+dgc:5", "only topk has a share"),
        ("topk:0.1+dgc:-1", "expected at least 0"),
        ("topk:0.1+dgc:some", "dgc takes the steps of its warm-up"),
        ("topk:0.1+dgc+int8", "nothing else goes together"),
        ("topk:0.1+dgc+dgc", "nothing else goes together"),
        ("int8+dgc", "no codec is called 'dgc'"),
    ],
)
def test_what_momentum_cannot_be_of_is_refused(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        parse(text)


@dataclass(frozen=True)
class TwoRows(Quantise):
    residual_rows = 2


@pytest.mark.parametrize(
    ("codec", "part"),
    [(5, "it lacks residual_rows"), (None, "it lacks"), (Quantise, "an instance"), (TwoRows("int8"), "0 or 1")],
)
def test_what_is_given_and_is_no_codec_is_refused(codec: Any, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        parse(codec)
    assert parse(Quantise("int8")) == Quantise("int8")
