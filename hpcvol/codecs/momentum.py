"""Momentum before selection, and few elements only after a while: Deep Gradient Compression."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcvol.codecs.codec import Floats, Payload, Seeds
from hpcvol.codecs.sparsify import Sparsify

# Shares during the warm-up begin here and get smaller by the same factor each step.
_FIRST_SHARE = 0.25


@dataclass(frozen=True)
class Momentum:
    """A selection from what momentum has gathered, instead of momentum of what was selected.

    An element that is selected after many steps brings along the momentum of all of them, where an optimizer's own
    would meet their sum as one large gradient. So each rank keeps velocity = momentum · velocity + gradient, and
    selects from the sum of velocities. Where an element was selected its velocity begins anew (momentum factor
    masking). The optimizer has no momentum then: plain SGD.

    The residual is two rows: what was not sent, and the velocity.

    Args:
        selection: "topk" or "threshold", with feedback.
        momentum: at least 0, below 1.
        warm_up_steps: in which the share of "topk" goes from a quarter down to its own; a threshold has none.

    References:
        Lin, Han, Mao, Wang, Dally: Deep gradient compression, ICLR 2018, sections 3.1 to 3.3. Gradients are clipped
        after they are summed here (`optimizer.clip_norm`), not before.
    """

    selection: Sparsify
    momentum: float = 0.9
    warm_up_steps: int = 0
    residual_rows = 2
    is_summable = False

    def __post_init__(self) -> None:
        if self.selection.select == "randomk" or not self.selection.feedback:
            raise ValueError(f"selection = {self.selection}: expected topk or threshold, with feedback")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum = {self.momentum}: expected at least 0, and less than 1")
        if self.warm_up_steps < 0:
            raise ValueError(f"warm_up_steps = {self.warm_up_steps}: expected at least 0")
        if self.warm_up_steps and self.selection.select != "topk":
            raise ValueError(f"warm_up_steps = {self.warm_up_steps}: expected 0, because only topk has a share")

    def at(self, step: int) -> Sparsify:
        """Return what is selected in a step."""
        last = self.selection.amount
        if step >= self.warm_up_steps or last >= _FIRST_SHARE:
            return self.selection
        share = _FIRST_SHARE * (last / _FIRST_SHARE) ** (step / self.warm_up_steps)
        return replace(self.selection, amount=share)

    def room(self, numel: int, dtype: "np.dtype[Any]") -> int:
        """That of the largest share."""
        return max(self.at(step).room(numel, dtype) for step in (0, self.warm_up_steps))

    def encode(self, x: Floats, residual: Floats | None, seeds: Seeds, payload: Payload) -> int:
        """As `Codec.encode`."""
        if residual is None:
            raise ValueError("expected a residual: there is no momentum without")
        unsent, velocity = self._rows(x, residual)
        selection = self.at(seeds.step)
        used = selection.encode(velocity, unsent, seeds, payload)
        indices, _ = selection.decode(payload[:used], seeds, x.size, x.dtype)
        velocity[indices] = 0
        return used

    def accumulate(self, payload: Payload, seeds: Seeds, out: Floats) -> None:
        """As `Codec.accumulate`."""
        self.at(seeds.step).accumulate(payload, seeds, out)

    def decode(
        self, payload: Payload, seeds: Seeds, numel: int, dtype: "np.dtype[Any]"
    ) -> tuple[NDArray[np.int32], Floats]:
        """As `Sparsify.decode`."""
        return self.at(seeds.step).decode(payload, seeds, numel, dtype)

    def add_all(self, x: Floats, residual: Floats) -> None:
        """Replace `x` by all that there is to send: then this is momentum as every optimizer has it. Local."""
        unsent, velocity = self._rows(x, residual)
        np.add(velocity, unsent, out=x)
        unsent.fill(0)

    def _rows(self, x: Floats, residual: Floats) -> tuple[Floats, Floats]:
        """Return what was not sent, and the velocity with `x` in it."""
        unsent, velocity = residual.reshape(2, x.size)
        velocity *= x.dtype.type(self.momentum)
        velocity += x
        return unsent, velocity
