"""All-reduce of any vectors of the ranks of one node, through memory that they share."""

import numpy as np

from hpcvol.collectives.rendezvous import KernelsByDtype, go_on
from hpcvol.comm.group import Group
from hpcvol.comm.shared_memory import SharedMemory, allocate
from hpcvol.comm.vectors import Vector

_NAME = "staged"


def usable(group: Group) -> bool:
    """Return whether all ranks of `group` are on one node and share memory. Collective the first time."""
    return _staging(group) is not None


def allreduce(group: Group, vector: Vector, op: str, algorithm: str = "auto") -> None:
    """Replace `vector` by its element-wise `op` over all ranks of `group`. Collective, in place.

    Each rank copies what others combine to a staging area, piece by piece, combines its slice of every piece in the
    order of ranks into the areas of all, and copies the other slices back: the same bits on all ranks, every time. For
    n ranks it copies 2 (n - 1) / n of the vector's bytes, and reads and writes as many as the vector has to combine.

    Args:
        group: one that is `usable`.
        vector: contiguous; float32, float64, float16, bfloat16 (of ml_dtypes), int32 or int64.
        op: "sum", "min", "max", "product", and where the dtype is of floats "mean".
        algorithm: what the caller asked for, the same on all ranks.

    Raises:
        MismatchError: another rank is in another call, or gave another length, dtype, op or algorithm.
        MemberError: another rank has died.
    """
    staging = _staging(group)
    if staging is None:
        raise ValueError("the ranks of this group share no memory: ask `usable` first")
    staging.allreduce(vector, op, algorithm)


class _Staging:
    """The staging areas of a group."""

    def __init__(self, group: Group, memory: SharedMemory) -> None:
        from hpcvol.kernels import direct, staged

        self._group = group
        self._memory, self._calls = memory, group.calls  # kernels write to both
        self._finished = direct.FINISHED
        self._plan = direct.plan_of(group.rank, group.calls.addresses, memory.addresses)
        self._state = np.zeros(staged.STATE_NUMEL + group.size, np.int64)
        self._addresses: tuple[int, int] = self._plan.ctypes.data, self._state.ctypes.data
        self._kernels = KernelsByDtype(group, staged)

    def allreduce(self, vector: Vector, op: str, algorithm: str) -> None:
        kernel, code, array = self._kernels.of(vector, op, algorithm)
        plan, state = self._addresses
        stage = kernel(plan, state, code, array, 0)
        if stage != self._finished:
            go_on(self._group, stage, lambda at: kernel(plan, state, code, array, at), self._finished)


def _staging(group: Group) -> _Staging | None:
    if _NAME not in group.kept:
        group.kept[_NAME] = _made(group)
    staging: _Staging | None = group.kept[_NAME]
    return staging


def _made(group: Group) -> _Staging | None:
    if group.node is not group:
        return None
    from hpcvol.kernels import staged

    memory = allocate(group, staged.AREA_NBYTES)
    if memory is None or (group.size > 1 and not group.calls.shared):
        return None
    return _Staging(group, memory)
