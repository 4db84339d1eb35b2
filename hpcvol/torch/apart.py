"""Steps that members compute apart from each other, and where they meet.

Where parameters may be stale, and where groups train by themselves for a period, members are not together after each
step. They are between two calls of `run.steps`, and wherever somebody wants them to be.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from hpcvol.comm import doing
from hpcvol.comm.doing import ROUND
from hpcvol.elastic.membership import MembersChanged
from hpcvol.errors import LostMemberError
from hpcvol.strategies.sequencer import Version
from hpcvol.strategies.supernodes import Grouping
from hpcvol.torch.asynchronous import AsynchronousParameters, counted
from hpcvol.torch.counted import CountedStep
from hpcvol.torch.lone_step import LoneStep
from hpcvol.torch.rounds import Rounds
from hpcvol.torch.seeding import BETWEEN_STEPS, seed_generators
from hpcvol.torch.step import Step, left_early
from hpcvol.torch.team_step import TeamStep

if TYPE_CHECKING:
    from hpcvol.torch.run import Run

logger = logging.getLogger("hpcvol")

# What members say of themselves when they meet.
_MEETS = "meets"
_RATE = "rate"
_SLOW = "slow"

Told = dict[int, dict[str, Any]]


class Apart(ABC):
    """Steps of a run whose members meet seldom. One a run, the same calls on all members.

    Args:
        run: whose steps they are.
        grouping: the groups that compute them.

    Attributes:
        counted: the steps that took effect in the last call of `steps`, in order.
        is_under_way: whether members are apart now.
        slow: members that this one's group has found slow since all met, as `Run.slow`.
    """

    def __init__(self, run: "Run", grouping: Grouping) -> None:
        self._run = run
        self._grouping = grouping
        self.counted: list[CountedStep] = []
        self.is_under_way = False
        self.slow: list[tuple[str, float]] = []

    def steps(self, until: int) -> Iterator[Step]:
        """As `Run.steps`: those that this member computes; at the end all members have all that counts."""
        run, membership = self._run, self._run.membership
        if run.replacing is not None:
            run.replacing.between_steps()
        self._warn(until)
        self.counted = []
        meets = False
        while run.step < until and not meets:
            run.check_model()
            run.check_together("run.steps")
            told = yield from self._until_all_meet(until)
            if told is None:
                continue
            membership.told = told
            self.slow = []
            run.slow += [one for said in told.values() for one in said[_SLOW]]
            run.residuals.committed(told, membership.saying)
            meets = any(said.get(_MEETS) for said in told.values())
            membership.saying.pop(_MEETS, None)
            seed_generators(run.settings.seed, run.step, 0, BETWEEN_STEPS)
            membership.at_boundary()

    def meet(self) -> None:
        """Have `steps` end on all members when they next are together. Local."""
        saying = self._run.membership.saying
        if not saying.get(_MEETS):
            saying[_MEETS] = True
            self.stop()

    @abstractmethod
    def stop(self) -> None:
        """Have members be together when the steps that they are at are done. Local."""

    @abstractmethod
    def _until_all_meet(self, until: int) -> Generator[Step, None, Told | None]:
        """Yield steps until members are together, and return what they say by id; None where all is to be begun again.

        Collective.
        """

    def _warn(self, until: int) -> None:
        """Say who will have nothing to do until `until`. Local."""
        del until
        self._run.warn_about_idle_workers()

    def _says(self) -> dict[str, Any]:
        """Return what this member says of itself."""
        return {**self._run.membership.saying, _SLOW: self.slow if self._grouping.is_leader else []}


class InRounds(Apart):
    """Steps of groups that train for a period each, and go on from the mean of what came of it.

    Args:
        run, grouping: as `Apart`.
        rounds: of the same groups.
    """

    def __init__(self, run: "Run", grouping: Grouping, rounds: Rounds) -> None:
        super().__init__(run, grouping)
        self._rounds = rounds

    def stop(self) -> None:
        """As `Apart`: they are when the round is over, which nobody can end."""

    def _until_all_meet(self, until: int) -> Generator[Step, None, Told | None]:
        run = self._run
        self._rounds.take()  # parameters may have been changed between two rounds
        first, period = run.step, run.settings.period
        self.is_under_way = True
        try:
            yield from self._round(first, min(until, first + period - first % period))
        except MembersChanged:
            run.step = first
            self.is_under_way = False
            return None
        self.is_under_way = False
        told = self._rounds.told
        if run.settings.dealing.kind == "static":
            self._grouping.dealt_by({member: said[_RATE] for member, said in told.items() if said[_RATE] is not None})
        return told

    def _round(self, first: int, last: int) -> Iterator[Step]:
        run, steps = self._run, list[TeamStep]()
        with doing(ROUND):
            for index in range(first, last):
                step = TeamStep(run, index)
                yield step
                steps.append(step)
                if step.lost is not None:
                    break
                if not step.over:
                    raise left_early(index)
        stopwatch = run.dealing.stopwatch
        rate = None if stopwatch.sample_seconds is None else 1 / max(stopwatch.sample_seconds, 1e-9)
        told = {**self._says(), _RATE: rate}
        self.counted += run.membership.settle(lambda: self._rounds.combine(first, steps, told))
        self._rounds.commit()


class WithServers(Apart):
    """Steps that one worker each computes and pushes to servers that wait for nobody.

    Args:
        run, grouping: as `Apart`.
        served: the parameters.
    """

    def __init__(self, run: "Run", grouping: Grouping, served: AsynchronousParameters) -> None:
        super().__init__(run, grouping)
        self._served = served
        self._has_warned = False

    def stop(self) -> None:
        """As `Apart`: nobody gets further steps."""
        self._served.store.stop()

    def _until_all_meet(self, until: int) -> Generator[Step, None, Told | None]:
        run = self._run
        yield from self._phase(until)
        run.residuals.tell(run.membership.saying)
        mine = run.member, self._says()
        return dict(run.membership.attempt(lambda: run.group.gather_objects(mine)))

    def _phase(self, until: int) -> Iterator[Step]:
        """Yield steps that this member is to compute until members meet."""
        run, served, membership = self._run, self._served, self._run.membership
        first = run.step
        done: dict[int, Version] = {}
        complete = False
        while not complete:
            known = list(done)
            membership.attempt(lambda: served.begin(first, until, known))  # noqa: B023
            if membership.saying.get(_MEETS) or membership.leaves:
                self.stop()  # it was said to those who were there before
            self.is_under_way = True
            yield from self._claimed(until)
            self.is_under_way = False
            try:
                log = membership.settle(served.finish)
                complete = True
            except MembersChanged:  # what they know to count is with all who live; the rest is begun again
                log = list(served.store.salvaged.values())
            done |= {one.step: one for one in log}
        served.store.end()
        steps = counted(sorted(done.values(), key=lambda one: one.number), first + 1)
        self.counted += steps
        run.step = first + len(steps)

    def _claimed(self, until: int) -> Iterator[Step]:
        """Yield the steps that this member's worker claims, until there are none, or it cannot go on."""
        run, served = self._run, self._served

        def fetch(step: int) -> None:
            run.loader.prefetch(run.deal(run.units(step)))

        lost = False
        while not lost:
            try:
                first = served.claim(fetch)
            except LostMemberError:
                lost = True
                break
            if first is None:
                break
            last = min(first + run.settings.period, until)
            for index in range(first, last):
                step = LoneStep(run, index)
                step.is_pushed = index == last - 1
                yield step
                lost = step.lost is not None
                if lost:
                    break
                if not step.over:
                    raise left_early(index)
        if lost:
            served.give_up()  # all find out, and meet

    def _warn(self, until: int) -> None:
        super()._warn(until)
        run = self._run
        steps, period, groups = until - run.step, run.settings.period, len(self._grouping.teams)
        pushes = math.ceil(steps / period)
        if run.is_first and period > 1 and 0 < pushes < groups and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%d steps until members meet are %d rounds of strategy.between.period = %d, and there are %d groups: "
                "the others wait; validate and write checkpoints less often, or lower the period",
                steps,
                pushes,
                period,
                groups,
            )
