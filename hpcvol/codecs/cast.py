"""Numbers of 16 bits."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpcvol.codecs.codec import Floats, Payload, Seeds

Format = Literal["bfloat16", "float16"]

_NBYTES = 2


@dataclass(frozen=True)
class Cast:
    """Each element rounded to a number of 16 bits, ties to even: 2 bytes an element.

    Args:
        format: "bfloat16" (the range of float32, 8 bits of mantissa) or "float16" (11 bits; beyond 65504 infinity).
        feedback: whether what rounding loses is added to the next step's gradient.
    """

    format: Format
    feedback: bool = False
    is_summable = False

    @property
    def residual_rows(self) -> int:
        """As `Codec`."""
        return int(self.feedback)

    def room(self, numel: int, dtype: "np.dtype[Any]") -> int:
        """Two bytes an element."""
        del dtype
        return _NBYTES * numel

    def encode(self, x: Floats, residual: Floats | None, seeds: Seeds, payload: Payload) -> int:
        """As `Codec.encode`."""
        from hpcvol.kernels import cast

        del seeds
        codes = payload[: _NBYTES * x.size].view(np.uint16)
        if residual is None:
            cast.encode(x, cast.FORMATS[self.format], codes)
        else:
            cast.encode_with_feedback(x, residual, cast.FORMATS[self.format], codes)
        return codes.nbytes

    def accumulate(self, payload: Payload, seeds: Seeds, out: Floats) -> None:
        """As `Codec.accumulate`."""
        from hpcvol.kernels import cast

        del seeds
        if payload.size != _NBYTES * out.size:
            raise ValueError(f"a payload of {payload.size} bytes for {out.size} elements of {_NBYTES} bytes")
        cast.accumulate(payload.view(np.uint16), cast.FORMATS[self.format], out)
