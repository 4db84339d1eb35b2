"""A vector as numbers of 16 bits, bfloat16 or float16, with error feedback or without.

A payload is one array, codes: uint16[n], the bits of the numbers. Rounding is to nearest, ties to even; subnormal
numbers are kept; beyond the largest number (65504 in float16) there is infinity; any NaN becomes the quiet one.

With error feedback the vector is encoded together with what was lost before, in one pass:

    corrected = x + residual;   payload = encode(corrected);   residual = corrected - decode(payload)

What decodes to infinity or NaN has told so: its residual begins anew from 0.
"""

import numpy as np
from numba import njit

from hpcvol.kernels import lanes_compiled  # noqa: F401
from hpcvol.kernels.lanes import (
    LANES,
    bits_of,
    convert,
    float16_bits,
    float16_values,
    float32_of,
    floats_of,
    load,
    magnitude,
    spread,
    store,
    store_around_cache,
    where,
)
from hpcvol.kernels.memory import LINE_NBYTES, fence, prefetch
from hpcvol.kernels.stream import announce, padded, put_back, visited

# Formats.
BFLOAT16, FLOAT16 = 0, 1

FORMATS = {"bfloat16": BFLOAT16, "float16": FLOAT16}

# Payloads from here on are written around the cache: smaller ones may still be there when they are sent. Pages are
# those of 4 KiB of float32.
STREAMED_NBYTES = 1 << 23
_PAGES, _PAGE_NUMEL, _LINE_NUMEL = 4, 1024, LINE_NBYTES // 2
_AHEAD_NBYTES = 512

_BLOCK_NUMEL = 256
_BFLOAT16_NAN, _FLOAT16_NAN = 0x7FC0, 0x7E00
_MAGNITUDE, _INFINITY = 0x7FFFFFFF, 0x7F800000
_BFLOAT16_HALF = 0x7FFF  # one less than half a unit in the last place: ties go to even


@njit(nogil=True, cache=True)
def _narrow(values, number_format):  # type: ignore[no-untyped-def]
    single = float32_of(values)
    bits = bits_of(single)
    is_number = (bits & _MAGNITUDE) < _INFINITY + 1
    if number_format == FLOAT16:
        return where(is_number, float16_bits(single), spread(np.uint16(_FLOAT16_NAN)))
    rounded = (bits + ((bits >> 16) & 1) + _BFLOAT16_HALF) >> 16
    return convert(where(is_number, rounded, spread(np.uint32(_BFLOAT16_NAN))), np.uint16)


@njit(nogil=True, cache=True)
def _widen(codes, number_format, dtype):  # type: ignore[no-untyped-def]
    if number_format == FLOAT16:
        return convert(float16_values(codes), dtype)
    return convert(floats_of(convert(codes, np.uint32) << 16), dtype)


@njit(nogil=True, cache=True)
def _encode_block(x, at, number_format, codes, place):  # type: ignore[no-untyped-def]
    for k in range(0, _BLOCK_NUMEL, LANES):
        store(codes, place + k, _narrow(load(x, at + k), number_format))


@njit(nogil=True, cache=True)
def _encode_pages(x, begin, number_format, codes, address):  # type: ignore[no-untyped-def]
    """Encode some pages of `x`, which is at `address`, a line of codes of each in turn, around the cache."""
    for k in range(0, _PAGE_NUMEL, _LINE_NUMEL):
        for page in range(_PAGES):
            at = begin + page * _PAGE_NUMEL + k
            for line in range(0, _LINE_NUMEL * x.itemsize, LINE_NBYTES):
                prefetch(address + at * x.itemsize + line + _AHEAD_NBYTES)
            low, high = _narrow(load(x, at), number_format), _narrow(load(x, at + LANES), number_format)
            store_around_cache(codes, at, low, high)


@njit(nogil=True, cache=True)
def encode(x, number_format, codes):  # type: ignore[no-untyped-def]
    """Write the payload of `x`.

    Args:
        x: float32[n] or float64[n], contiguous, left alone; each element is rounded once.
        number_format: BFLOAT16 or FLOAT16.
        codes: uint16[n], contiguous, overwritten.
    """
    begin, misaligned = 0, codes.ctypes.data % LINE_NBYTES
    if codes.nbytes >= STREAMED_NBYTES and misaligned % 2 == 0:
        _encode_block(x, 0, number_format, codes, 0)  # some of which is written again: lines begin further on
        begin, address = (LINE_NBYTES - misaligned) // 2, x.ctypes.data
        while begin + _PAGES * _PAGE_NUMEL <= x.size:
            _encode_pages(x, begin, number_format, codes, address)
            begin += _PAGES * _PAGE_NUMEL
        fence()
    while begin + _BLOCK_NUMEL <= x.size:
        _encode_block(x, begin, number_format, codes, begin)
        begin += _BLOCK_NUMEL
    if begin < x.size:
        block_codes = np.empty(_BLOCK_NUMEL, np.uint16)
        _encode_block(padded(x, begin, _BLOCK_NUMEL), 0, number_format, block_codes, 0)
        put_back(block_codes, codes, begin)


