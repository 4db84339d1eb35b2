"""What the compiler makes of lanes is what they mean in NumPy."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import config, njit

from hpcvol.kernels import (
    lanes,
    lanes_compiled,  # noqa: F401
)
from hpcvol.kernels.lanes import LANES

pytestmark = [
    pytest.mark.without_mpi,
    pytest.mark.skipif(bool(config.DISABLE_JIT), reason="there is nothing to compare"),  # type: ignore[attr-defined]
]

FLOATS, INTEGERS = [np.float32, np.float64], [np.uint8, np.int8, np.uint32, np.int32, np.uint64]
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3.25e38, 0.5, 1.5, 2.5, -2.5, 1e-40, 1.0, -1.0, 7.0]

Vector = npt.NDArray[Any]


def vectors(dtype: Any) -> list[Vector]:
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return [*rng.standard_normal((5, LANES)).astype(dtype), np.array(SPECIAL, dtype), np.zeros(LANES, dtype)]
    limits = np.iinfo(dtype)
    return list(rng.integers(limits.min, limits.max, (5, LANES), dtype, endpoint=True))


def check(function: Callable[..., Any], *arguments: list[Vector]) -> None:
    """Compare what `function`, which loads and stores lanes, makes of each of some vectors, plain and compiled."""
    compiled = njit(function)
    for vectors_of_one_call in zip(*arguments, strict=True):
        with np.errstate(all="ignore"):
            plain = function(*vectors_of_one_call)
        np.testing.assert_array_equal(compiled(*vectors_of_one_call), plain)


def rolled(vectors: list[Vector]) -> list[Vector]:
    return [np.roll(vector, 1) for vector in vectors]


def unary(function: Any, dtype: Any) -> Callable[[Vector], Vector]:
    def apply(one: Vector) -> Vector:
        out = np.zeros(LANES, dtype)
        lanes.store(out, 0, function(lanes.load(one, 0)))
        return out

    return apply


def binary(function: Any, dtype: Any) -> Callable[[Vector, Vector], Vector]:
    def apply(one: Vector, other: Vector) -> Vector:
        out = np.zeros(LANES, dtype)
        lanes.store(out, 0, function(lanes.load(one, 0), lanes.load(other, 0)))
        return out

    return apply


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("function", [lanes.magnitude, lanes.rint, lanes.bits_of, lanes.float32_of])
def test_of_one_vector(function: Any, dtype: Any) -> None:
    results = {lanes.bits_of: f"u{np.dtype(dtype).itemsize}", lanes.float32_of: "f4"}
    check(unary(function, np.dtype(results.get(function, dtype))), vectors(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_and_back(dtype: Any) -> None:
    check(unary(lanes.floats_of, dtype), [one.view(f"u{one.itemsize}") for one in vectors(dtype)])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("function", [operator.add, operator.sub, operator.mul, lanes.larger])
def test_of_two_vectors_of_floats(function: Any, dtype: Any) -> None:
    check(binary(function, dtype), vectors(dtype), rolled(vectors(dtype)))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "and_", "or_", "xor"])
def test_of_two_vectors_of_integers(name: str, dtype: Any) -> None:
    check(binary(getattr(operator, name), dtype), vectors(dtype), rolled(vectors(dtype)))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_shifts_by_a_number(dtype: Any) -> None:
    def shifted(one: Vector) -> Vector:
        out = one.copy()
        lanes.store(out, 0, (lanes.load(one, 0) << 3) ^ (lanes.load(one, 0) >> 2))
        return out

    check(shifted, vectors(dtype))


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_choosing_by_a_comparison(dtype: Any) -> None:
    def lesser(one: Vector, other: Vector) -> Vector:
        out = one.copy()
        a, b = lanes.load(one, 0), lanes.load(other, 0)
        lanes.store(out, 0, lanes.where(a < b, a, b))
        return out

    check(lesser, vectors(dtype), rolled(vectors(dtype)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_reductions_and_what_is_spread(dtype: Any) -> None:
    def reduced(one: Vector) -> Vector:
        out = one.copy()
        whole = lanes.load(one, 0)
        lanes.store(out, 0, lanes.spread(lanes.greatest(whole)) - lanes.spread(lanes.total(whole)))
        return out

    check(reduced, vectors(dtype))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (np.float32, np.float64),
        (np.float64, np.float32),
        (np.uint8, np.int8),
        (np.uint8, np.uint32),
        (np.int8, np.float32),
        (np.uint16, np.uint32),
        (np.uint32, np.uint16),
        (np.int32, np.float64),
    ],
)
def test_conversions(old: Any, new: Any) -> None:
    def converted(one: Vector) -> Vector:
        out = np.zeros(LANES, new)
        lanes.store(out, 0, lanes.convert(lanes.load(one, 0), new))
        return out

    check(converted, vectors(old))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("new", [np.int8, np.int32])
def test_floats_are_cut_to_integers(dtype: Any, new: Any) -> None:
    def converted(one: Vector) -> Vector:
        out = np.zeros(LANES, new)
        lanes.store(out, 0, lanes.convert(lanes.load(one, 0), new))
        return out

    check(converted, [np.linspace(-127.9, 127.9, LANES).astype(dtype)])


def test_float16() -> None:
    numbers = [one for one in vectors(np.float32) if not np.isnan(one).any()]
    check(unary(lanes.float16_bits, np.uint16), [*numbers, np.array([65519, 65520, 1e-8, 6e-8] * 4, np.float32)])
    every = np.arange(1 << 16, dtype=np.uint16).reshape(-1, LANES)
    check(unary(lanes.float16_values, np.float32), list(every[::37]))


def test_counting() -> None:
    def counted(one: Vector) -> Vector:
        lanes.store(one, 0, lanes.count_from(np.uint32(0xFFFFFFF8)))
        return one

    check(counted, [np.zeros(LANES, np.uint32)])


@pytest.mark.parametrize("width", [1, 2, 4])
def test_packing_and_back(width: int) -> None:
    def packed(one: Vector) -> Vector:
        out = np.full(2 + LANES + 3 * LANES, 0xEE, np.uint8)
        lanes.pack(out, 1, lanes.load(one, 0), width)
        lanes.store(out, 20, lanes.unpack(out, 1, width))
        return out

    check(packed, vectors(np.uint8))
    for one in vectors(np.uint8):
        np.testing.assert_array_equal(packed(one)[20 : 20 + LANES], one & ((1 << width) - 1))


def test_any_alignment() -> None:
    def moved(memory: Vector) -> Vector:
        lanes.store(memory, 3, lanes.load(memory, 17) + 1)
        return memory

    memory = np.zeros(4 * 40 + 1, np.uint8)[1:].view(np.float32)
    memory[:] = np.arange(40)
    expected = moved(memory.copy())
    np.testing.assert_array_equal(njit(moved)(memory), expected)
