"""Small integers under a scale a block, as in `hpcvol.kernels.quantise`: the same payloads, to the bit.

Sixteen threads, neighbours in a warp, encode a block: once through it for the scale, and once, from the cache, for the
levels. They add in the order in which sixteen lanes of a CPU do, and round each product as those do. A block of threads
has eight such groups, which stay in step.
"""

import math
from typing import Any

import numpy as np
from numba import cuda

from hpcvol.kernels.cuda.float8 import decode_e4m3, encode_e4m3
from hpcvol.kernels.cuda.lanes import float32_of, larger, product
from hpcvol.kernels.cuda.launch import THREADS, blocks_for, on_device
from hpcvol.kernels.cuda.uniform import uniform
from hpcvol.kernels.lanes import LANES
from hpcvol.kernels.permutation import round_keys
from hpcvol.kernels.quantise import (
    E4M3,
    FLOAT8,
    INT4,
    INT8,
    MEAN,
    NORM,
    SIGN,
    SIGN_MEAN,
    STOCHASTIC,
    TERNARY,
    Quantiser,
    code_nbytes,
    num_blocks,
    qsgd,
)

__all__ = [
    "FLOAT8",
    "INT4",
    "INT8",
    "SIGN_MEAN",
    "TERNARY",
    "Quantiser",
    "accumulate",
    "code_nbytes",
    "encode",
    "encode_with_feedback",
    "num_blocks",
    "qsgd",
]

_GROUPS = THREADS // LANES

# By the bytes of a float: the least normal number, and what leaves no fraction to an integer that it is added to.
_LEAST_OF_4, _LEAST_OF_8 = 2.0**-126, 2.0**-1022
_AWAY_OF_4, _AWAY_OF_8 = 1.5 * 2.0**23, 1.5 * 2.0**52


@cuda.jit(device=True)
def _corrected(x, residual, i):  # type: ignore[no-untyped-def]
    return x[i] + (residual[i] if residual.size > 0 else x.dtype.type(0))  # which makes -0 to 0, as it is on a CPU


@cuda.jit(device=True)
def _greatest(cells, value):  # type: ignore[no-untyped-def]
    """Return the greatest of the magnitudes that the threads of a group hold; NaN where one of them is."""
    lane = cuda.threadIdx.x % LANES
    cells[cuda.threadIdx.x] = value
    half = LANES // 2
    while half > 0:
        cuda.syncthreads()
        if lane < half:
            cells[cuda.threadIdx.x] = larger(cells[cuda.threadIdx.x], cells[cuda.threadIdx.x + half])
        half //= 2
    cuda.syncthreads()
    found = cells[cuda.threadIdx.x - lane]
    cuda.syncthreads()
    return found


@cuda.jit(device=True)
def _total(cells, value):  # type: ignore[no-untyped-def]
    """Return the sum of what the threads of a group hold: the upper half is added to the lower one, and so on."""
    lane = cuda.threadIdx.x % LANES
    cells[cuda.threadIdx.x] = value
    half = LANES // 2
    while half > 0:
        cuda.syncthreads()
        if lane < half:
            cells[cuda.threadIdx.x] += cells[cuda.threadIdx.x + half]
        half //= 2
    cuda.syncthreads()
    found = cells[cuda.threadIdx.x - lane]
    cuda.syncthreads()
    return found


@cuda.jit(device=True)
def _mean(x, residual, begin, stop, cells):  # type: ignore[no-untyped-def]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    share = one / x.dtype.type(max(stop - begin, 1))
    added = zero
    for i in range(begin + cuda.threadIdx.x % LANES, stop, LANES):
        added += product(abs(_corrected(x, residual, i)), share)
    return _total(cells, added)


