"""All-reduce of private vectors that processes read and write in each other's memory: process_vm_readv and writev.

Each process reads its slice of all other vectors in pieces that fit its cache, combines them with its own, and writes
the result to all. A *line* of each process, in shared memory, says where its vector is.
"""

import os
from typing import Any

import numpy as np
from numba import config, njit, types

from hpcvol.kernels.atomics import load_acquire, monotonic_ns, store_release
from hpcvol.kernels.combine import BFLOAT16, CARRIED, SUM, combine
from hpcvol.kernels.direct import (
    BOARD_NUMEL,
    DEPART,
    DONE,
    ENTER,
    ENTERED,
    FINISHED,
    NUMEL_BITS,
    OP_MASK,
    PLAN_HEAD,
    WAIT_NS,
    arrived,
    departed,
    enter,
    leave,
    plan_of,
    slice_of,
)

PIECE_NBYTES = 256 << 10

FAILED = -2  # the system did not let us

_HEAD_NBYTES = 4096  # of a process's working memory, for tables

if not config.DISABLE_JIT:  # type: ignore[attr-defined]
    _signature = types.int64(types.int32, types.int64, types.int64, types.int64, types.int64, types.int64)
    _readv: Any = types.ExternalFunction("process_vm_readv", _signature)
    _writev: Any = types.ExternalFunction("process_vm_writev", _signature)


@njit(nogil=True, cache=True)
def read_from(pid, address, target, nbytes, vectors):  # type: ignore[no-untyped-def]
    """Copy from `address` in process `pid` to `target` here; `vectors` is the address of int64[4]. Return success."""
    _fill(vectors, target, address, nbytes)
    return _readv(np.int32(pid), vectors, 1, vectors + 16, 1, 0) == nbytes


@njit(nogil=True, cache=True)
def write_to(pid, address, source, nbytes, vectors):  # type: ignore[no-untyped-def]
    """Copy from `source` here to `address` in process `pid`; `vectors` is the address of int64[4]. Return success."""
    _fill(vectors, source, address, nbytes)
    return _writev(np.int32(pid), vectors, 1, vectors + 16, 1, 0) == nbytes


@njit(nogil=True, cache=True)
def _fill(vectors, here, there, nbytes):  # type: ignore[no-untyped-def]
    store_release(vectors, here)
    store_release(vectors + 8, nbytes)
    store_release(vectors + 16, there)
    store_release(vectors + 24, nbytes)


@njit(nogil=True, cache=True)
def _exchange(kind, op, plan, pids, vector, low, high, work):  # type: ignore[no-untyped-def]
    """Combine the bytes `low` to `high` of all vectors; `work` is laid out as `work_nbytes` says. Return success."""
    num_ranks, rank = load_acquire(plan), load_acquire(plan + 8)
    lines = plan + 8 * (PLAN_HEAD + num_ranks)
    sources, targets, vectors = work, work + 8 * num_ranks, work + 8 * (num_ranks + 2)
    scratch = work + _HEAD_NBYTES
    for place in range(num_ranks):
        store_release(sources + 8 * place, scratch + place * PIECE_NBYTES)
    result = scratch + rank * PIECE_NBYTES
    store_release(targets + 8, result)
    for start in range(low, high, PIECE_NBYTES):
        nbytes = min(PIECE_NBYTES, high - start)
        for step in range(1, num_ranks):
            place = (rank + step) % num_ranks
            theirs = load_acquire(load_acquire(lines + 8 * place)) + start
            if not read_from(load_acquire(pids + 8 * place), theirs, scratch + place * PIECE_NBYTES, nbytes, vectors):
                return False
        store_release(sources + 8 * rank, vector + start)
        store_release(targets, vector + start)
        combine(kind, op, sources, num_ranks, targets, 2, num_ranks, 0, nbytes)
        for step in range(1, num_ranks):
            place = (rank + step) % num_ranks
            theirs = load_acquire(load_acquire(lines + 8 * place)) + start
            if not write_to(load_acquire(pids + 8 * place), theirs, result, nbytes, vectors):
                return False
    return True


