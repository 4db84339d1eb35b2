"""How often to write a checkpoint: every so many steps, or as often as its cost and the interruptions ask for."""

import math
import time
from collections.abc import Callable
from typing import Literal

# Before the first checkpoint nobody knows what one costs.
FIRST_SECONDS = 60.0
# An interval that changes by less is not news.
_NEWS_FACTOR = 2.0


def young_interval(cost_seconds: float, mtbf_seconds: float) -> float:
    """Return the time between checkpoints that loses least, to first order: √(2·δ·M).

    Args:
        cost_seconds: δ, what one checkpoint costs.
        mtbf_seconds: M, the mean time between two interruptions of the run.

    References:
        J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974.
    """
    return math.sqrt(2.0 * cost_seconds * mtbf_seconds)


def daly_interval(cost_seconds: float, mtbf_seconds: float) -> float:
    """Return the computing time between checkpoints that loses least, to a higher order than Young's.

    √(2·δ·M) · (1 + √(δ / 2M) / 3 + (δ / 2M) / 9) - δ where δ < 2·M, else M.

    Args:
        cost_seconds: δ, what one checkpoint costs.
        mtbf_seconds: M, the mean time between two interruptions of the run.

    References:
        J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, FGCS 22, 2006.
    """
    ratio = cost_seconds / (2.0 * mtbf_seconds)
    if ratio >= 1.0:
        return mtbf_seconds
    young = young_interval(cost_seconds, mtbf_seconds)
    return young * (1.0 + math.sqrt(ratio) / 3.0 + ratio / 9.0) - cost_seconds


class Cadence:
    """Says when the next checkpoint is due. Local.

    Under "auto" a checkpoint's cost is the longer of the copy, for which training stops, and the write behind it, which
    shares a core, the disk and the network with training. So the interval is never shorter than a write.

    Args:
        every_steps: a number of steps, 0 for none, or "auto".
        mtbf_hours: mean time between two interruptions of the run, for "auto".
        clock: seconds since some moment.
    """

    def __init__(
        self, every_steps: int | Literal["auto"], mtbf_hours: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_steps = every_steps
        self._mtbf_seconds = mtbf_hours * 3600.0
        self._clock = clock
        self._last = clock()
        self._interval = FIRST_SECONDS
        self._told: float | None = None
        self._hurry = False

    @property
    def can_wait(self) -> bool:
        """Whether a checkpoint that is due may come some steps later, when the one before has been written."""
        return self._every_steps == "auto"

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps."""
        if self._hurry:
            return True
        if self._every_steps == "auto":
            return self._clock() - self._last >= self._interval
        return self._every_steps > 0 and step % self._every_steps == 0

    def hurry(self) -> None:
        """Make a checkpoint due at once: one that was being written may have been lost."""
        self._hurry = True

    def begun(self) -> None:
        """Take note that a checkpoint was made just now, for whatever reason."""
        self._last = self._clock()
        self._hurry = False

    def measured(self, copy_seconds: float, write_seconds: float) -> str | None:
        """Take in what a checkpoint cost; return a line for the user where the interval is new or changes a lot."""
        if self._every_steps != "auto":
            return None
        cost = max(copy_seconds, write_seconds)
        self._interval = max(daly_interval(cost, self._mtbf_seconds), cost)
        told = self._told
        if told is not None and 1.0 / _NEWS_FACTOR <= self._interval / told <= _NEWS_FACTOR:
            return None
        self._told = self._interval
        return (
            f"a checkpoint every {self._interval:.0f} s from here on: copied in {copy_seconds:.2g} s, written behind "
            f"training in {write_seconds:.2g} s, one interruption in {self._mtbf_seconds / 3600:g} h expected "
            "(checkpoint.mtbf_hours)"
        )
