"""What becomes of the gradients of several members under the float sum: their mean, or what outliers cannot decide.

Each works on a stack, one row a member: this rank's slice of each one's mean gradient. Where whole vectors are compared
`total` adds a small vector of numbers over the slices of all ranks. Kernels are imported where they run: the
configuration, which every command reads, asks which combinations there are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpcvol.errors import ConfigError

Stack: TypeAlias = NDArray[Any]
Total: TypeAlias = Callable[[NDArray[np.float64]], None]

_CLIPPINGS = 3


class Combination(Protocol):
    """Makes one gradient of those of several members."""

    @property
    def least_members(self) -> int:
        """With fewer members it promises nothing."""

    def combine(self, stack: Stack, total: Total) -> Stack:
        """Return this rank's slice of the gradient. Collective where it calls `total`."""


@dataclass(frozen=True)
class Median:
    """The median of each coordinate: good while fewer than half of the members are faulty.

    References:
        Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning, ICML 2018, definition 1.
    """

    least_members = 3

    def combine(self, stack: Stack, total: Total) -> Stack:
        """Take the middle one, or the mean of the middle two."""
        from hpcvol.kernels import robust

        del total
        out: Stack = np.empty_like(stack[0])
        robust.trimmed_mean(stack, (len(stack) - 1) // 2, out)
        return out


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each coordinate without the share `share` of members, rounded up, at each end.

    References:
        Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning, ICML 2018, definition 2.
    """

    share: float
    least_members = 3

    def combine(self, stack: Stack, total: Total) -> Stack:
        """Leave as many out as the share says, but never all."""
        from hpcvol.kernels import robust

        del total
        out: Stack = np.empty_like(stack[0])
        robust.trimmed_mean(stack, min(math.ceil(self.share * len(stack)), (len(stack) - 1) // 2), out)
        return out


@dataclass(frozen=True)
class Krum:
    """The mean of the members that are closest to their neighbours; of `faulty` faulty ones none is among them.

    A member's score is the sum of squared distances to its n - faulty - 2 nearest.

    Args:
        faulty: members that may be faulty; 2 · faulty + 3 members are needed.
        several: False takes the best one, True the n - 2 · faulty - 2 best (Multi-Krum).

    References:
        Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries, NeurIPS 2017, section 4.
    """

    faulty: int
    several: bool = False

    @property
    def least_members(self) -> int:
        """2 · faulty + 3."""
        return 2 * self.faulty + 3

    def combine(self, stack: Stack, total: Total) -> Stack:
        """Score all members over whole vectors; average the best."""
        from hpcvol.kernels import robust

        members = len(stack)
        distances = np.zeros((members, members))
        robust.squared_distances(stack, distances)
        total(distances.reshape(-1))
        # The nearest of all is the member itself, at distance 0.
        scores = np.sort(distances, axis=1)[:, : members - self.faulty - 1].sum(axis=1)
        best = np.sort(np.argsort(scores, kind="stable")[: members - 2 * self.faulty - 2 if self.several else 1])
        out: Stack = np.empty_like(stack[0])
        robust.trimmed_mean(stack[best], 0, out)
        return out


@dataclass(frozen=True)
class CentredClip:
    """From the coordinate median on, thrice: move by the mean of all differences, each clipped to `radius`.

    References:
        Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization, ICML 2021, section 4. They
        begin from the last step's outcome; the median needs no memory, so that resuming changes nothing.
    """

    radius: float
    least_members = 3

    def combine(self, stack: Stack, total: Total) -> Stack:
        """Clip by the norm of whole vectors."""
        from hpcvol.kernels import robust

        centre = Median().combine(stack, total)
        for _ in range(_CLIPPINGS):
            distances = np.zeros(len(stack))
            robust.squared_distances_from(centre, stack, distances)
            total(distances)
            norms = np.sqrt(distances)
            robust.move(centre, stack, self.radius / np.maximum(norms, self.radius))
        return centre


def parse(text: str) -> Combination | None:
    """Return the combination that `strategy.combine` names, None for the mean.

    Raises:
        ConfigError: there is no such one, or its number cannot be.
    """
    name, _, number = text.partition(":")
    if text == "mean":
        return None
    if text == "median":
        return Median()
    if name == "trimmed_mean" and 0 < (share := _number(number)) < 0.5:
        return TrimmedMean(share)
    if name in ("krum", "multi_krum") and number.isdecimal():
        return Krum(int(number), several=name == "multi_krum")
    if name == "centred_clip" and 0 < (radius := _number(number)) < math.inf:
        return CentredClip(radius)
    raise ConfigError(
        f'strategy.combine = "{text}": expected "mean", "median", "trimmed_mean:SHARE" (from each end, below 0.5), '
        '"krum:FAULTY", "multi_krum:FAULTY" (members that may be faulty) or "centred_clip:RADIUS" (a norm)'
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
