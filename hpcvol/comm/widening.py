"""From the communicator of a group and a newcomer to one of both.

Open MPI 5.0 does not come back from some of these calls where a process dies in the middle (tried: between the making
of the intercommunicator and its merger). So they are made in a thread, and left alone where somebody has died.
"""

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpcvol import tracing
from hpcvol.comm.ending import leave_mpi_open
from hpcvol.comm.group import Group
from hpcvol.comm.processes import Process

if TYPE_CHECKING:
    from mpi4py import MPI

_TAG = 7
_LOOK_SECONDS = 0.005
# How long a call may still take after a death, and at all.
_GRACE_SECONDS = 1.0
_MOST_SECONDS = 30.0


def widen(group: Group, intercommunicator: "MPI.Intercomm | None", processes: Sequence[Process]) -> "MPI.Comm | None":
    """Return a communicator of the group and, as its last rank, a newcomer; None where it could not be made.

    Collective over the group and the newcomer, which calls `enter`. It may come about on some members and not on
    others: they have to agree.

    Args:
        group: the members.
        intercommunicator: of the group's first rank and the newcomer, None on all others.
        processes: of all members, and the newcomer's.
    """
    leave_mpi_open()
    made: list[MPI.Comm] = []

    def make() -> None:
        from mpi4py import MPI

        try:
            bridge = MPI.COMM_WORLD if intercommunicator is None else intercommunicator.Merge(False)
            whole = group.communicator
            assert isinstance(whole, MPI.Intracomm)
            both = whole.Create_intercomm(0, bridge, 1, _TAG)
            made.append(both.Merge(False))
        except MPI.Exception:
            return

    with tracing.span("admit"):
        thread = threading.Thread(target=make, name="hpcvol-admit", daemon=True)
        thread.start()
        until = time.monotonic() + _MOST_SECONDS
        while thread.is_alive() and time.monotonic() < until:
            thread.join(_LOOK_SECONDS)
            if not all(process.alive() for process in processes):
                thread.join(_GRACE_SECONDS)
                break
    return made[0] if made else None


def enter(intercommunicator: "MPI.Intercomm") -> "MPI.Comm":
    """Return the communicator of a group and this newcomer. Collective with `widen`.

    Args:
        intercommunicator: with the starter.
    """
    from mpi4py import MPI

    with tracing.span("admit"):
        bridge = intercommunicator.Merge(True)
        return MPI.COMM_SELF.Create_intercomm(0, bridge, 0, _TAG).Merge(True)
