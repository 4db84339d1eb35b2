"""How bytes move: MPI start and stop, groups of live ranks, the launcher.

`start()` loads MPI; importing this does not.
"""

from hpcvol.comm.agreement import agree, together
from hpcvol.comm.ending import fail
from hpcvol.comm.group import Group
from hpcvol.comm.launch import Launch, launch_command
from hpcvol.comm.launcher import under_launcher
from hpcvol.comm.sharing import ABSENT, Sharing, shared
from hpcvol.comm.startup import start, threads_may_communicate

__all__ = [
    "ABSENT",
    "Group",
    "Launch",
    "Sharing",
    "agree",
    "fail",
    "launch_command",
    "shared",
    "start",
    "threads_may_communicate",
    "together",
    "under_launcher",
]