@cuda.jit(device=True)
def _norm(x, residual, begin, stop, unit, cells):  # type: ignore[no-untyped-def]
    """Return the Euclidean norm of a block; in units of its largest magnitude squares neither overflow nor vanish."""
    inverse, added = x.dtype.type(1) / unit, x.dtype.type(0)
    for i in range(begin + cuda.threadIdx.x % LANES, stop, LANES):
        part = product(_corrected(x, residual, i), inverse)
        added += product(part, part)
    return unit * x.dtype.type(math.sqrt(_total(cells, added)))


@cuda.jit(device=True)
def _scale(x, residual, begin, stop, quantiser, cells):  # type: ignore[no-untyped-def]
    """Return the scale of the group's block; what is not finite where something is not."""
    if quantiser.scale == MEAN:
        return _mean(x, residual, begin, stop, cells)
    largest = x.dtype.type(0)
    for i in range(begin + cuda.threadIdx.x % LANES, stop, LANES):
        largest = larger(largest, abs(_corrected(x, residual, i)))
    largest = _greatest(cells, largest)
    least = x.dtype.type(_LEAST_OF_4 if x.itemsize == 4 else _LEAST_OF_8)
    size = largest
    if quantiser.scale == NORM:  # of all groups, those of infinity too, so that they stay in step
        size = _norm(x, residual, begin, stop, max(largest, least), cells)
    scale = max(size / x.dtype.type(quantiser.levels), least)
    return scale if largest < np.inf else x.dtype.type(np.inf)


@cuda.jit(device=True)
def _by_chance(x, exact, corrected, highest, draw):  # type: ignore[no-untyped-def]
    """Return the level above or below |exact|, with the sign of `corrected`."""
    below = x.dtype.type(np.int64(exact))
    level = below + x.dtype.type(1) if draw < exact - below else below
    level = min(level, highest)
    return x.dtype.type(0) - level if corrected < 0 else level


@cuda.jit(device=True)
def _to_integer(x, value):  # type: ignore[no-untyped-def]
    """Return the nearest integer, ties to even, with the sign of `value`, of which there are less than 2^22."""
    away = x.dtype.type(_AWAY_OF_4 if x.itemsize == 4 else _AWAY_OF_8)
    return x.dtype.type(math.copysign((value + away) - away, value))


@cuda.jit(device=True)
def _round(x, corrected, scale, quantiser, first, second, i):  # type: ignore[no-untyped-def]
    """Return the code of an element, in its lowest bits, and what it stands for in units of the scale."""
    if quantiser.rounding == SIGN:
        return np.int64(corrected < 0), x.dtype.type(-1 if corrected < 0 else 1)
    exact = product(corrected, x.dtype.type(1) / scale)
    if quantiser.rounding == E4M3:
        code = encode_e4m3(float32_of(exact))
        return code, x.dtype.type(decode_e4m3(code))
    if quantiser.rounding == STOCHASTIC:
        draw = x.dtype.type(uniform(first, second, i))
        level = _by_chance(x, abs(exact), corrected, x.dtype.type(quantiser.levels), draw)
    else:
        level = _to_integer(x, exact)
    return np.int64(level) & 0xFF, level


@cuda.jit(device=True)
def _pack(places, at, width, codes):  # type: ignore[no-untyped-def]
    """Write the codes of sixteen elements, of which the first is element `at`, from the bytes that they lie in."""
    lane = cuda.threadIdx.x % LANES
    byte, per_byte = (at * width >> 3) + lane, 8 // width
    if lane < 2 * width and byte < codes.size:
        packed = 0
        for k in range(per_byte):
            code = np.int64(places[cuda.threadIdx.x - lane + lane * per_byte + k])
            packed |= (code & ((1 << width) - 1)) << (k * width)
        codes[byte] = packed


