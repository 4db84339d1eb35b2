"""All-reduce of any vectors of the ranks of one node, read and written in each other's memory.

The system calls need the permission to trace the other processes. Where Yama restricts that to descendants, each rank
names its parent, the launcher, as its tracer: the other ranks are descendants of that.
"""

import ctypes
import os
import time

import numpy as np

from hpcvol.collectives.rendezvous import KernelsByDtype, compiled, go_on
from hpcvol.comm.group import Group
from hpcvol.comm.shared_memory import SharedMemory, allocate
from hpcvol.comm.vectors import Vector
from hpcvol.comm.waiting import POLL_SECONDS
from hpcvol.errors import CommError

_LINE_NBYTES = 64
_PR_SET_PTRACER = 0x59616D61

# The memory of a process that was killed is gone before its state says so, on a busy machine long before.
_DYING_SECONDS = 10.0

_NAME = "cross_memory"


def usable(group: Group) -> bool:
    """Return whether all ranks of `group` are on one node and may read and write each other. Collective at first."""
    return _of(group) is not None


def allreduce(group: Group, vector: Vector, op: str, algorithm: str = _NAME) -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    Each rank reads its slice of all other vectors, combines them in the order of ranks, and writes the result to all:
    the same bits on all ranks, every time. For n ranks 2 (n - 1) / n of the vector's bytes are copied, and none twice.

    Args:
        group: one that is `usable`.
        vector: as for `staged.allreduce`.
        op: as for `staged.allreduce`.
        algorithm: likewise.

    Raises:
        MismatchError, MemberError: as `staged.allreduce`.
        CommError: the system refused what it allowed at first.
    """
    attached = _of(group)
    if attached is None:
        raise ValueError("the ranks of this group may not read each other's memory: ask `usable` first")
    attached.allreduce(vector, op, algorithm)


class _Attached:
    """What the ranks of a group know of each other."""

    def __init__(self, group: Group, memory: SharedMemory) -> None:
        from hpcvol.kernels import cross_memory, direct

        self._memory, self._calls = memory, group.calls  # kernels write to both
        self._group = group
        self._stages = direct
        self._failed = cross_memory.FAILED
        self._by_dtype = KernelsByDtype(group, cross_memory)
        self._plan = direct.plan_of(group.rank, group.calls.addresses, memory.addresses)
        self._pids = np.array([process.pid for process in memory.processes], np.int64)
        self._work = np.empty(cross_memory.work_nbytes(group.size), np.uint8)
        self._addresses: tuple[int, ...] = tuple(a.ctypes.data for a in (self._plan, self._pids, self._work))

    def allreduce(self, vector: Vector, op: str, algorithm: str) -> None:
        kernel, code, array = self._by_dtype.of(vector, op, algorithm)
        plan, pids, work = self._addresses

        def again(stage: int) -> int:
            found: int = kernel(plan, pids, code, array, work, stage)
            if found == self._failed:
                raise self._refusal()
            return found

        stage = again(self._stages.ENTER)
        if stage != self._stages.FINISHED:
            go_on(self._group, stage, again, self._stages.FINISHED)

    def _refusal(self) -> CommError:
        """Return the error for memory that cannot be read; raises another one where its process has died."""
        until = time.monotonic() + _DYING_SECONDS
        while time.monotonic() < until:
            self._group.poll()
            time.sleep(POLL_SECONDS)
        self._group.calls.abandoned = True
        return CommError(
            f"{self._group.name_of_me} could read the memory of the other ranks of its host at first, and no longer "
            'can: did a process change its user, or its limits? Set comm.algorithm to "library"'
        )


def _of(group: Group) -> _Attached | None:
    if _NAME not in group.kept:
        group.kept[_NAME] = _attach(group)
    attached: _Attached | None = group.kept[_NAME]
    return attached


def _attach(group: Group) -> _Attached | None:
    """Try whether every rank can read and write every other. Collective."""
    if group.node is not group:
        return None
    memory = allocate(group, _LINE_NBYTES)
    if memory is None or (group.size > 1 and not group.calls.shared):
        return None
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(os.getppid()), 0, 0, 0)
    return _Attached(group, memory) if _permitted(group, memory) else None


def _permitted(group: Group, memory: SharedMemory) -> bool:
    """Read a number of every rank, and write back its negative. Collective."""
    from hpcvol.kernels.cross_memory import compile_moves, read_from, write_to

    compiled(group, compile_moves)
    numbers = np.full(group.size, group.rank + 1, np.int64)
    addresses: list[int] = group.gather_objects(numbers.ctypes.data)
    found, vectors = np.zeros(1, np.int64), np.zeros(4, np.int64)
    here, table, may = found.ctypes.data, vectors.ctypes.data, True
    for rank, process in enumerate(memory.processes):
        there = addresses[rank] + 8 * group.rank
        may = may and read_from(process.pid, there, here, 8, table) and found[0] == rank + 1
        found[0] = -(rank + 1)
        may = may and write_to(process.pid, there, here, 8, table)
    group.barrier()
    return not group.any(not may or bool((numbers != -(group.rank + 1)).any()))
