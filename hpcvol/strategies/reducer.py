"""Summing a step's gradients over all members, bucket by bucket: what every strategy offers to the step loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpcvol.collectives import Vector

Buckets = Sequence[tuple[int, int]]
BUCKET_NBYTES = 2 * 2**20


@dataclass(frozen=True)
class Blocks:
    """The blocks of a flat vector of integers, each rounded under an exponent of its own.

    Attributes:
        starts: int64[blocks], first element of each, ascending.
        numels: int64[blocks], elements of each.
        scales: float64[blocks], the power of two under which each was rounded.
    """

    starts: NDArray[np.int64]
    numels: NDArray[np.int64]
    scales: NDArray[np.float64]

    @property
    def table(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The three, as kernels take them."""
        return self.starts, self.numels, self.scales


class FloatReducer(Protocol):
    """Sums vectors of floats.

    Attributes:
        vector: this member's gradients, float32 or float64; written by the caller until they are pushed. Its memory
            never moves.
    """

    vector: Vector

    def push(self, bucket: int) -> None:
        """Say that a bucket's gradients are final here; buckets are pushed in order, each once a step. Local."""

    def finish(self, weight: int, own: int) -> None:
        """Replace `vector` by its sum over all members divided by `weight`, or another combination of their means.

        Collective; every bucket was pushed.

        Args:
            weight: of all members together.
            own: of this member; their sum is `weight`.
        """

    def drop(self) -> None:
        """Forget what was pushed: the step is given up. Collective; every bucket was pushed."""


class ExactReducer(Protocol):
    """Sums vectors of integers and reads the sum as weighted means.

    Attributes:
        totals: int64, this member's sum over its units; nobody changes it but the caller.
        means: float32 or float64, as long as `totals`: where the means come to lie. Its memory never moves.
    """

    totals: NDArray[np.int64]
    means: Vector

    def push(self, bucket: int) -> None:
        """Say that a bucket's totals are final here; buckets are pushed in order, each once a step. Local."""

    def finish(self, blocks: Blocks, weight: int) -> None:
        """Write Σ totals / scale / weight of every block to `means`. Collective; every bucket was pushed."""

    def drop(self) -> None:
        """Forget what was pushed: the step is computed again. Collective; every bucket was pushed."""
