"""The kernels of shared memory that one process can run, against NumPy: compiled, and without the compiler."""

import itertools
import os
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcvol.kernels import direct
from hpcvol.kernels.combine import KINDS, MAX, MEAN, MIN, PRODUCT, SUM, combine

pytestmark = pytest.mark.without_mpi

DTYPES: dict[str, Any] = {name: np.dtype(name) for name in KINDS if name != "bfloat16"}
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
OPS = (SUM, MEAN, MIN, MAX, PRODUCT)


def combined(
    rows: list[NDArray[Any]], op: int, start: int = 0, stop: int | None = None, divisor: int = 0
) -> list[NDArray[Any]]:
    """Combine `rows` in the kernel, and return what is in two targets, of which one is the first row itself."""
    terms = [row.copy() for row in rows]
    targets = [terms[0], np.zeros_like(terms[0])]
    sources = np.array([term.ctypes.data for term in terms])
    places = np.array([target.ctypes.data for target in targets])
    size = rows[0].itemsize
    end = rows[0].size if stop is None else stop
    kind, by = KINDS[rows[0].dtype.name], divisor or len(rows)
    combine(kind, op, sources.ctypes.data, len(rows), places.ctypes.data, 2, by, start * size, end * size)
    for term, row in zip(terms[1:], rows[1:], strict=True):
        assert term.tobytes() == row.tobytes(), "sources are left alone"
    return targets


def oracle(rows: list[NDArray[Any]], op: int) -> NDArray[Any]:
    dtype = rows[0].dtype
    wide = [row.astype(np.float32) if dtype.itemsize == 2 else row for row in rows]
    total = wide[0].copy()
    for row in wide[1:]:
        if op in (MIN, MAX):
            total = (np.minimum if op == MIN else np.maximum)(total, row)
        else:
            total = total * row if op == PRODUCT else total + row
    return (total / total.dtype.type(len(rows)) if op == MEAN and dtype.kind != "i" else total).astype(dtype)


def rows_of(dtype: Any, count: int, numel: int) -> list[NDArray[Any]]:
    generator = np.random.default_rng([count, numel])
    if dtype.kind == "i":
        return [generator.integers(-(2**31), 2**31 - 1, numel).astype(dtype) for _ in range(count)]
    return [generator.standard_normal(numel).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_equals_numpy_to_the_bit(name: str, count: int) -> None:
    for numel in (0, 1, 15, 16, 17, 33, 1009):
        rows = rows_of(DTYPES[name], count, numel)
        for op in OPS:
            if op == MEAN and DTYPES[name].kind == "i":
                continue
            for found in combined(rows, op):
                np.testing.assert_array_equal(found, oracle(rows, op), err_msg=f"op {op} of {numel}", strict=True)


@pytest.mark.parametrize("count", [2, 3])
def test_a_mean_divides_by_what_it_is_given(count: int) -> None:
    rows = rows_of(DTYPES["float32"], count, 1009)
    total = oracle(rows, SUM)
    for found in combined(rows, MEAN, divisor=77):
        np.testing.assert_array_equal(found, total / np.float32(77), strict=True)


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("op", [MIN, MAX])
def test_extremes_do_not_depend_on_order(name: str, op: int) -> None:
    dtype = DTYPES[name]
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.5, -1.5])
    pairs = [(a, b) for a in values for b in values]
    a, b = (np.array(column).astype(dtype) for column in zip(*pairs, strict=True))
    one, other = combined([a, b], op)[1], combined([b, a], op)[1]
    assert one.tobytes() == other.tobytes()
    expected = (np.minimum if op == MIN else np.maximum)(a.astype(float), b.astype(float))
    np.testing.assert_array_equal(one.astype(float), expected)
    zeros = (a == 0) & (b == 0)
    negative = np.signbit(a.astype(float)) | np.signbit(b.astype(float))
    both = np.signbit(a.astype(float)) & np.signbit(b.astype(float))
    np.testing.assert_array_equal(np.signbit(one.astype(float))[zeros], (negative if op == MIN else both)[zeros])


@given(st.integers(0, 100), st.integers(0, 100))
def test_only_the_range_is_written(one: int, other: int) -> None:
    start, stop = sorted((one, other))
    rows = rows_of(np.dtype(np.float32), 3, 100)
    in_place, apart = combined(rows, SUM, start, stop)
    expected = rows[0].copy()
    expected[start:stop] = oracle(rows, SUM)[start:stop]
    np.testing.assert_array_equal(in_place, expected)
    assert not apart[:start].any()
    assert not apart[stop:].any()


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 70))
def test_slices_cover_all_once_and_end_with_cache_lines(one: int, other: int, count: int) -> None:
    start, stop = sorted((4 * one, 4 * other))
    slices = [direct.slice_of(start, stop, index, count) for index in range(count)]
    assert slices[0][0] == start
    assert slices[-1][1] == stop
    for (_, end), (begin, _) in itertools.pairwise(slices):
        assert end == begin
        assert end % 64 == 0 or end in (start, stop)
    sizes = [end - begin for begin, end in slices]
    assert min(sizes) >= 0
    assert max(sizes) <= (stop - start) / count + 128


PLAIN = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np
from test_combine import DTYPES, MEAN, OPS, combined, rows_of
from hpcvol.kernels import cross_memory, direct, staged
for name, dtype in DTYPES.items():
    for op in OPS:
        if op == MEAN and dtype.kind == "i":
            continue
        rows = rows_of(dtype, 3, 97)
        if dtype.kind != "i":
            rows[0][:2], rows[1][:2] = np.nan, -0.0
        found = combined(rows, op)[1]
        found[found != found] = 0 if dtype.kind == "i" else np.nan  # which NaN is not promised
        print(name, op, found.tobytes().hex())
board, vector = np.zeros(64, np.int64), np.ones(16, np.float32)
plan = direct.plan_of(0, np.array([board.ctypes.data]), np.array([vector.ctypes.data]))
code = (1 << 8) | (1 << 4) | 1
print(direct.ALLREDUCE["float32"](plan.ctypes.data, code, 1, 0, 16, direct.ENTER), board[[0, 2, 8, 18]])
staged.compile_for("float32")
"""


def test_same_bits_without_the_compiler() -> None:
    def output(**variables: str) -> str:
        argv = [sys.executable, "-W", "error", "-c", PLAIN, os.path.dirname(__file__)]
        environment = {**os.environ, **variables}
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout

    plain = output(NUMBA_DISABLE_JIT="1")
    assert plain.count("\n") == 6 * 5 - 2 + 1
    assert plain == output(NUMBA_DISABLE_JIT="0")
