"""How fast each member computes, so that the one that others wait for has a name."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median, median_low
from typing import Any

from hpcvol.torch.step import Share

# A member is said to be slow that takes so many times as long for a sample as the median one.
SLOW = 1.2


class Pace:
    """Sums up the members' shares of steps, over a stretch of steps and over the run."""

    def __init__(self) -> None:
        self._stretch: list[Sequence[Share]] = []
        self._samples: defaultdict[int, int] = defaultdict(int)
        self._seconds: defaultdict[int, float] = defaultdict(float)

    def count(self, shares: Sequence[Share]) -> None:
        """Take in what the members computed of a step."""
        self._stretch.append(shares)
        for share in shares:
            self._samples[share.member] += share.num_samples
            self._seconds[share.member] += share.seconds

    def take(self) -> dict[str, Any]:
        """Return the stretch since the last call, for metrics; there was at least one step.

        Returns:
            `median_seconds`: that a member computed in a step, mean over steps of the median over members;
            `slowest_seconds`: likewise of the slowest; `slowest`: id of the member that was that most often; `waiting`:
            the part of the members' time, from 0 to 1, that they waited for the slowest.
        """
        stretch, self._stretch = self._stretch, []
        slowest = [max(shares, key=lambda share: share.seconds) for shares in stretch]
        members = [share.member for share in slowest]
        longest = sum(share.seconds * len(shares) for share, shares in zip(slowest, stretch, strict=True))
        computed = sum(share.seconds for shares in stretch for share in shares)
        return {
            "median_seconds": sum(median(share.seconds for share in shares) for shares in stretch) / len(stretch),
            "slowest_seconds": sum(share.seconds for share in slowest) / len(stretch),
            "slowest": max(sorted(set(members)), key=members.count),
            "waiting": 1 - computed / longest if longest else 0.0,
        }

    def slow_member(self, members: Sequence[int]) -> tuple[int, float] | None:
        """Return which of `members` takes longest for a sample, and how many times the median; None if none is slow."""
        counts = {member: self._samples[member] for member in members}
        paces = {member: self._seconds[member] / count for member, count in counts.items() if count}
        if len(paces) < 2:
            return None
        slowest = max(paces, key=lambda member: paces[member])
        usual = median_low(sorted(paces.values()))
        times = paces[slowest] / usual if usual else 1.0
        return (slowest, times) if times > SLOW else None
