"""Barrier: nobody goes on before all are here.

References:
    Hensgen, Finkel and Manber, Two algorithms for barrier synchronization, IJPP 17 (1988), section 3 (dissemination).
"""

import numpy as np

from hpcvol.collectives.calling import calling
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Messages


def barrier(group: Group) -> None:
    """Wait until all ranks of `group` are here. Collective.

    Cost, for n ranks: log2 n empty messages.

    Raises:
        MismatchError: members are in different calls.
        MemberError: another member died.
    """
    nothing = np.empty(0, np.uint8)
    with calling(group, "barrier"), Messages(group) as messages:
        distance = 1
        while distance < group.size:
            coming = messages.receive(nothing, (group.rank - distance) % group.size)
            messages.send(nothing, (group.rank + distance) % group.size)
            messages.wait(coming)
            distance *= 2