def work_nbytes(num_ranks: int) -> int:
    """Return the size of a process's working memory: tables, then one piece a rank."""
    if 8 * (num_ranks + 6) > _HEAD_NBYTES:
        raise ValueError(f"{num_ranks} ranks on one node: expected {_HEAD_NBYTES // 8 - 6} at most")
    return _HEAD_NBYTES + num_ranks * PIECE_NBYTES


@njit(nogil=True, cache=True)
def _allreduce(kind, itemsize, plan, pids, code, array, work, stage):  # type: ignore[no-untyped-def]
    num_ranks, rank = load_acquire(plan), load_acquire(plan + 8)
    board = load_acquire(plan + 8 * (PLAN_HEAD + rank))
    vector, fingerprint = array.ctypes.data, (code << NUMEL_BITS) | array.size
    if stage == ENTER:
        store_release(load_acquire(plan + 8 * (PLAN_HEAD + num_ranks + rank)), vector)
        sequence, now = enter(board, fingerprint)
    else:
        sequence, now = load_acquire(board + ENTERED), monotonic_ns()
    if stage < DEPART:
        stage = arrived(plan, sequence, fingerprint, now + WAIT_NS)
        if stage != DEPART:
            return stage
        low, high = slice_of(0, array.size * itemsize, rank, num_ranks)
        if not _exchange(kind, code & OP_MASK, plan, pids, vector, low, high, work):
            return FAILED
        store_release(board + DONE, sequence)
        now = monotonic_ns()
    stage = departed(plan, sequence, now + WAIT_NS)
    if stage == FINISHED:
        leave(board)
    return stage


@njit(nogil=True, cache=True)
def _allreduce_float32(plan, pids, code, vector, work, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.float32, 4, plan, pids, code, vector, work, stage)


@njit(nogil=True, cache=True)
def _allreduce_float64(plan, pids, code, vector, work, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.float64, 8, plan, pids, code, vector, work, stage)


@njit(nogil=True, cache=True)
def _allreduce_float16(plan, pids, code, vector, work, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.float16, 2, plan, pids, code, vector, work, stage)


@njit(nogil=True, cache=True)
def _allreduce_bfloat16(plan, pids, code, vector, work, stage):  # type: ignore[no-untyped-def]
    return _allreduce(BFLOAT16, 2, plan, pids, code, vector, work, stage)


@njit(nogil=True, cache=True)
def _allreduce_int32(plan, pids, code, vector, work, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.int32, 4, plan, pids, code, vector, work, stage)


@njit(nogil=True, cache=True)
def _allreduce_int64(plan, pids, code, vector, work, stage):  # type: ignore[no-untyped-def]
    return _allreduce(np.int64, 8, plan, pids, code, vector, work, stage)


# For a dtype by its name: all-reduce of one vector of each process, in place.
#   plan: address of a plan (kernels.direct) of boards and lines. pids: address of int64[ranks]. code: the fingerprint
#   without its length. vector: contiguous; halves as uint16. work: address. stage: ENTER, or what was returned.
#   Returns FINISHED; ARRIVE or DEPART: to be called again with that stage; DISAGREE; FAILED.
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
    board, line, work = np.zeros(BOARD_NUMEL, np.int64), np.zeros(1, np.int64), np.zeros(work_nbytes(1), np.uint8)
    plan = plan_of(0, np.array([board.ctypes.data]), np.array([line.ctypes.data]))
    address = line.ctypes.data
    vector = np.zeros(1, CARRIED.get(dtype, dtype))
    ALLREDUCE[dtype](plan.ctypes.data, address, SUM, vector, work.ctypes.data, ENTER)


def compile_moves() -> None:
    """Compile, or load, `read_from` and `write_to`."""
    number, table = np.zeros(1, np.int64), np.zeros(4, np.int64)
    for move in (read_from, write_to):
        move(os.getpid(), number.ctypes.data, number.ctypes.data, 8, table.ctypes.data)
