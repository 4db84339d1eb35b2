"""How bytes move: MPI start and stop, groups of live ranks, the launcher.

`start()` loads MPI; importing this does not.
"""

from hpcvol.comm.agreement import agree, gather_agreed, together
from hpcvol.comm.doing import doing
from hpcvol.comm.ending import fail
from hpcvol.comm.group import Group
from hpcvol.comm.launch import Launch, launch_command
from hpcvol.comm.launcher import under_launcher
from hpcvol.comm.sharing import ABSENT, Sharing, shared
from hpcvol.comm.startup import start, threads_may_communicate
from hpcvol.comm.watch import set_patience

__all__ = [
    "ABSENT",
    "Group",
    "Launch",
    "Sharing",
    "agree",
    "doing",
    "fail",
    "gather_agreed",
    "launch_command",
    "set_patience",
    "shared",
    "start",
    "threads_may_communicate",
    "together",
    "under_launcher",
]
