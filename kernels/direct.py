"""All-reduce in memory that processes share: each combines its slice of all vectors once, where they lie.

Every process has a *board* (int64 numbers in shared memory, told apart by cache lines) on which it says which call it
has entered and what it has done; the others wait for that. A *plan* is a table of int64, made once: the number of
ranks, this rank, then the addresses of all boards, then of all vectors. Functions return to Python after a limited
time of waiting and are called again with the stage that they returned.

Why a board can be used again at once: a process writes the fingerprint of call k + 1 after it has left call k, and it
leaves when all others have said that they are done with k, which they say after they have compared fingerprints. What
others read in its vector it does not change before that either. The two numbers that are waited for only grow.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hpcvol.kernels.atomics import load_acquire, monotonic_ns, store_release, wait_until
from hpcvol.kernels.combine import BFLOAT16, KINDS, LINE_NBYTES, SUM, combine

# Bytes from the beginning of a board to the numbers in it (places of hpcvol.comm.calls, times 8).
FINGERPRINT, ENTERED_NS, ENTERED = 0, 8, 16
DONE = 64
LEFT_FINGERPRINT, LEFT_NS, LEFT = 128, 136, 144
BOARD_NUMEL = 64

# Stages of a call.
ENTER, ARRIVE, DEPART, FINISHED = 0, 1, 2, 3
DISAGREE = -1

WAIT_NS = 1_000_000

NUMEL_BITS = 46  # of a fingerprint: the length
OP_MASK = 15  # of what is left of it: the operation
PLAN_HEAD = 2  # entries of a plan before the addresses


def plan_of(rank: int, boards: NDArray[np.int64], vectors: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the plan for `rank`: int64[2 + 2 · ranks]; `boards` and `vectors` are addresses by rank."""
    return np.concatenate([[len(boards), rank], boards, vectors]).astype(np.int64)


@njit(nogil=True, cache=True)
def slice_of(start, stop, index, count):  # type: ignore[no-untyped-def]
    """Return where slice `index` of `count` of the bytes `start` to `stop` of a vector begins and ends.

    Slices end where cache lines do, so that no two processes write to one line.
    """
    first, last = start // LINE_NBYTES, (stop + LINE_NBYTES - 1) // LINE_NBYTES
    begin = first + (last - first) * index // count
    end = first + (last - first) * (index + 1) // count
    low = min(max(start, begin * LINE_NBYTES), stop)
    return low, max(low, min(end * LINE_NBYTES, stop))


@njit(nogil=True, cache=True)
def enter(board, fingerprint):  # type: ignore[no-untyped-def]
    """Say on `board` that its owner enters the call with this fingerprint; return the call's number and the time."""
    sequence = load_acquire(board + ENTERED) + 1
    now = monotonic_ns()
    store_release(board + FINGERPRINT, fingerprint)
    store_release(board + ENTERED_NS, now)
    store_release(board + ENTERED, sequence)
    return sequence, now


@njit(nogil=True, cache=True)
def leave(board):  # type: ignore[no-untyped-def]
    """Say on `board` that its owner leaves the call that it entered last."""
    store_release(board + LEFT_FINGERPRINT, load_acquire(board + FINGERPRINT))
    store_release(board + LEFT_NS, monotonic_ns())
    store_release(board + LEFT, load_acquire(board + ENTERED))


@njit(nogil=True, cache=True)
def arrived(plan, sequence, fingerprint, give_up_ns):  # type: ignore[no-untyped-def]
    """Wait until all are in call `sequence`; return DEPART where they are, ARRIVE in time-out, or DISAGREE."""
    num_ranks, rank = load_acquire(plan), load_acquire(plan + 8)
    for step in range(1, num_ranks):
        board = load_acquire(plan + 8 * (PLAN_HEAD + (rank + step) % num_ranks))
        if not wait_until(board + ENTERED, sequence, give_up_ns):
            return ARRIVE
        if load_acquire(board + ENTERED) != sequence or load_acquire(board + FINGERPRINT) != fingerprint:
            return DISAGREE
    return DEPART


@njit(nogil=True, cache=True)
def departed(plan, sequence, give_up_ns):  # type: ignore[no-untyped-def]
    """Wait until all are done with call `sequence`; return FINISHED where they are, DEPART in time-out."""
    num_ranks, rank = load_acquire(plan), load_acquire(plan + 8)
    for step in range(1, num_ranks):
        board = load_acquire(plan + 8 * (PLAN_HEAD + (rank + step) % num_ranks))
        if not wait_until(board + DONE, sequence, give_up_ns):
            return DEPART
    return FINISHED


