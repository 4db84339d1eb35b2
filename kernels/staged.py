"""All-reduce of private vectors through memory that processes share, piece by piece.

Every process has a *staging area*: two counters, each on a cache line of its own, and room for a piece of the vector. A
process copies there what others combine, says that it has posted, combines its slice of what all have posted and writes
the result over it, says that it has reduced, and copies the other slices out of its own area. So an area is free again
when all have reduced. Pieces are small enough to stay in the caches.

A small vector is copied whole, and every process combines all of it: one wait instead of two. For these an area has two
*slots* that take turns. A slot is written again two pieces later: by then its owner has seen that all others have
posted the piece between, which they did after they had read the old one. Counters count pieces of all calls.
"""

import numpy as np
from numba import njit

from hpcvol.kernels.atomics import load_acquire, monotonic_ns, store_release, wait_until
from hpcvol.kernels.combine import BFLOAT16, CARRIED, SUM, combine
from hpcvol.kernels.direct import (
    BOARD_NUMEL,
    DISAGREE,
    ENTER,
    FINISHED,
    NUMEL_BITS,
    OP_MASK,
    PLAN_HEAD,
    WAIT_NS,
    enter,
    leave,
    plan_of,
    slice_of,
)
from hpcvol.kernels.memory import copy_bytes

# A staging area, in bytes from its beginning.
POSTED, REDUCED = 0, 64
FINGERPRINTS = 8  # of the call that posted, one a slot
SLOTS = 4096
SMALL_NBYTES = 16 << 10  # up to so many bytes of the others together a vector is small
PIECE = SLOTS + 2 * SMALL_NBYTES
PIECE_NBYTES = 512 << 10
AREA_NBYTES = PIECE + PIECE_NBYTES

# Stages of a call beside ENTER, FINISHED and DISAGREE: waiting for posts, or for results, in the piece at hand.
POSTING, REDUCING = 1, 2

# The state of a process: pieces of all calls before, pieces done of this one.
PIECES_BEFORE, PIECES_DONE = 0, 8
STATE_NUMEL = 2

_PIECES_A_LOOK = 16  # at the clock, so that a long vector is not given up for being long


@njit(nogil=True, cache=True)
def _all_reached(plan, counter, value, give_up_ns):  # type: ignore[no-untyped-def]
    num_ranks, rank = load_acquire(plan), load_acquire(plan + 8)
    areas = plan + 8 * (PLAN_HEAD + num_ranks)
    for step in range(1, num_ranks):
        area = load_acquire(areas + 8 * ((rank + step) % num_ranks))
        if not wait_until(area + counter, value, give_up_ns):
            return False
    return True


@njit(nogil=True, cache=True)
def _all_agree(plan, number, fingerprint):  # type: ignore[no-untyped-def]
    """Return whether all posted this piece in a call of this fingerprint; boards may be about the next call by now."""
    num_ranks = load_acquire(plan)
    for place in range(num_ranks):
        area = load_acquire(plan + 8 * (PLAN_HEAD + num_ranks + place))
        if load_acquire(area + FINGERPRINTS + 8 * (number & 1)) != fingerprint:
            return False
    return True


@njit(nogil=True, cache=True)
def _copy(target, source, low, high):  # type: ignore[no-untyped-def]
    copy_bytes(target + low, source + low, high - low)


@njit(nogil=True, cache=True)
def _combine_slice(kind, op, plan, slot, vector, low, high, everywhere, tables):  # type: ignore[no-untyped-def]
    """Combine the bytes `low` to `high` of all into this process's vector and, where so asked, into all slots."""
    num_ranks, rank = load_acquire(plan), load_acquire(plan + 8)
    areas = plan + 8 * (PLAN_HEAD + num_ranks)
    for place in range(num_ranks):
        store_release(tables + 8 * place, load_acquire(areas + 8 * place) + slot)
    own = tables + 8 * rank
    store_release(own, vector)
    if everywhere:
        combine(kind, op, tables, num_ranks, tables, num_ranks, num_ranks, low, high)
    else:
        combine(kind, op, tables, num_ranks, own, 1, num_ranks, low, high)


