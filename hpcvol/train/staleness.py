"""How stale the parameters were that steps were computed from, for metrics."""

from collections import Counter

from hpcvol.torch.counted import CountedStep


class Staleness:
    """Counts steps by staleness, over a stretch of steps."""

    def __init__(self) -> None:
        self._missed: Counter[int] = Counter()
        self._behind: Counter[int] = Counter()

    def count(self, step: CountedStep) -> None:
        """Take in a step that took effect."""
        self._missed[step.missed or 0] += 1
        self._behind[step.behind] += 1

    def take(self) -> dict[str, dict[str, int]]:
        """Return the histograms since the last call, steps by how many.

        Returns:
            `missed`: pushes that took effect between what a step was computed from and its own; `behind`: pushes by
            which the slowest worker was behind its own when it began, which `strategy.max_staleness` bounds.
        """
        found = {"missed": self._missed, "behind": self._behind}
        self._missed, self._behind = Counter(), Counter()
        return {name: {str(key): count for key, count in sorted(one.items())} for name, one in found.items()}
