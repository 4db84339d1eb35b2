"""Sixteen elements at a time: values that compiled kernels load, combine and store as one.

LLVM turns a loop over elements into such code by itself where it can. Where it cannot (sums in a fixed order, maxima
that keep NaN, packing of bits) or does so badly, kernels say it with these. The number of lanes is the same on every
machine, whatever its registers hold, and so are the bits of results.

Here is what each means, in NumPy: this is what runs without the compiler (NUMBA_DISABLE_JIT=1), where lanes are arrays
of sixteen elements. What the compiler makes of them stands in lanes_compiled.py. Besides these there are the operators
+ - * & | ^ << >> and < of lanes with lanes of the same dtype, or with a number on the right, which is taken to that
dtype. Integers wrap around. Arrays are contiguous, of any alignment; indices are not checked.
"""

from typing import Any

import numpy as np

LANES = 16


def load(array: Any, index: Any) -> Any:
    """Return the elements of `array` from `index` on."""
    return array[int(index) : int(index) + LANES].copy()


def store(array: Any, index: Any, lanes: Any) -> None:
    """Write `lanes`, of the dtype of `array`, to its elements from `index` on."""
    array[int(index) : int(index) + LANES] = lanes


def store_around_cache(array: Any, index: Any, lanes: Any, others: Any) -> None:
    """Write `lanes` and, behind them, `others`, both uint16, to a whole cache line, without reading that first.

    The address of the element at `index` is a multiple of 64. Others see what was written after `memory.fence`.
    """
    store(array, index, lanes)
    store(array, index + LANES, others)


def spread(value: Any) -> Any:
    """Return lanes that are all `value`, of its dtype."""
    return np.full(LANES, value)


def count_from(value: Any) -> Any:
    """Return lanes that are `value`, `value` + 1, ..., of its dtype, an integer one."""
    return value + np.arange(LANES, dtype=value.dtype)


def convert(lanes: Any, dtype: Any) -> Any:
    """Return `lanes` in `dtype`, a NumPy scalar type: floats are rounded, or cut to an integer that has to fit."""
    with np.errstate(over="ignore", under="ignore"):
        return lanes.astype(dtype)


def float32_of(lanes: Any) -> Any:
    """Return floats as float32 in such a way that rounding those further is as if it had been done at once.

    float32 stays. float64 is rounded to odd: what does not fit leaves its trace in the last bit (Boldo and Melquiond,
    "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE Transactions on
    Computers 57(4), 2008).
    """
    near = convert(lanes, np.float32)
    bits = near.view(np.uint32)
    inexact, too_far = near.astype(lanes.dtype) != lanes, np.abs(near) > np.abs(lanes)
    return np.where(inexact, bits - too_far | np.uint32(1), bits).view(np.float32)


def bits_of(lanes: Any) -> Any:
    """Return the bits of floats as unsigned integers of their size."""
    return lanes.view(f"u{lanes.itemsize}")


def floats_of(lanes: Any) -> Any:
    """Return the floats whose bits `lanes` are, unsigned integers of 32 or 64 bits."""
    return lanes.view(f"f{lanes.itemsize}")


def magnitude(lanes: Any) -> Any:
    """Return floats without their signs."""
    return np.abs(lanes)


def rint(lanes: Any) -> Any:
    """Return floats rounded to whole numbers, ties to even."""
    return np.rint(lanes)


def where(condition: Any, one: Any, other: Any) -> Any:
    """Return `one` where `condition`, which comes of a comparison, holds, and `other` elsewhere."""
    return np.where(condition, one, other)


def larger(one: Any, other: Any) -> Any:
    """Return the larger of the magnitudes of floats; NaN where one of them is."""
    return np.maximum(np.abs(one), np.abs(other))


def greatest(lanes: Any) -> Any:
    """Return the greatest of the magnitudes of floats; NaN where one of them is."""
    return np.abs(lanes).max()


def total(lanes: Any) -> Any:
    """Return the sum of floats: the upper half is added to the lower one until one element is left."""
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return lanes[0]


def float16_bits(lanes: Any) -> Any:
    """Return float32 rounded to float16, ties to even, as bits (uint16); any NaN becomes a quiet one."""
    with np.errstate(over="ignore", under="ignore"):
        return lanes.astype(np.float16).view(np.uint16)


def float16_values(lanes: Any) -> Any:
    """Return the float16 numbers whose bits (uint16) `lanes` are, as float32, exactly."""
    return lanes.view(np.float16).astype(np.float32)


def pack(array: Any, index: Any, levels: Any, width: Any) -> None:
    """Write the lowest `width` bits (1, 2 or 4) of uint8 `levels` to the bytes of `array` from `index` on.

    The first level stands in the lowest bits of the first byte: `width` * 2 bytes are written.
    """
    per_byte = 8 // int(width)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(width)
    kept = (levels & np.uint8((1 << int(width)) - 1)).reshape(-1, per_byte) << shifts
    array[int(index) : int(index) + LANES // per_byte] = np.bitwise_or.reduce(kept, axis=1)


def unpack(array: Any, index: Any, width: Any) -> Any:
    """Undo `pack`: return the levels, uint8 below 2^width, that begin with byte `index`."""
    per_byte = 8 // int(width)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(width)
    read = array[int(index) : int(index) + LANES // per_byte, None] >> shifts
    return (read & np.uint8((1 << int(width)) - 1)).reshape(-1)
