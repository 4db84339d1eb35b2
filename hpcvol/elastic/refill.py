"""Members that died are replaced: by processes that prepare apart, and come in between two steps."""

import sys
from collections.abc import Callable, Sequence

from hpcvol import tracing
from hpcvol.comm.newcomer import Newcomer
from hpcvol.comm.processes import Process
from hpcvol.comm.startup import threads_may_communicate
from hpcvol.comm.widening import widen
from hpcvol.elastic.membership import Membership
from hpcvol.errors import CommError

# So many that die one after the other while they prepare: the next one would too.
_MOST_FAILURES = 3
_PREPARE_SECONDS = 600.0


class Refill:
    """Has newcomers take the places of members that died, one at a time. The same calls on all members.

    The first member that lives is the starter: it spawns the newcomer, looks at it between steps, and says when it is
    ready. If the starter dies its newcomer ends, and the next starter begins again.

    Args:
        membership: of the run; all of its members are on one host.
        program: module and arguments that a newcomer runs.
        digest: of what members must have in common; that of a newcomer has to be the same.
        catch_up: gives a newcomer what the others have; collective over all members and the newcomer.
    """

    def __init__(
        self, membership: Membership, program: Sequence[str], digest: bytes, catch_up: Callable[[], None]
    ) -> None:
        self._membership = membership
        self._program = program
        self._digest = digest
        self._catch_up = catch_up
        self._newcomer: Newcomer | None = None
        self._failures = 0
        self._tried = 0  # the highest id that a newcomer of this starter was to have
        self._over = False
        # Who has said that it is about to spawn: MPI does not survive a newcomer that dies as it starts, and takes the
        # starter along. All know of it, so that not one after the other tries.
        self._about_to_spawn: int | None = None

    @staticmethod
    def is_possible(membership: Membership) -> bool:
        """Return whether newcomers can come in: all members on one host, that see each other. Local, the same on all.

        Over several hosts Open MPI 5.0 lets one newcomer in, and fails at the second.
        """
        group = membership.group
        on_one_host = group.node.size == group.size == len(group.processes)
        return membership.survives and on_one_host and threads_may_communicate()

    def between_steps(self) -> None:
        """Start a newcomer where members are missing, let it in where it is ready. Collective."""
        membership, group = self._membership, self._membership.group
        if self._over or group.size >= membership.wanted:
            self.close()
            return
        news = membership.attempt(lambda: group.gather_objects(self._look()))[0]
        self._over = news is False
        self._about_to_spawn = group.members[0] if news is True else None
        if not isinstance(news, tuple):
            return
        member, process = news
        newcomer, processes = self._newcomer, [*group.processes.values(), process]
        between = None
        if newcomer is not None:
            newcomer.call()
            between = newcomer.intercommunicator
        joined = membership.admit(member, lambda: widen(group, between, processes), self._refuse, self._catch_up)
        if joined:
            self._forget()
            self._failures = 0
            self.between_steps()  # with which the newcomer begins, like all
        elif self._newcomer is not None and newcomer is not None:
            self._give_up("did not get in")

    def close(self) -> None:
        """End a newcomer that is no member yet. Local."""
        self._refuse()
        self._forget()

    def _look(self) -> tuple[int, Process] | bool | None:
        """Return what the first member has to say.

        The id and the process of a newcomer that is ready; True: it will spawn one now; False: there will be none any
        more; else None.
        """
        group = self._membership.group
        if self._about_to_spawn not in (None, group.members[0]):
            self._failures += 1
            self._about_to_spawn = None
        if group.rank != 0:
            return None
        newcomer = self._newcomer
        if newcomer is not None:
            process = newcomer.process
            if process is None or not newcomer.alive:
                self._give_up("died while it prepared")
            elif newcomer.seconds > _PREPARE_SECONDS:
                self._give_up(f"was not ready after {_PREPARE_SECONDS:.0f} s")
            elif newcomer.ready and newcomer.digest != self._digest:
                self._give_up(
                    "found other code, another configuration, other data or another processor than the members"
                )
                self._failures = _MOST_FAILURES
            elif newcomer.ready:
                return newcomer.member, process
            if self._newcomer is not None:
                return None
        if self._failures >= _MOST_FAILURES:
            _say(f"{_MOST_FAILURES} newcomers in a row failed: members that died are not replaced any more")
            return False
        if self._about_to_spawn is None:
            return True
        self._spawn()
        return None

    def _spawn(self) -> None:
        member = self._tried = max(self._membership.highest, self._tried) + 1
        try:
            with tracing.span("spawn", member=member):
                self._newcomer = Newcomer(member, self._program)
        except CommError as error:
            self._failures += 1
            _say(str(error))

    def _give_up(self, what: str) -> None:
        assert self._newcomer is not None
        _say(f"a process that was to become member {self._newcomer.member} {what}")
        self._failures += 1
        self.close()

    def _refuse(self) -> None:
        if self._newcomer is not None:
            self._newcomer.end()

    def _forget(self) -> None:
        if self._newcomer is not None:
            self._newcomer.close()
            self._newcomer = None


def _say(text: str) -> None:
    print(f"hpcvol: {text}", file=sys.stderr, flush=True)