@cuda.jit
def _encode(x, residual, quantiser, first, second, codes, scales):  # type: ignore[no-untyped-def]
    """Encode a block by each group of threads; a residual of no elements is none."""
    cells = cuda.shared.array(THREADS, x.dtype)
    places = cuda.shared.array((2, THREADS), np.uint8)
    lane = cuda.threadIdx.x % LANES
    block = cuda.blockIdx.x * _GROUPS + cuda.threadIdx.x // LANES
    begin = np.int64(block) * quantiser.block_numel
    stop = min(begin + quantiser.block_numel, x.size)
    scale = _scale(x, residual, begin, stop, quantiser, cells)
    is_finite = scale < np.inf
    if lane == 0 and begin < x.size:
        scales[block] = scale if is_finite else x.dtype.type(np.nan)
    for at in range(begin, begin + quantiser.block_numel, LANES):
        i, code = at + lane, np.int64(0)
        if i < stop and is_finite:
            corrected = _corrected(x, residual, i)
            code, level = _round(x, corrected, scale, quantiser, first, second, i)
            if residual.size > 0:
                residual[i] = corrected - product(level, scale)
        elif i < stop and residual.size > 0:
            residual[i] = 0
        turn = (at // LANES) % 2  # two places in turn: one is read while the other is written
        places[turn, cuda.threadIdx.x] = code
        cuda.syncthreads()
        _pack(places[turn], at, quantiser.width, codes)


def encode_with_feedback(x: Any, residual: Any, quantiser: Quantiser, seed: int, codes: Any, scales: Any) -> None:
    """Write the payload of `x + residual`, and to `residual` what it lacks.

    Args:
        x: float32[n] or float64[n], left alone.
        residual: of the same dtype, [n], changed in place.
        quantiser: one of those of `hpcvol.kernels.quantise`.
        seed: of stochastic rounding, 0 to 2^63 - 1, another one for each call; other roundings ignore it. Chances
            follow from the seed and the index of the element.
        codes: uint8[code_nbytes], overwritten.
        scales: of the dtype of `x`, [num_blocks], overwritten.
    """
    x, residual, codes, scales = on_device(x), on_device(residual), on_device(codes), on_device(scales)
    first, second = (int(key) for key in round_keys(seed, 0)[:2])
    if x.size:
        _encode[-(-scales.size // _GROUPS), THREADS](x, residual, quantiser, first, second, codes, scales)


def encode(x: Any, quantiser: Quantiser, seed: int, codes: Any, scales: Any) -> None:
    """Write the payload of `x`; arguments as for `encode_with_feedback`."""
    encode_with_feedback(x, cuda.device_array(0, on_device(x).dtype), quantiser, seed, codes, scales)


@cuda.jit(device=True)
def _level(codes, i, quantiser):  # type: ignore[no-untyped-def]
    """Return the level of element `i`."""
    width, bit = quantiser.width, i * quantiser.width
    code = np.int64(codes[bit >> 3])
    if quantiser.rounding == E4M3:
        return decode_e4m3(code)
    code = (code >> (bit & 7)) & ((1 << width) - 1)
    if width == 1:
        return np.float32(1 - 2 * code)
    sign = 1 << (width - 1)
    return np.float32((code ^ sign) - sign)


@cuda.jit
def _accumulate(codes, scales, quantiser, out):  # type: ignore[no-untyped-def]
    for block in range(cuda.blockIdx.x, scales.size, cuda.gridDim.x):
        begin, scale = block * quantiser.block_numel, scales[block]
        for i in range(begin + cuda.threadIdx.x, min(begin + quantiser.block_numel, out.size), THREADS):
            out[i] += product(out.dtype.type(_level(codes, i, quantiser)), scale)


def accumulate(codes: Any, scales: Any, quantiser: Quantiser, out: Any) -> None:
    """Add what a payload stands for to `out`: where that is zero, decode it.

    Args:
        codes: uint8[code_nbytes], left alone.
        scales: of the dtype of `out`, [num_blocks], left alone.
        quantiser: by which it was encoded.
        out: float32[n] or float64[n], changed in place.
    """
    codes, scales, out = on_device(codes), on_device(scales), on_device(out)
    if out.size:
        _accumulate[blocks_for(out.size), THREADS](codes, scales, quantiser, out)
