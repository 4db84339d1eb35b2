"""A vector as small integers, each block of elements under a scale of its own, with error feedback or without.

An element is rounded to `level * scale`, where `level` is an integer of 8, 4, 2 or 1 bits. What a scale is and how is
rounded makes the quantisers of the literature (`Quantiser`); all are encoded, and added to vectors, by the same
functions. A payload is two arrays:

- codes: uint8[code_nbytes(n, quantiser)] = ceil(n * width / 8). Levels are in two's complement, one after the other,
  the first in the lowest bits of the first byte; of one bit 0 is +1 and 1 is -1.
- scales: of the dtype of the vector, [num_blocks(n, quantiser)] = ceil(n / block_numel).

A block that has an element that is not finite, or whose sum with the residual is not, is told as such: its scale is
NaN, and all of it decodes to NaN; its residual begins anew from 0. Whoever skips such a step keeps the residual of
before. Where the scale would be smaller than the least normal number it is that number, so that what is tiny is rounded
to multiples of it, most of it to 0.

With error feedback the vector is encoded together with what was lost before, in one pass:

    corrected = x + residual;   payload = encode(corrected);   residual = corrected - decode(payload)

References:
    Seide, Fu, Droppo, Li, Yu, 1-bit stochastic gradient descent, Interspeech 2014 (error feedback).
    Karimireddy, Rebjock, Stich, Jaggi, Error feedback fixes SignSGD, ICML 2019 (sign by mean magnitude).
    Wen et al., TernGrad, NeurIPS 2017. Alistarh et al., QSGD, NeurIPS 2017, section 3.
    Dettmers et al., 8-bit optimizers via block-wise quantization, ICLR 2022 (scales by block).
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hpcvol.kernels import lanes_compiled  # noqa: F401
from hpcvol.kernels.float8 import LARGEST, decode_e4m3, encode_e4m3
from hpcvol.kernels.lanes import (
    LANES,
    convert,
    float32_of,
    greatest,
    larger,
    load,
    magnitude,
    pack,
    rint,
    spread,
    store,
    total,
    unpack,
    where,
)
from hpcvol.kernels.memory import prefetch
from hpcvol.kernels.permutation import round_keys
from hpcvol.kernels.stream import AHEAD, announce, padded, put_back, visited
from hpcvol.kernels.uniform import uniform

# What a scale is made of: the largest magnitude of the block, its Euclidean norm, its mean magnitude.
ABSMAX, NORM, MEAN = 0, 1, 2

# How is rounded: to the nearest level, ties to even; up or down by chance, so that the mean is right; to +1 or -1;
# to the nearest number of eight bits (float8.py), ties to even.
NEAREST, STOCHASTIC, SIGN, E4M3 = 0, 1, 2, 3


class Quantiser(NamedTuple):
    """How a vector becomes small integers.

    Args:
        width: bits of a level: 8, 4, 2 or 1.
        levels: what the size of a block is divided by, which makes its scale: the largest level, below 2^(width - 1);
            1 for SIGN, 448 for E4M3.
        scale: what the size of a block is: ABSMAX, NORM or MEAN. MEAN goes with SIGN, the others with the others.
        rounding: NEAREST, STOCHASTIC, SIGN (with a width of 1, which has no 0) or E4M3 (with a width of 8).
        block_numel: elements under one scale, a multiple of 16.
    """

    width: int
    levels: int
    scale: int
    rounding: int
    block_numel: int = 256


INT8 = Quantiser(8, 127, ABSMAX, NEAREST)
INT4 = Quantiser(4, 7, ABSMAX, NEAREST)
TERNARY = Quantiser(2, 1, ABSMAX, STOCHASTIC)
SIGN_MEAN = Quantiser(1, 1, MEAN, SIGN)
FLOAT8 = Quantiser(8, LARGEST, ABSMAX, E4M3)


def qsgd(levels: int, block_numel: int = 256) -> Quantiser:
    """Return QSGD with `levels` levels (1 to 127) on either side of 0, in as few bits as hold them."""
    width = 2 if levels == 1 else 4 if levels <= 7 else 8
    return Quantiser(width, levels, NORM, STOCHASTIC, block_numel)


def code_nbytes(numel: int, quantiser: Quantiser) -> int:
    """Return the bytes of the codes of `numel` elements."""
    return -(-numel * quantiser.width // 8)


def num_blocks(numel: int, quantiser: Quantiser) -> int:
    """Return how many scales `numel` elements have."""
    return -(-numel // quantiser.block_numel)


@njit(nogil=True, cache=True, inline="always")
def _correct(x, at, residual, place, numel, soon):  # type: ignore[no-untyped-def]
    """Add a block of `x` to its residual, and return the largest magnitude."""
    largest = spread(residual.dtype.type(0))
    for k in range(0, numel, LANES):
        prefetch(soon + k * x.itemsize)
        corrected = load(x, at + k) + load(residual, place + k)
        store(residual, place + k, corrected)
        largest = larger(largest, corrected)
    return greatest(largest)


@njit(nogil=True, cache=True, inline="always")
def _correct_for_mean(x, at, residual, place, numel, count, soon):  # type: ignore[no-untyped-def]
    """Do the same, and return the mean magnitude of `count` elements, of which the others are 0."""
    sums, share = spread(residual.dtype.type(0)), residual.dtype.type(1) / residual.dtype.type(count)
    for k in range(0, numel, LANES):
        prefetch(soon + k * x.itemsize)
        corrected = load(x, at + k) + load(residual, place + k)
        store(residual, place + k, corrected)
        sums = sums + magnitude(corrected) * share
    return total(sums)


@njit(nogil=True, cache=True, inline="always")
def _norm(corrected, place, numel, unit):  # type: ignore[no-untyped-def]
    """Return the Euclidean norm of a block; in units of its largest magnitude squares neither overflow nor vanish."""
    sums, inverse = spread(corrected.dtype.type(0)), corrected.dtype.type(1) / unit
    for k in range(0, numel, LANES):
        part = load(corrected, place + k) * inverse
        sums = sums + part * part
    return unit * np.sqrt(total(sums))


@njit(nogil=True, cache=True, inline="always")
def _correct_and_scale(x, at, residual, place, count, quantiser, soon):  # type: ignore[no-untyped-def]
    """Add a block of `x` to its residual, and return its scale; what is not finite where something is not."""
    numel = quantiser.block_numel
    if quantiser.scale == MEAN:
        return _correct_for_mean(x, at, residual, place, numel, count, soon)
    size = _correct(x, at, residual, place, numel, soon)
    if not np.isfinite(size):
        return size
    least = np.finfo(residual.dtype).tiny
    if quantiser.scale == NORM:
        size = _norm(residual, place, numel, max(size, least))
    return max(size / residual.dtype.type(quantiser.levels), least)


@njit(nogil=True, cache=True, inline="always")
def _put(codes, start, k, levels, width):  # type: ignore[no-untyped-def]
    signed = convert(convert(levels, np.int8), np.uint8)
    if width == 8:
        store(codes, start + k, signed)
    else:
        pack(codes, start + (k * width >> 3), signed, width)


@njit(nogil=True, cache=True, inline="always")
def _round_nearest(residual, place, scale, codes, start, quantiser, later):  # type: ignore[no-untyped-def]
    inverse = residual.dtype.type(1) / scale
    for k in range(0, quantiser.block_numel, LANES):
        prefetch(later + k * residual.itemsize)
        corrected = load(residual, place + k)
        level = rint(corrected * inverse)
        _put(codes, start, k, level, quantiser.width)
        store(residual, place + k, corrected - level * scale)


@njit(nogil=True, cache=True, inline="always")
def _round_by_chance(residual, place, scale, codes, start, quantiser, keys, index, later):  # type: ignore[no-untyped-def]
    dtype = residual.dtype.type
    inverse, highest, zero, one = dtype(1) / scale, spread(dtype(quantiser.levels)), spread(dtype(0)), spread(dtype(1))
    for k in range(0, quantiser.block_numel, LANES):
        prefetch(later + k * residual.itemsize)
        corrected = load(residual, place + k)
        exact = magnitude(corrected * inverse)
        below = convert(convert(exact, np.int32), dtype)
        level = below + where(uniform(keys, index + k, dtype) < exact - below, one, zero)
        level = where(highest < level, highest, level)
        level = where(corrected < zero, zero - level, level)
        _put(codes, start, k, level, quantiser.width)
        store(residual, place + k, corrected - level * scale)


@njit(nogil=True, cache=True, inline="always")
def _round_to_sign(residual, place, scale, codes, start, quantiser, later):  # type: ignore[no-untyped-def]
    plus, minus = spread(scale), spread(-scale)
    zero, one = spread(np.uint8(0)), spread(np.uint8(1))
    for k in range(0, quantiser.block_numel, LANES):
        prefetch(later + k * residual.itemsize)
        corrected = load(residual, place + k)
        negative = corrected < residual.dtype.type(0)
        pack(codes, start + (k >> 3), where(negative, one, zero), 1)
        store(residual, place + k, corrected - where(negative, minus, plus))


@njit(nogil=True, cache=True, inline="always")
def _round_to_e4m3(residual, place, scale, codes, start, quantiser, later):  # type: ignore[no-untyped-def]
    dtype = residual.dtype.type
    inverse = dtype(1) / scale
    for k in range(0, quantiser.block_numel, LANES):
        prefetch(later + k * residual.itemsize)
        corrected = load(residual, place + k)
        narrow = encode_e4m3(float32_of(corrected * inverse))
        store(codes, start + k, narrow)
        store(residual, place + k, corrected - convert(decode_e4m3(narrow), dtype) * scale)


@njit(nogil=True, cache=True)
def _clear(array, begin, numel):  # type: ignore[no-untyped-def]
    for i in range(begin, begin + numel):
        array[i] = 0


@njit(nogil=True, cache=True, inline="always")
def _encode_block(x, at, residual, place, count, codes, start, quantiser, keys, index, soon, later):  # type: ignore[no-untyped-def]
    """Encode the block of `x` from `at` on, whose residual begins at `place` and codes at `start`; return its scale.

    Meanwhile what is at the addresses `soon` and `later`, `x` and residual of a block to come, is fetched, line by
    line: all of it at once would keep the core waiting.
    """
    scale = _correct_and_scale(x, at, residual, place, count, quantiser, soon)
    if not np.isfinite(scale):
        _clear(residual, place, quantiser.block_numel)
        _clear(codes, start, quantiser.block_numel * quantiser.width >> 3)
        return residual.dtype.type(np.nan)
    if quantiser.rounding == NEAREST:
        _round_nearest(residual, place, scale, codes, start, quantiser, later)
    elif quantiser.rounding == STOCHASTIC:
        _round_by_chance(residual, place, scale, codes, start, quantiser, keys, index, later)
    elif quantiser.rounding == SIGN:
        _round_to_sign(residual, place, scale, codes, start, quantiser, later)
    else:
        _round_to_e4m3(residual, place, scale, codes, start, quantiser, later)
    return scale


@njit(nogil=True, cache=True, error_model="numpy")
def _encode(x, residual, apart, quantiser, seed, codes, scales):  # type: ignore[no-untyped-def]
    """Encode `x + residual`, whose blocks are as many elements `apart`: 0 for one that is 0 for each of them."""
    keys, numel = round_keys(seed, 0), quantiser.block_numel
    x_address, residual_address, codes_address = x.ctypes.data, residual.ctypes.data, codes.ctypes.data
    whole = x.size // numel
    for turn in range(whole):
        block, ahead = visited(turn, whole), visited(min(turn + AHEAD, whole - 1), whole)
        announce(codes_address, turn, whole, numel * quantiser.width >> 3)
        soon, later = x_address + ahead * numel * x.itemsize, residual_address + ahead * apart * x.itemsize
        at, place = block * numel, block * apart
        if apart == 0:
            _clear(residual, 0, numel)
        start = at * quantiser.width >> 3
        scales[block] = _encode_block(x, at, residual, place, numel, codes, start, quantiser, keys, at, soon, later)
    begin = whole * numel
    if begin < x.size:
        lost = padded(residual, begin, numel) if apart else np.zeros(numel, x.dtype)
        block_codes, values = np.empty(numel * quantiser.width >> 3, np.uint8), padded(x, begin, numel)
        count = x.size - begin
        scales[whole] = _encode_block(
            values, 0, lost, 0, count, block_codes, 0, quantiser, keys, begin, x_address, x_address
        )
        put_back(block_codes, codes, begin * quantiser.width >> 3)
        if apart:
            put_back(lost, residual, begin)


def encode_with_feedback(
    x: NDArray[np.floating],
    residual: NDArray[np.floating],
    quantiser: Quantiser,
    seed: int,
    codes: NDArray[np.uint8],
    scales: NDArray[np.floating],
) -> None:
    """Write the payload of `x + residual`, and to `residual` what it lacks.

    Args:
        x: float32[n] or float64[n], contiguous, left alone.
        residual: of the same dtype, [n], contiguous, changed in place.
        quantiser: one of those above.
        seed: of stochastic rounding, 0 to 2^63 - 1, another one for each call; other roundings ignore it. Chances
            follow from the seed and the index of the element.
        codes: uint8[code_nbytes], overwritten.
        scales: of the dtype of `x`, [num_blocks], overwritten.
    """
    _encode(x, residual, quantiser.block_numel, quantiser, seed, codes, scales)


def encode(
    x: NDArray[np.floating], quantiser: Quantiser, seed: int, codes: NDArray[np.uint8], scales: NDArray[np.floating]
) -> None:
    """Write the payload of `x`; arguments as for `encode_with_feedback`."""
    _encode(x, np.zeros(quantiser.block_numel, x.dtype), 0, quantiser, seed, codes, scales)


@njit(nogil=True, cache=True)
def _levels(codes, start, k, quantiser, dtype):  # type: ignore[no-untyped-def]
    """Return sixteen levels, element `k` and on of the block whose codes begin at `start`."""
    if quantiser.rounding == E4M3:
        return convert(decode_e4m3(load(codes, start + k)), dtype)
    width = quantiser.width
    if width == 8:
        return convert(convert(load(codes, start + k), np.int8), dtype)
    level = unpack(codes, start + (k * width >> 3), width)
    if width == 1:
        return convert(convert(spread(np.uint8(1)) - level - level, np.int8), dtype)
    sign = np.uint8(1 << (width - 1))
    return convert(convert((level ^ sign) - sign, np.int8), dtype)


@njit(nogil=True, cache=True, inline="always")
def _accumulate_block(codes, start, scale, quantiser, out, at):  # type: ignore[no-untyped-def]
    for k in range(0, quantiser.block_numel, LANES):
        level = _levels(codes, start, k, quantiser, out.dtype.type)
        store(out, at + k, load(out, at + k) + level * scale)


@njit(nogil=True, cache=True)
def accumulate(codes, scales, quantiser, out):  # type: ignore[no-untyped-def]
    """Add what a payload stands for to `out`: where that is zero, decode it.

    Args:
        codes: uint8[code_nbytes], left alone.
        scales: of the dtype of `out`, [num_blocks], left alone.
        quantiser: by which it was encoded.
        out: float32[n] or float64[n], contiguous, changed in place.
    """
    numel, out_address = quantiser.block_numel, out.ctypes.data
    whole = out.size // numel
    for turn in range(whole):
        announce(out_address, turn, whole, numel * out.itemsize)
        block = visited(turn, whole)
        at = block * numel
        _accumulate_block(codes, at * quantiser.width >> 3, scales[block], quantiser, out, at)
    begin = whole * numel
    if begin < out.size:
        values = padded(out, begin, numel)
        block_codes = padded(codes, begin * quantiser.width >> 3, numel * quantiser.width >> 3)
        _accumulate_block(block_codes, 0, scales[whole], quantiser, values, 0)
        put_back(values, out, begin)