@njit(nogil=True, cache=True)
def _allreduce(kind, itemsize, plan, state, code, array, stage):  # type: ignore[no-untyped-def]
    num_ranks, rank = load_acquire(plan), load_acquire(plan + 8)
    board = load_acquire(plan + 8 * (PLAN_HEAD + rank))
    area = load_acquire(plan + 8 * (PLAN_HEAD + num_ranks + rank))
    vector, nbytes, fingerprint = array.ctypes.data, array.size * itemsize, (code << NUMEL_BITS) | array.size
    if stage == ENTER:
        store_release(state + PIECES_DONE, 0)
        _, now = enter(board, fingerprint)
    else:
        now = monotonic_ns()
    give_up_ns = now + WAIT_NS
    done, before = load_acquire(state + PIECES_DONE), load_acquire(state + PIECES_BEFORE)
    pieces = max(1, (nbytes + PIECE_NBYTES - 1) // PIECE_NBYTES)  # of an empty vector one, to meet
    small = num_ranks > 1 and nbytes * (num_ranks - 1) <= SMALL_NBYTES
    while done < pieces:
        number = before + done + 1
        slot = SLOTS + (number & 1) * SMALL_NBYTES if small else PIECE
        piece = vector + done * PIECE_NBYTES
        length = min(PIECE_NBYTES, nbytes - done * PIECE_NBYTES)
        low, high = slice_of(0, length, rank, num_ranks)
        if stage == ENTER:
            if small:
                _copy(area + slot, piece, 0, length)
            else:
                _copy(area + slot, piece, 0, low)
                _copy(area + slot, piece, high, length)
            store_release(area + FINGERPRINTS + 8 * (number & 1), fingerprint)
            store_release(area + POSTED, number)
        if stage != REDUCING:
            if not _all_reached(plan, POSTED, number, give_up_ns):
                return POSTING
            if not _all_agree(plan, number, fingerprint):
                return DISAGREE
            if small:
                low, high = 0, length
            _combine_slice(kind, code & OP_MASK, plan, slot, piece, low, high, not small, state + 8 * STATE_NUMEL)
            store_release(area + REDUCED, number)
        if not small:
            if not _all_reached(plan, REDUCED, number, give_up_ns):
                return REDUCING
            _copy(piece, area + slot, 0, low)
            _copy(piece, area + slot, high, length)
        done += 1
        store_release(state + PIECES_DONE, done)
        stage = ENTER
        if done % _PIECES_A_LOOK == 0:
            give_up_ns = monotonic_ns() + WAIT_NS
    store_release(state + PIECES_BEFORE, before + pieces)
    leave(board)
    return FINISHED


@njit(nogil=True, cache=True)
def _allreduce_float32(plan, state, code, vector, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.float32, 4, plan, state, code, vector, stage)


@njit(nogil=True, cache=True)
def _allreduce_float64(plan, state, code, vector, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.float64, 8, plan, state, code, vector, stage)


@njit(nogil=True, cache=True)
def _allreduce_float16(plan, state, code, vector, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.float16, 2, plan, state, code, vector, stage)


@njit(nogil=True, cache=True)
def _allreduce_bfloat16(plan, state, code, vector, stage):  # type: ignore[no-untyped-def]
    return _allreduce(BFLOAT16, 2, plan, state, code, vector, stage)


@njit(nogil=True, cache=True)
def _allreduce_int32(plan, state, code, vector, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.int32, 4, plan, state, code, vector, stage)


@njit(nogil=True, cache=True)
def _allreduce_int64(plan, state, code, vector, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.int64, 8, plan, state, code, vector, stage)


# For a dtype by its name: all-reduce of one vector of each process, in place.
#   plan: address of a plan (kernels.direct) of boards and staging areas. state: address of int64[STATE_NUMEL + ranks],
#   zero at first. code: the fingerprint without its length. vector: contiguous; halves as uint16. stage: ENTER,
#   or what was returned. Returns FINISHED; POSTING or REDUCING: to be called again with that stage; DISAGREE.
ALLREDUCE = {
    "float32": _allreduce_float32,
    "float64": _allreduce_float64,
    "float16": _allreduce_float16,
    "bfloat16": _allreduce_bfloat16,
    "int32": _allreduce_int32,
    "int64": _allreduce_int64,
}


def compile_for(dtype: str) -> None:
    """Compile, or load, what a dtype (by its name) needs, by a call of one rank."""
    board, area, state = np.zeros(BOARD_NUMEL, np.int64), np.zeros(AREA_NBYTES, np.uint8), np.zeros(5, np.int64)
    plan = plan_of(0, np.array([board.ctypes.data]), np.array([area.ctypes.data]))
    ALLREDUCE[dtype](plan.ctypes.data, state.ctypes.data, SUM, np.zeros(1, CARRIED.get(dtype, dtype)), ENTER)