@njit(nogil=True, cache=True)
def arrive(plan, fingerprint, stage, wait_ns):  # type: ignore[no-untyped-def]
    """Enter the call with this fingerprint, or go on entering it, and wait for all to be in it.

    Args:
        plan: address of a plan.
        fingerprint: of the call.
        stage: ENTER, or ARRIVE where this returned that before.
        wait_ns: how long to wait for others, at most.

    Returns:
        DEPART: all are in the call, and what they wrote before can be read. ARRIVE: not all in time. DISAGREE.
    """
    board = _my_board(plan)
    if stage == ENTER:
        sequence, now = enter(board, fingerprint)
    else:
        sequence, now = load_acquire(board + ENTERED), monotonic_ns()
    return arrived(plan, sequence, fingerprint, now + wait_ns)


@njit(nogil=True, cache=True)
def done(plan):  # type: ignore[no-untyped-def]
    """Say that this process has read and written all that it will of what others have, in the call that it is in."""
    board = _my_board(plan)
    store_release(board + DONE, load_acquire(board + ENTERED))


@njit(nogil=True, cache=True)
def depart(plan, wait_ns):  # type: ignore[no-untyped-def]
    """Wait for all to be `done`, and leave the call; return FINISHED, or DEPART where not all are in `wait_ns`."""
    board = _my_board(plan)
    stage = departed(plan, load_acquire(board + ENTERED), monotonic_ns() + wait_ns)
    if stage == FINISHED:
        leave(board)
    return stage


@njit(nogil=True, cache=True)
def _my_board(plan):  # type: ignore[no-untyped-def]
    return load_acquire(plan + 8 * (PLAN_HEAD + load_acquire(plan + 8)))


@njit(nogil=True, cache=True)
def _allreduce(kind, itemsize, plan, code, divisor, start, stop, stage):  # type: ignore[no-untyped-def]
    # The whole call in one compiled function: at 4 KiB what Python adds would be most of it.
    num_ranks, rank = load_acquire(plan), load_acquire(plan + 8)
    board = _my_board(plan)
    fingerprint = (code << NUMEL_BITS) | (stop - start)
    if stage == ENTER:
        sequence, now = enter(board, fingerprint)
    else:
        sequence, now = load_acquire(board + ENTERED), monotonic_ns()
    if stage < DEPART:
        stage = arrived(plan, sequence, fingerprint, now + WAIT_NS)
        if stage != DEPART:
            return stage
        lo, hi = slice_of(start * itemsize, stop * itemsize, rank, num_ranks)
        vectors = plan + 8 * (PLAN_HEAD + num_ranks)
        combine(kind, code & OP_MASK, vectors, num_ranks, vectors, num_ranks, divisor, lo, hi)
        store_release(board + DONE, sequence)
    stage = departed(plan, sequence, now + WAIT_NS)
    if stage == FINISHED:
        leave(board)
    return stage


@njit(nogil=True, cache=True)
def _allreduce_float32(plan, code, divisor, start, stop, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.float32, 4, plan, code, divisor, start, stop, stage)


@njit(nogil=True, cache=True)
def _allreduce_float64(plan, code, divisor, start, stop, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.float64, 8, plan, code, divisor, start, stop, stage)


@njit(nogil=True, cache=True)
def _allreduce_float16(plan, code, divisor, start, stop, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.float16, 2, plan, code, divisor, start, stop, stage)


@njit(nogil=True, cache=True)
def _allreduce_bfloat16(plan, code, divisor, start, stop, stage):  # type: ignore[no-untyped-def]
    return _allreduce(BFLOAT16, 2, plan, code, divisor, start, stop, stage)


@njit(nogil=True, cache=True)
def _allreduce_int32(plan, code, divisor, start, stop, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.int32, 4, plan, code, divisor, start, stop, stage)


@njit(nogil=True, cache=True)
def _allreduce_int64(plan, code, divisor, start, stop, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.int64, 8, plan, code, divisor, start, stop, stage)


# For a dtype by its name: all-reduce of the elements `start` to `stop` of all vectors, in place.
#   plan: address of a plan. code: the fingerprint of the call without its length. divisor: of a mean. stage: ENTER, or
#   what was returned.
#   Returns FINISHED; ARRIVE or DEPART: to be called again with that stage; DISAGREE.
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
    board, vector = np.zeros(BOARD_NUMEL, np.int64), np.zeros(LINE_NBYTES, np.uint8)
    plan = plan_of(0, np.array([board.ctypes.data]), np.array([vector.ctypes.data]))
    address = plan.ctypes.data
    ALLREDUCE[dtype](address, SUM, 1, 0, 1, ENTER)
    arrive(address, 0, ENTER, WAIT_NS)
    done(address)
    depart(address, WAIT_NS)
    slice_of(0, 1, 0, 1)
    vectors = address + 8 * (PLAN_HEAD + 1)
    combine(KINDS[dtype], SUM, vectors, 1, vectors, 1, 1, 0, 0)
