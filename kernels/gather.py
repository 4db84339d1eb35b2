"""Random rows out of many memory regions (mapped shards) into one contiguous batch.

The regions hold the rows of one field one after the other; `row_starts` says which rows each holds. Addresses, not
arrays, because one compiled function then serves any number of shards, dtypes and shapes. Whoever calls vouches for the
addresses: that the memory is there, and that it is what the manifest says.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from hpcvol.kernels.memory import copy_bytes, prefetch

LOOKAHEAD = 8  # rows prefetched ahead of the copy
PREFETCH_NBYTES = 1024  # of each row; for the rest the hardware prefetcher has seen the stream

if config.DISABLE_JIT:  # type: ignore[attr-defined]

    def _clear(target: int, nbytes: int) -> None:
        ctypes.memset(int(target), 0, int(nbytes))

else:
    _POINTER = ir.IntType(8).as_pointer()

    @intrinsic
    def _clear(_context: Any, _target: Any, _nbytes: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            function_type = ir.FunctionType(ir.VoidType(), [_POINTER, ir.IntType(8), ir.IntType(64), ir.IntType(1)])
            memset = builder.module.declare_intrinsic("llvm.memset", [_POINTER, ir.IntType(64)], function_type)
            builder.call(memset, [builder.inttoptr(args[0], _POINTER), ir.IntType(8)(0), args[1], ir.IntType(1)(0)])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate


def bucket_table(row_starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Return `(buckets, shift)`: the region that holds row i is `buckets[i >> shift]` or one soon after it.

    A table instead of a binary search: the search costs more than copying a small row.

    Args:
        row_starts: int64[regions + 1], ascending from 0; the last is the number of rows.

    Returns:
        buckets: int64[about 4 to 8 entries a region]; shift: log2 of the rows a bucket.
    """
    num_rows, num_regions = int(row_starts[-1]), len(row_starts) - 1
    shift = max(0, (num_rows // (4 * num_regions)).bit_length() - 1)
    first_rows = np.arange((max(num_rows - 1, 0) >> shift) + 1, dtype=np.int64) << shift
    return np.searchsorted(row_starts, first_rows, side="right").astype(np.int64) - 1, shift


@njit(nogil=True, cache=True)
def first_outside(indices: NDArray[np.int64], num_rows: int) -> int:
    """Return the position of the first index outside 0..num_rows-1, or -1. Everything below trusts its indices."""
    outside = 0
    for i in range(indices.size):
        outside += int(indices[i] < 0) | int(indices[i] >= num_rows)
    if outside > 0:
        for i in range(indices.size):
            if indices[i] < 0 or indices[i] >= num_rows:
                return i
    return -1


@njit(nogil=True, cache=True)
def _region_of(row: int, row_starts: Any, buckets: Any, shift: int) -> int:
    region = buckets[row >> shift]
    while row >= row_starts[region + 1]:
        region += 1
    return int(region)


@njit(nogil=True, cache=True)
def gather_rows(
    bases: NDArray[np.int64],
    row_starts: NDArray[np.int64],
    buckets: NDArray[np.int64],
    shift: int,
    stride: int,
    row_nbytes: int,
    indices: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Copy row indices[i], for all i, to out[i * row_nbytes:]. Changes `out` in place.

    Args:
        bases: int64[regions], address of the first row of each region.
        row_starts: int64[regions + 1], the first row of each region; the last is the number of rows.
        buckets: int64[], see `bucket_table`.
        shift: see `bucket_table`.
        stride: bytes from a row to the next in a region.
        row_nbytes: bytes to copy a row.
        indices: int64[k], all within the rows.
        out: uint8[k * row_nbytes], contiguous.
    """
    target = out.ctypes.data
    count = indices.size
    prefetched = min(row_nbytes, PREFETCH_NBYTES)
    for ahead in range(count + LOOKAHEAD):
        if ahead < count:
            row = indices[ahead]
            region = _region_of(row, row_starts, buckets, shift)
            source = bases[region] + (row - row_starts[region]) * stride
            for offset in range(0, prefetched, 64):
                prefetch(source + offset)
        i = ahead - LOOKAHEAD
        if i >= 0:
            row = indices[i]
            region = _region_of(row, row_starts, buckets, shift)
            copy_bytes(target + i * row_nbytes, bases[region] + (row - row_starts[region]) * stride, row_nbytes)


@njit(nogil=True, cache=True)
def gather_ragged(
    bases: NDArray[np.int64],
    row_starts: NDArray[np.int64],
    buckets: NDArray[np.int64],
    shift: int,
    item_nbytes: int,
    indices: NDArray[np.int64],
    bounds: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Copy rows of unequal length, each padded with zero bytes to out.size / k. Changes `out` in place.

    Args:
        bases: int64[regions], address of the first item of each region.
        row_starts: as in `gather_rows`.
        buckets: as in `gather_rows`.
        shift: as in `gather_rows`.
        item_nbytes: bytes an item.
        indices: int64[k], all within the rows.
        bounds: int64[k, 2], first item of each row and one past its last, counted from the start of its region.
        out: uint8[k * bytes of the longest row], contiguous.
    """
    target = out.ctypes.data
    width = out.size // max(1, indices.size)
    for i in range(indices.size):
        region = _region_of(indices[i], row_starts, buckets, shift)
        nbytes = (bounds[i, 1] - bounds[i, 0]) * item_nbytes
        copy_bytes(target + i * width, bases[region] + bounds[i, 0] * item_nbytes, nbytes)
        _clear(target + i * width + nbytes, width - nbytes)


@njit(nogil=True, cache=True)
def unchecked_blocks(
    origins: NDArray[np.int64],
    row_starts: NDArray[np.int64],
    buckets: NDArray[np.int64],
    shift: int,
    stride: int,
    indices: NDArray[np.int64],
    spans: NDArray[np.int64],
    block_shift: int,
    checked: NDArray[np.uint8],
    out: NDArray[np.int64],
) -> int:
    """List the blocks that a gather would touch and whose checksum nobody has looked at yet.

    Blocks are numbered through all regions' files; a position is counted in bytes through those blocks.

    Args:
        origins: int64[regions], position of the first row (or item) of each region.
        row_starts: as in `gather_rows`.
        buckets: as in `gather_rows`.
        shift: as in `gather_rows`.
        stride: bytes from a row to the next; 0 where `spans` alone tells rows apart.
        indices: int64[k], all within the rows.
        spans: int64[1, 2] for all rows or int64[k, 2]: the bytes of the row, from its first to one past its last.
        block_shift: log2 of the bytes a block.
        checked: uint8[blocks], not 0 where the checksum is known to be right.
        out: int64[], room for every block of every row; overwritten with block numbers, possibly repeated.

    Returns:
        How many block numbers were written.
    """
    found = 0
    own_span = spans.shape[0] > 1
    for i in range(indices.size):
        row = indices[i]
        region = _region_of(row, row_starts, buckets, shift)
        begin, end = spans[i if own_span else 0]
        if end <= begin:
            continue
        position = origins[region] + (row - row_starts[region]) * stride
        for block in range((position + begin) >> block_shift, ((position + end - 1) >> block_shift) + 1):
            if checked[block] == 0:
                out[found] = block
                found += 1
    return found
