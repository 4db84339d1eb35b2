"""Casts to 16 bits: the bytes that the CPU's kernels write."""

from typing import Any

import numpy as np
import pytest
from numba import cuda

from hpcvol.kernels import cast as on_cpu
from hpcvol.kernels.cuda import cast

pytestmark = [pytest.mark.without_mpi, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

by_format = pytest.mark.parametrize("number_format", cast.FORMATS.values(), ids=cast.FORMATS)
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
by_numel = pytest.mark.parametrize("numel", [0, 1, 131])


def difficult(dtype: Any) -> Any:
    """Numbers of all exponents, ties and what lies just beside them, and what is not finite."""
    bits = np.random.default_rng(0).integers(0, 1 << 63, 150, np.uint64)
    anything = bits.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    near = np.arange(0, 1 << 16, 509, dtype=np.uint16).view(np.float16).astype(dtype)
    ties = near * dtype(1 + 2.0**-11)
    tiny = np.array([2.0**-25, 3 * 2.0**-25, 2.0**-14, 1e-40, 5e-324, 65519.99, 65520, 65536, 3.4e38, 1e300], dtype)
    special = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0], dtype)
    return np.concatenate([anything, near, ties, np.nextafter(ties, dtype(0)), -tiny, special])


@by_format
@by_dtype
def test_payloads_are_the_same(number_format: int, dtype: Any) -> None:
    with np.errstate(all="ignore"):
        x = difficult(dtype)
        wanted, found = np.zeros(x.size, np.uint16), cuda.to_device(np.ones(x.size, np.uint16))
        on_cpu.encode(x, number_format, wanted)
    cast.encode(cuda.to_device(x), number_format, found)
    np.testing.assert_array_equal(found.copy_to_host(), wanted)


@by_format
@by_dtype
def test_every_exponent_is_decoded(number_format: int, dtype: Any) -> None:
    codes = np.concatenate([np.arange(0, 1 << 16, 251), [0x7F80, 0xFF80, 0x7FC0, 0x7C00, 0xFC00, 0x7E00, 0x8000]])
    codes = codes.astype(np.uint16)
    wanted, found = np.zeros(codes.size, dtype), cuda.to_device(np.ones(codes.size, dtype))
    on_cpu.decode(codes, number_format, wanted)
    cast.decode(cuda.to_device(codes), number_format, found)
    np.testing.assert_array_equal(found.copy_to_host(), wanted)
    start = np.random.default_rng(0).standard_normal(codes.size).astype(dtype)
    added, wanted = cuda.to_device(start), start.copy()
    with np.errstate(all="ignore"):
        on_cpu.accumulate(codes, number_format, wanted)
    cast.accumulate(cuda.to_device(codes), number_format, added)
    np.testing.assert_array_equal(added.copy_to_host(), wanted)


@by_format
@by_dtype
@by_numel
def test_feedback_is_the_same(number_format: int, dtype: Any, numel: int) -> None:
    x, residual = np.random.default_rng(numel).standard_normal((2, numel)).astype(dtype)
    x[:4] = np.array([np.nan, np.inf, 3.4e38, -1e6])[: x[:4].size]
    codes, on_gpu = np.zeros(numel, np.uint16), [cuda.to_device(a) for a in (x, residual, np.ones(numel, np.uint16))]
    with np.errstate(all="ignore"):
        on_cpu.encode_with_feedback(x, residual, number_format, codes)
    cast.encode_with_feedback(on_gpu[0], on_gpu[1], number_format, on_gpu[2])
    for found, wanted in zip(on_gpu, (x, residual, codes), strict=True):
        np.testing.assert_array_equal(found.copy_to_host(), wanted)


def test_memory_of_the_host_is_refused() -> None:
    with pytest.raises(TypeError, match="ndarray: move it"):
        cast.encode(np.ones(3, np.float32), cast.BFLOAT16, cuda.to_device(np.zeros(3, np.uint16)))
