"""What the kernels of shared memory need around them: waits that end, and compilers that do not race."""

from collections.abc import Callable

from hpcvol.comm.agreement import together
from hpcvol.comm.calls import Calls
from hpcvol.comm.group import Group
from hpcvol.errors import MismatchError


def go_on(calls: Calls, stage: int, again: Callable[[int], int], until: int) -> None:
    """Call `again` with the stage that it returned until that is `until`.

    Kernels return after a limited time of waiting, so that a rank which waits for a dead one finds out here.

    Raises:
        MismatchError: another rank of the node is in another call.
        MemberError: another rank of the node has died.
    """
    from hpcvol.kernels.direct import DISAGREE

    try:
        while stage != until:
            calls.poll()
            if stage == DISAGREE:
                raise MismatchError(
                    f"in collective call {calls.progress(calls.me).sequence} of its group another member of this node "
                    "has gone on to later calls: all have to make the same calls in the same order"
                )
            stage = again(stage)
    except BaseException:
        calls.abandoned = True
        raise


def compiled(group: Group, compile_kernels: Callable[[], None]) -> None:
    """Call `compile_kernels` on one rank of the node, which fills Numba's cache, then on the others. Collective."""
    with together(group.node, "compiling kernels"):
        if group.node.rank == 0:
            compile_kernels()
    compile_kernels()
