"""What a codec is: it makes a payload of a vector, and adds what a payload stands for to another.

A codec is a value: it holds no memory. What it lost of a vector, the residual, is an array of whoever calls it. With it

    corrected = x + residual;   payload = encode(corrected);   residual = corrected - decode(payload)

so that nothing is lost over many steps: the sum of all x is the sum of all that was decoded, and the residual.

References:
    Seide, Fu, Droppo, Li, Yu: 1-bit stochastic gradient descent, Interspeech 2014.
    Stich, Cordonnier, Jaggi: Sparsified SGD with memory, NeurIPS 2018.
    Karimireddy, Rebjock, Stich, Jaggi: Error feedback fixes SignSGD and other gradient compression schemes, ICML 2019.
"""

from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Payload: TypeAlias = NDArray[np.uint8]

# Where parts of a payload begin: at whole cache lines from its own beginning.
ALIGNMENT = 64

_SPREAD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio


class Seeds(NamedTuple):
    """The chances of one encoding, each 0 to 2^63 - 1.

    Args:
        common: of what all ranks choose alike.
        own: of what each rank draws for itself.
        step: in which it is made.
    """

    common: int
    own: int
    step: int = 0

    @classmethod
    def of(cls, seed: int, step: int, rank: int) -> "Seeds":
        """Return those of a rank in a step: others in each step, and on each rank."""
        common = (seed + (step + 1) * _SPREAD) % 2**63
        return cls(common, (common + (rank + 1) * (_SPREAD >> 1)) % 2**63, step)


class Codec(Protocol):
    """Encodes vectors of float32 or float64. A frozen dataclass: two that are equal encode alike.

    Of three ranks or more each encodes slices of its vector, one for each rank, and then its own slice of the sum.

    Attributes:
        residual_rows: as many times as long as a vector its residual is: 1 where what it loses is to be kept and added
            again, because it is biased without; 0 where nothing is; 2 for `Momentum` alone.
        is_summable: whether payloads that were encoded with the same common seed are vectors of the input's dtype,
            whose sum is the payload of the sum.
    """

    @property
    def residual_rows(self) -> int:
        """See above."""

    @property
    def is_summable(self) -> bool:
        """See above."""

    def room(self, numel: int, dtype: "np.dtype[Any]") -> int:
        """Return the bytes that the payload of `numel` elements takes at most."""

    def encode(self, x: Floats, residual: Floats | None, seeds: Seeds, payload: Payload) -> int:
        """Write the payload of `x`, or of `x + residual`. Local.

        Args:
            x: float32[n] or float64[n], contiguous, left alone.
            residual: of the same dtype, [residual_rows · n], contiguous; its first row becomes what the payload lacks.
                None: that is lost.
            seeds: of this encoding.
            payload: uint8[at least `room`], aligned to 16 bytes; overwritten.

        Returns:
            How many bytes of it are the payload.
        """

    def accumulate(self, payload: Payload, seeds: Seeds, out: Floats) -> None:
        """Add what a payload stands for to `out`. Local.

        Args:
            payload: uint8[as many as `encode` has returned].
            seeds: `common` as it was encoded with.
            out: of the dtype and length of what was encoded; changed in place.

        Raises:
            ValueError: it is no payload of such a vector; `out` may have changed.
        """


def aligned(nbytes: int) -> int:
    """Return `nbytes` rounded up to where the next part of a payload begins."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
