"""How fast members compute: each measures itself as it works, and all know the same numbers of all.

A speed is told as seconds a sample: units of a step differ by one sample.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median, median_low

_WINDOW = 9  # units at least; all of a step where it has more
_LEAST = 5
_WARM_UP = 2  # units at first that take longer

# A member is called slow whose seconds are so many median absolute deviations, and so many times, above the median, and
# by so many seconds a unit that it matters, in so many steps in a row. One slower than `RELEASE` medians gets no units.
_DEVIATIONS = 5.0
SLOW = 1.5
MATTERS_SECONDS = 0.002
_STEPS_IN_A_ROW = 10
RELEASE = 30.0


class Stopwatch:
    """How fast this member computes: the median of its last units, so that a pause of the system is no slowness.

    A step's units count all, so that its numbers do not follow whatever the last few had beside them.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._number = 0
        self._of_step = 0
        self.sample_seconds: float | None = None

    def count(self, seconds: float, num_samples: int) -> None:
        """Take in one unit's seconds, its data included. Local."""
        self._number += 1
        self._of_step += 1
        if self._number > _WARM_UP:
            self._recent.append(seconds / num_samples)
        while len(self._recent) > max(_WINDOW, self._of_step):
            self._recent.popleft()
        if self._number >= _LEAST:
            self.sample_seconds = median(self._recent)

    def end_step(self) -> None:
        """The units until now were those of a step that took effect. Local."""
        self._of_step = 0

    def pause(self) -> None:
        """No unit was computed in a step: what was measured before stands until the next one, which counts alone."""
        self._recent.clear()


@dataclass(frozen=True)
class Slow:
    """A member that is slower than the others.

    Attributes:
        member: its id.
        times: how many times as long as the median member it takes for a sample.
    """

    member: int
    times: float

    @property
    def released(self) -> bool:
        """Whether it is too slow to be of use."""
        return self.times > RELEASE


class SlowMembers:
    """Finds members that are slow for several steps in a row, each once."""

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}
        self._told: set[tuple[int, bool]] = set()

    def look(self, seconds: Mapping[int, float], unit_samples: float) -> list[Slow]:
        """Return who has to be told of after one more step; again where one has become too slow to be of use. Local.

        Args:
            seconds: a sample, by member.
            unit_samples: samples a unit.
        """
        found = slow_among(seconds, unit_samples)
        self._steps = {one.member: self._steps.get(one.member, 0) + 1 for one in found}
        news = [one for one in found if self._steps[one.member] >= _STEPS_IN_A_ROW]
        news = [one for one in news if not {(one.member, one.released), (one.member, True)} & self._told]
        self._told |= {(one.member, one.released) for one in news}
        return news


def slow_among(seconds: Mapping[int, float], unit_samples: float) -> list[Slow]:
    """Return the members whose seconds a sample stand out: more than median + k · median absolute deviation."""
    if len(seconds) < 2:
        return []
    usual = median_low(seconds.values())
    deviation = median_low(abs(one - usual) for one in seconds.values())
    limit = max(usual + _DEVIATIONS * deviation, SLOW * usual, usual + MATTERS_SECONDS / unit_samples)
    return [Slow(member, one / usual) for member, one in sorted(seconds.items()) if usual and one > limit]
