"""What the kernels of shared memory need around them: waits that end, and compilers that do not race."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcvol.comm.agreement import together
from hpcvol.comm.calls import Call
from hpcvol.comm.faults import explain
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Vector
from hpcvol.errors import MismatchError


def go_on(group: Group, stage: int, again: Callable[[int], int], until: int) -> None:
    """Call `again` with the stage that it returned until that is `until`.

    Kernels return after a limited time of waiting. Here MPI gets to deliver what others may need before they can come,
    and a rank that waits for a dead one finds out.

    Args:
        group: whose call it is.
        stage: what the kernel returned.
        again: goes on from a stage.
        until: the stage of the end.

    Raises:
        MismatchError: another rank of the node is in another call.
        MemberError: another rank of the node has died.
    """
    from hpcvol.kernels.direct import DISAGREE

    def ended() -> bool:
        nonlocal stage
        group.progress()
        if stage == DISAGREE:
            group.poll()
            raise MismatchError(
                f"in collective call {group.calls.progress(group.calls.me).sequence} of its group another member "
                "of this node has gone on to later calls: all have to make the same calls in the same order"
            )
        stage = again(stage)
        return stage == until

    if stage == until:
        return
    try:
        group.waiting.until(ended, group.poll)
    except BaseException as error:
        group.calls.abandoned = True
        told = explain(group, error)
        if told is None:
            raise
        raise told from error


def compiled(group: Group, compile_kernels: Callable[[], None]) -> None:
    """Call `compile_kernels` on one rank of the node, which fills Numba's cache, then on the others. Collective."""
    from hpcvol.kernels.compiler import warm_up

    warm_up()  # by all ranks at once, not by one after another
    with together(group.node, "compiling kernels"):
        if group.node.rank == 0:
            compile_kernels()
    compile_kernels()


class KernelsByDtype:
    """The compiled all-reduces of a module of kernels, ready to be called.

    Args:
        group: the ranks that call them.
        module: has `ALLREDUCE`, by name of the dtype, and `compile_for`.
    """

    def __init__(self, group: Group, module: Any) -> None:
        self._group = group
        self._module = module
        self._found: dict[tuple[np.dtype[Any], str, str], tuple[Callable[..., int], int, str | None]] = {}

    def of(self, vector: Vector, op: str, algorithm: str) -> tuple[Callable[..., int], int, Vector]:
        """Return the kernel for `vector`, the code of its call, and the array to give it.

        Collective over the node the first time for a dtype and an algorithm, which is what was asked for.

        Raises:
            ValueError: there is no such op for the dtype.
        """
        found = self._found.get((vector.dtype, op, algorithm))
        if found is None:
            found = self._prepare(vector.dtype, op, algorithm)
        kernel, code, carried = found
        return kernel, code, vector if carried is None else vector.view(carried)

    def _prepare(self, dtype: "np.dtype[Any]", op: str, algorithm: str) -> tuple[Callable[..., int], int, str | None]:
        from hpcvol.kernels.combine import CARRIED

        if op not in ops_of(dtype):
            raise ValueError(f"unknown op {op!r} for {dtype}: expected one of {', '.join(ops_of(dtype))}")
        compiled(self._group, lambda: self._module.compile_for(dtype.name))
        for each in ops_of(dtype):
            code = Call.of("allreduce", dtype, 0, each, algorithm).code
            self._found[dtype, each, algorithm] = self._module.ALLREDUCE[dtype.name], code, CARRIED.get(dtype.name)
        return self._found[dtype, op, algorithm]


def ops_of(dtype: "np.dtype[Any]") -> tuple[str, ...]:
    """Return what vectors of `dtype` can be combined by: the mean of integers is none."""
    return ("sum", "min", "max", "product") if dtype.kind == "i" else ("sum", "mean", "min", "max", "product")
