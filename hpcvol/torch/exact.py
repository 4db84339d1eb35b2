"""The exact sum of a step: weighted tensors of all units, added in fixed point, read back as a weighted mean.

For tensor t with exponent e, unit u adds q = rint(weight_u · x_u · 2^e), and the mean is Σ q / 2^e / Σ weight.

Exponents. After a step is committed a tensor's exponent is set so that the step's largest |weight · x| would land
between 2^(LIMIT - HEADROOM_BITS - 1) and 2^(LIMIT - HEADROOM_BITS), where 2^LIMIT = 2^62 / units a step. It is one
number a tensor, a function of the data alone, so neither buckets nor ranks nor order can change a bit. A tensor without
history has DEFAULT_EXPONENT.

Another pass. A unit whose largest |weight · x| · 2^e reaches 2^62 / units, or a tensor whose largest is below
2^LEAST_BITS in all units and would be coarse, makes the step be computed again at the exponent that the step's maximum
asks for. Units are pure, so the second maximum is the first.

Error. Each unit is rounded once: |mean - exact mean| ≤ units · 2^(-e-1) / Σ weight, then one rounding to the tensor's
dtype. With e from history that is at most units · M · 2^(HEADROOM_BITS - LIMIT) / Σ weight, M being the last step's
largest |weight · x|: for 8 units 2^-46 of the largest term, where adding in float32 loses up to 2^-24 of each term. In
any case it is below units · 2^-LEAST_BITS / Σ weight of the step's own largest term. For float64 tensors the product
with a weight, the sum read as a double and the division are rounded too: up to 2^-51 of Σ weight · |x| / Σ weight more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvol.errors import CheckpointError, ModelError
from hpcvol.kernels import fixed_point
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.reducer import Terms
from hpcvol.torch.layout import Layout

DEFAULT_EXPONENT = 40
HEADROOM_BITS = 10
LEAST_BITS = 32
_LARGEST_EXPONENT = 900
_NUMPY: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_ABSENT = -1.0  # below any magnitude: no unit had this tensor


@dataclass(frozen=True)
class Term:
    """One tensor that is summed: a parameter's gradient or a buffer's change."""

    name: str
    numel: int


class ExactSum:
    """Accumulates the terms of this worker's units, then sums over all workers.

    A step is `reset`, `add` for each term of each unit, `push` for each bucket, `agree`, and `finish` if that is true,
    `drop` if it is not; then `commit`.

    Args:
        terms: the tensors, in an order that is the same on every member.
        units_per_step: units of a full step, which bounds how many terms are ever added.
        strategy: combines vectors over ranks.
        device: where terms are and sums are kept.
        dtype: of the means, torch.float32 or torch.float64.

    Attributes:
        layout: where terms lie, and in which bucket.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        units_per_step: int,
        strategy: AllReduce,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._terms = list(terms)
        self._strategy = strategy
        self._limit = 62 - max(0, math.ceil(math.log2(units_per_step)))
        self.layout = Layout.of([term.numel for term in self._terms], strategy.bucket_nbytes // dtype.itemsize)
        self._reducer = strategy.exact(self.layout.numel, _NUMPY[dtype], self.layout.buckets)
        on_cpu = device.type == "cpu"
        totals, means = torch.from_numpy(self._reducer.totals), torch.from_numpy(self._reducer.means)
        self._total = totals if on_cpu else torch.zeros_like(totals, device=device)
        self._means = means if on_cpu else torch.zeros_like(means, device=device)
        self._slices = [self._part(self._total, index) for index in range(len(self._terms))]
        self._arrays: list[NDArray[np.int64]] = [part.numpy() for part in self._slices] if on_cpu else []
        self._largest = np.full(len(self._terms), _ABSENT)
        self._exponents = np.full(len(self._terms), DEFAULT_EXPONENT, np.int64)

    def reset(self) -> None:
        """Forget every unit of this step."""
        self._total.zero_()
        self._largest.fill(_ABSENT)

    def add(self, index: int, values: torch.Tensor, weight: int) -> None:
        """Add `weight · values` of one unit to term `index`. Local.

        Args:
            index: position in `terms`.
            values: floating point, any shape of `numel` elements, on the device of the sum; left alone.
            weight: positive.
        """
        scale = math.ldexp(float(weight), int(self._exponents[index]))
        flat = _flat(values.detach())
        if self._arrays:
            largest = weight * fixed_point.accumulate(flat.numpy(), scale, self._arrays[index])
        else:
            largest = weight * accumulate_in_torch(flat, scale, self._slices[index])
        # np.maximum keeps NaN where max() would drop it; it has to reach every member.
        self._largest[index] = np.maximum(self._largest[index], largest)

    def push(self, bucket: int) -> None:
        """Say that this worker adds no more to a bucket of `layout`. Local."""
        self._reducer.push(bucket)

    def push_all(self) -> None:
        """Say that this worker adds no more to any bucket. Local."""
        for bucket in range(len(self.layout.buckets)):
            self.push(bucket)

    def agree(self) -> bool:
        """Find over all ranks whether the step's sums can be used. Collective.

        Returns:
            False when a term overflowed or was coarse: exponents are set to what its maximum asks for, and all units
            of the step must be added again after `drop`.

        Raises:
            ModelError: a term is not finite; raised on every member, with the first such name.
        """
        # The bit patterns of non-negative doubles are ordered as integers are, with infinity and NaN above the rest.
        bits = np.where(self._largest == _ABSENT, -1, np.abs(self._largest).view(np.int64))
        self._strategy.max(bits)
        self._largest = np.where(bits < 0, _ABSENT, np.maximum(bits, 0).view(np.float64))
        bad = np.flatnonzero(~np.isfinite(self._largest))
        if bad.size:
            raise NonFiniteSumError(self._terms[int(bad[0])].name, float(self._largest[bad[0]]))
        pairs = zip(self._largest, self._exponents, strict=True)
        wanted = [int(e) if self._fits(float(x), int(e)) else self._exponent_for(float(x)) for x, e in pairs]
        if np.array_equal(wanted, self._exponents):
            return True
        self._exponents[:] = wanted
        return False

    def present(self, index: int) -> bool:
        """Whether any unit of any worker added to term `index`; known after `agree`."""
        return bool(self._largest[index] != _ABSENT)

    def finish(self, weight: int) -> None:
        """Make `means` hold Σ weight·x / Σ weight of every term; `weight` is the step's Σ weight. Collective."""
        if self._arrays or not self._terms:
            self._reducer.finish(self._places(), weight)
            return
        self._reducer.totals[:] = self._total.cpu().numpy()
        self._reducer.finish(self._places(), weight)
        self._means.copy_(torch.from_numpy(self._reducer.means))

    def drop(self) -> None:
        """Forget the sums that were pushed. Collective."""
        self._reducer.drop()

    def mean(self, index: int) -> torch.Tensor:
        """Return the mean of term `index`, float32 or float64[numel]: a view that is new after every `finish`."""
        return self._part(self._means, index)

    def commit(self) -> None:
        """Make the step's magnitudes the history that the next step's exponents follow from; `reset` comes next."""
        for i, largest in enumerate(self._largest):
            if largest > 0:
                self._exponents[i] = self._exponent_for(float(largest))

    def exponents(self) -> dict[str, int]:
        """Return the exponent of every term by name: with the parameters, all that a checkpoint needs."""
        return {term.name: int(e) for term, e in zip(self._terms, self._exponents, strict=True)}

    def load_exponents(self, exponents: Mapping[str, int]) -> None:
        """Take up exponents from a checkpoint.

        Raises:
            CheckpointError: the names are not those of this model.
        """
        names = [term.name for term in self._terms]
        if set(exponents) != set(names):
            odd = sorted(set(exponents) ^ set(names))[0]
            raise CheckpointError(
                f"the checkpoint's exponents and the model disagree about tensor {odd!r}: another model?"
            )
        self._exponents[:] = [exponents[name] for name in names]

    def _part(self, flat: torch.Tensor, index: int) -> torch.Tensor:
        start = self.layout.starts[index]
        return flat[start : start + self.layout.numels[index]]

    def _places(self) -> Terms:
        return Terms(
            np.array(self.layout.starts, np.int64),
            np.array(self.layout.numels, np.int64),
            np.ldexp(1.0, self._exponents),
        )

    def _fits(self, largest: float, exponent: int) -> bool:
        return largest <= 0 or LEAST_BITS < math.frexp(largest)[1] + exponent <= self._limit

    def _exponent_for(self, largest: float) -> int:
        return min(self._limit - HEADROOM_BITS - math.frexp(largest)[1], _LARGEST_EXPONENT)


class NonFiniteSumError(ModelError):
    """A term of the sum is infinite or not a number."""

    def __init__(self, name: str, value: float) -> None:
        self.name = name
        self.value = value
        super().__init__(f"{name} is not finite", everywhere=True)


def _flat(values: torch.Tensor) -> torch.Tensor:
    """Return `values` as a contiguous vector of float32 or float64: itself where it is one."""
    if values.layout != torch.strided:
        values = values.to_dense()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return values.reshape(-1).contiguous()


def accumulate_in_torch(flat: torch.Tensor, scale: float, total: torch.Tensor) -> float:
    """`hpcvol.kernels.fixed_point.accumulate` in torch's own operations, on any device: the same integers."""
    total.add_(torch.round(flat.double() * scale).to(torch.int64))
    return float(flat.abs().max()) if flat.numel() else 0.0
