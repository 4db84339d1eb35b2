"""Small integers, each block of elements under a scale of its own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcvol.codecs.codec import Floats, Payload, Seeds, aligned

if TYPE_CHECKING:
    from hpcvol.kernels.quantise import Quantiser

BIASED = ("int8", "int4", "sign", "fp8")
UNBIASED = ("ternary", "qsgd")


@dataclass(frozen=True)
class Quantise:
    """Elements as integers of 8, 4, 2 or 1 bits, and a scale every `block_numel` elements.

    Payload: codes, ceil(n · bits / 8) bytes, then from the next 64th byte on a scale of the vector's dtype a block.

    - "int8", "int4": nearest multiple of the block's largest magnitude over 127 or 7.
    - "fp8": e4m3, the nearest of numbers with 4 bits of mantissa, under the block's largest magnitude.
    - "sign": ± the block's mean magnitude, 1 bit.
    - "ternary": −1, 0 or 1 times the largest magnitude, 2 bits, drawn so that the mean is right (TernGrad).
    - "qsgd": `levels` multiples of the block's norm, drawn so that the mean is right (QSGD).

    Those that draw are unbiased, and lose nothing in the mean without feedback. With it they may diverge: what they
    lose can be larger than what they were given.

    Args:
        kind: one of these.
        feedback: whether what is lost is added to the next step's gradient; None: where the kind is biased.
        levels: of "qsgd", 1 to 127; 1 in 2 bits, up to 7 in 4, more in 8.
        block_numel: elements under one scale, a multiple of 16; smaller blocks, smaller losses and more bytes.

    References:
        As `hpcvol.kernels.quantise`.
    """

    kind: str
    feedback: bool | None = None
    levels: int = 7
    block_numel: int = 256
    is_summable = False

    def __post_init__(self) -> None:
        if self.kind not in BIASED + UNBIASED:
            raise ValueError(f"kind = {self.kind!r}: expected one of {', '.join(BIASED + UNBIASED)}")
        if not 1 <= self.levels <= 127:
            raise ValueError(f"levels = {self.levels}: expected 1 to 127")
        if self.block_numel < 16 or self.block_numel % 16:
            raise ValueError(f"block_numel = {self.block_numel}: expected a multiple of 16")

    @property
    def residual_rows(self) -> int:
        """As `Codec`."""
        return int(self.kind in BIASED if self.feedback is None else self.feedback)

    @property
    def quantiser(self) -> "Quantiser":
        """As kernels take it."""
        from hpcvol.kernels import quantise as kernels

        if self.kind == "qsgd":
            return kernels.qsgd(self.levels, self.block_numel)
        presets = {
            "int8": kernels.INT8,
            "int4": kernels.INT4,
            "fp8": kernels.FLOAT8,
            "sign": kernels.SIGN_MEAN,
            "ternary": kernels.TERNARY,
        }
        return presets[self.kind]._replace(block_numel=self.block_numel)

    def room(self, numel: int, dtype: "np.dtype[Any]") -> int:
        """Codes, and a scale a block."""
        from hpcvol.kernels import quantise as kernels

        quantiser = self.quantiser
        return aligned(kernels.code_nbytes(numel, quantiser)) + kernels.num_blocks(numel, quantiser) * dtype.itemsize

    def encode(self, x: Floats, residual: Floats | None, seeds: Seeds, payload: Payload) -> int:
        """As `Codec.encode`."""
        from hpcvol.kernels import quantise as kernels

        quantiser, used = self.quantiser, self.room(x.size, x.dtype)
        codes, scales = self._parts(payload[:used], x, quantiser)
        if residual is None:
            kernels.encode(x, quantiser, seeds.own, codes, scales)
        else:
            kernels.encode_with_feedback(x, residual, quantiser, seeds.own, codes, scales)
        payload[codes.size : aligned(codes.size)] = 0
        return used

    def accumulate(self, payload: Payload, seeds: Seeds, out: Floats) -> None:
        """As `Codec.accumulate`."""
        from hpcvol.kernels import quantise as kernels

        del seeds
        if payload.size != self.room(out.size, out.dtype):
            raise ValueError(f"a payload of {payload.size} bytes for {out.size} elements of {out.dtype} as {self}")
        quantiser = self.quantiser
        codes, scales = self._parts(payload, out, quantiser)
        kernels.accumulate(codes, scales, quantiser, out)

    def _parts(self, payload: Payload, vector: Floats, quantiser: "Quantiser") -> tuple[Payload, Floats]:
        from hpcvol.kernels import quantise as kernels

        end = kernels.code_nbytes(vector.size, quantiser)
        return payload[:end], payload[aligned(end) :].view(vector.dtype)