@njit(nogil=True, cache=True)
def _encode_block_with_feedback(x, residual, at, number_format, codes):  # type: ignore[no-untyped-def]
    dtype = residual.dtype.type
    zero, infinity = spread(dtype(0)), spread(dtype(np.inf))
    for k in range(at, at + _BLOCK_NUMEL, LANES):
        corrected = load(x, k) + load(residual, k)
        narrow = _narrow(corrected, number_format)
        store(codes, k, narrow)
        decoded = _widen(narrow, number_format, dtype)
        store(residual, k, where(magnitude(decoded) < infinity, corrected - decoded, zero))


@njit(nogil=True, cache=True)
def encode_with_feedback(x, residual, number_format, codes):  # type: ignore[no-untyped-def]
    """Write the payload of `x + residual`, and to `residual` what it lacks.

    Args:
        x: float32[n] or float64[n], contiguous, left alone.
        residual: of the same dtype, [n], contiguous, changed in place.
        number_format: BFLOAT16 or FLOAT16.
        codes: uint16[n], contiguous, overwritten.
    """
    whole, block_nbytes = x.size // _BLOCK_NUMEL, _BLOCK_NUMEL * x.itemsize
    x_address, residual_address = x.ctypes.data, residual.ctypes.data
    for turn in range(whole):
        announce(x_address, turn, whole, block_nbytes)
        announce(residual_address, turn, whole, block_nbytes)
        _encode_block_with_feedback(x, residual, visited(turn, whole) * _BLOCK_NUMEL, number_format, codes)
    begin = whole * _BLOCK_NUMEL
    if begin < x.size:
        lost, block_codes = padded(residual, begin, _BLOCK_NUMEL), np.empty(_BLOCK_NUMEL, np.uint16)
        _encode_block_with_feedback(padded(x, begin, _BLOCK_NUMEL), lost, 0, number_format, block_codes)
        put_back(lost, residual, begin)
        put_back(block_codes, codes, begin)


@njit(nogil=True, cache=True)
def _decode_block(codes, at, number_format, out):  # type: ignore[no-untyped-def]
    for k in range(at, at + _BLOCK_NUMEL, LANES):
        store(out, k, _widen(load(codes, k), number_format, out.dtype.type))


@njit(nogil=True, cache=True)
def decode(codes, number_format, out):  # type: ignore[no-untyped-def]
    """Write what a payload stands for to `out`, exactly.

    Args:
        codes: uint16[n], contiguous, left alone.
        number_format: BFLOAT16 or FLOAT16.
        out: float32[n] or float64[n], contiguous, overwritten.
    """
    whole = codes.size // _BLOCK_NUMEL
    for block in range(whole):
        _decode_block(codes, block * _BLOCK_NUMEL, number_format, out)
    begin = whole * _BLOCK_NUMEL
    if begin < codes.size:
        values = np.empty(_BLOCK_NUMEL, out.dtype)
        _decode_block(padded(codes, begin, _BLOCK_NUMEL), 0, number_format, values)
        put_back(values, out, begin)


@njit(nogil=True, cache=True)
def _accumulate_block(codes, at, number_format, out):  # type: ignore[no-untyped-def]
    for k in range(at, at + _BLOCK_NUMEL, LANES):
        store(out, k, load(out, k) + _widen(load(codes, k), number_format, out.dtype.type))


@njit(nogil=True, cache=True)
def accumulate(codes, number_format, out):  # type: ignore[no-untyped-def]
    """Add what a payload stands for to `out`; arguments as for `decode`."""
    whole = codes.size // _BLOCK_NUMEL
    codes_address, out_address = codes.ctypes.data, out.ctypes.data
    for turn in range(whole):
        announce(codes_address, turn, whole, 2 * _BLOCK_NUMEL)
        announce(out_address, turn, whole, _BLOCK_NUMEL * out.itemsize)
        _accumulate_block(codes, visited(turn, whole) * _BLOCK_NUMEL, number_format, out)
    begin = whole * _BLOCK_NUMEL
    if begin < codes.size:
        values = padded(out, begin, _BLOCK_NUMEL)
        _accumulate_block(padded(codes, begin, _BLOCK_NUMEL), 0, number_format, values)
        put_back(values, out, begin)
