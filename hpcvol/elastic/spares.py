"""Members that died are replaced by spares, which were started with the members and have slept since."""

from collections.abc import Callable
from functools import partial

from hpcvol.comm.reserve import Reserve
from hpcvol.elastic.membership import Membership


class Spares:
    """Calls spares where members are missing, between two steps. The same calls on all members.

    Args:
        membership: of the run.
        reserve: of its spares, which have been introduced.
        catch_up: gives a spare what the others have; collective over all members and the spare.
    """

    def __init__(self, membership: Membership, reserve: Reserve, catch_up: Callable[[], None]) -> None:
        self._membership = membership
        self._reserve = reserve
        self._catch_up = catch_up
        membership.highest = max(membership.highest, reserve.highest)

    def between_steps(self) -> None:
        """Let spares in where members are missing. Collective."""
        membership, reserve = self._membership, self._reserve
        while membership.group.size < membership.wanted and reserve.asleep:
            spare = min(reserve.asleep)
            membership.admit(spare, partial(reserve.call, spare), lambda: None, self._catch_up)

    def close(self) -> None:
        """Leave them asleep until the run ends. Local."""
