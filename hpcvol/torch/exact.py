"""The exact sum of a step: weighted tensors of all units, added in fixed point, read back as a weighted mean.

Each block of BLOCK_NUMEL neighbouring elements of a tensor has an exponent e. Unit u adds rint(weight_u · x_u · 2^e) to
each element q, and the mean is q / 2^e / Σ weight.

Exponents. After a step is committed a block's exponent is set so that the step's largest |weight · x| in it would land
between 2^(TARGET - 1) and 2^TARGET. It is a function of the data alone, a block begins where its tensor begins, and so
neither buckets nor ranks nor order can change a bit. A block that was all zeros keeps its exponent; one that never was
anything else has the smallest of its tensor's, and a tensor without history has DEFAULT_EXPONENT.

How fine. TARGET is 29 - log2(units a step) / 2 for tensors whose means are float32: the sum of a step's units then fits
into 32 bits, with two to spare where units' signs are random, so that hosts can send each other as many bytes as they
would of float32. That is a matter of speed alone: sums are kept, and travel where they have to, in 64 bits. For float64
means TARGET is 52 - log2(units a step).

Another pass. A unit whose largest |weight · x| · 2^e reaches 2^62 / units, or a tensor whose largest stays below
2^LEAST_BITS in all units (2^FIRST_BITS without history) and would be coarse, makes the step be computed again at the
exponents that the step's maxima ask for. Units are pure, so the second maxima are the first.

Error. Each unit is rounded once: |mean - exact mean| ≤ units · 2^(-e-1) / Σ weight, then one rounding to the mean's
dtype. With e from history that is at most units · M · 2^-TARGET / Σ weight, M being the last step's largest
|weight · x| of the block: for 8 units 2^-27 of the largest mean that a unit had, where adding in float32 loses up to
2^-24 of each term. For float64 means the product with a weight, the sum read as a double and the division are rounded
too: up to 2^-51 of Σ weight · |x| / Σ weight more.
"""

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpcvol.errors import CheckpointError, ModelError
from hpcvol.kernels import fixed_point
from hpcvol.kernels.fixed_point import BLOCK_NUMEL, INFINITE, NOT_A_NUMBER, ZERO
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.memory import Memory
from hpcvol.strategies.reducer import Blocks

DEFAULT_EXPONENT = 40
_LARGEST_EXPONENT = 900
_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
_LEAST_BITS = {torch.float32: 16, torch.float64: 32}
_FIRST_BITS = {torch.float32: 24, torch.float64: 32}
_NONE = -(2**15)  # a block without history; exponents are kept in 16 bits


def target_bits(units_per_step: int, dtype: torch.dtype) -> int:
    """Return TARGET for means of `dtype`: as many bits are kept of a block's largest element."""
    bits = math.log2(units_per_step)
    return 29 - math.ceil(bits / 2) if dtype == torch.float32 else 52 - math.ceil(bits)


@dataclass(frozen=True)
class Term:
    """One tensor that is summed: a parameter's gradient or a buffer's change."""

    name: str
    numel: int


class ExactSum:
    """Accumulates the terms of this worker's units, then sums over all workers.

    A step is `reset`, `add` for each term of each unit, `push` for each bucket, `agree`, and `finish` if that is true,
    `drop` if it is not; then `commit`. Up to `commit` nothing that was added is lost: where a member dies in `agree` or
    `finish`, units that it had are added by others after `rebuild`, every bucket is pushed again, and so on.

    Args:
        terms: the tensors, in an order that is the same on every member.
        units_per_step: units of a full step, which bounds how many terms are ever added.
        strategy: combines vectors over ranks.
        device: where terms are and sums are kept.
        dtype: of the means, torch.float32 or torch.float64.

    Attributes:
        layout: where terms lie, and in which bucket.
        reducer: what sums over ranks; another one after `rebuild`.
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
        self._limit = 62 - math.ceil(math.log2(units_per_step))
        self._target = target_bits(units_per_step, dtype)
        self._least, self._first = _LEAST_BITS[dtype], _FIRST_BITS[dtype]
        self.layout = Layout.of([term.numel for term in self._terms], strategy.bucket_nbytes // dtype.itemsize)
        self._memory = Memory(self.layout.numel, np.dtype(np.int64)), Memory(self.layout.numel, _NUMPY[dtype])
        self.reducer = strategy.exact(self.layout, *self._memory)
        totals, means = torch.from_numpy(self.reducer.totals), torch.from_numpy(self.reducer.means)
        self._on_cpu = device.type == "cpu"
        self._total = totals if self._on_cpu else torch.zeros_like(totals, device=device)
        self._means = means if self._on_cpu else torch.zeros_like(means, device=device)
        self._slices = [self._part(self._total, index) for index in range(len(self._terms))]
        self._cut = _Cut.of(self.layout)
        # First which terms were added to at all (0 or 1), then the blocks' magnitudes; combined by one maximum.
        self._found = np.zeros(len(self._terms) + self._cut.number, np.int32)
        self._used, self._magnitudes = np.split(self._found, [len(self._terms)])
        # The same of all workers, as agreed upon last.
        self._used_by_all, self._magnitudes_of_all = self._used, self._magnitudes
        self._history = np.full(self._cut.number, _NONE, np.int32)
        self._use_exponents(self._cut.with_defaults(self._history))
        self.reset()

    def rebuild(self) -> None:
        """Sum over the members that there are now; what this worker added stays. Collective."""
        self._use_exponents(self._of_units)  # others may have been agreed upon by members that did not all go on
        self.reducer = self._strategy.exact(self.layout, *self._memory)

    def reset(self) -> None:
        """Forget every unit of this step."""
        self._of_units = self._exponents
        self._total.zero_()
        self._used.fill(0)
        self._magnitudes.fill(ZERO)

    def add(self, index: int, values: torch.Tensor, weight: int) -> None:
        """Add `weight · values` of one unit to term `index`. Local.

        Args:
            index: position in `terms`.
            values: floating point, any shape of `numel` elements, on the device of the sum; left alone.
            weight: positive.
        """
        flat = _flat(values.detach())
        blocks = self._cut.blocks_of(index)
        if self._on_cpu:
            total = self._slices[index].numpy()
            fixed_point.accumulate(flat.numpy(), self._scales[blocks], weight, total, self._magnitudes[blocks])
        else:
            accumulate_in_torch(flat, self._scales[blocks], weight, self._slices[index], self._magnitudes[blocks])
        self._used[index] = 1

    def begin_unit(self) -> None:
        """Keep what is added from here on apart, up to `take_unit` or `forget_unit`. Local."""
        self._apart = torch.zeros_like(self._total)
        self._found_before = self._found.copy()
        self._slices = [self._part(self._apart, index) for index in range(len(self._terms))]

    def take_unit(self) -> NDArray[np.int64]:
        """Add what was kept apart; return its integers. Local."""
        self._slices = [self._part(self._total, index) for index in range(len(self._terms))]
        self._total.add_(self._apart)
        return self._apart.cpu().numpy()

    def forget_unit(self) -> NDArray[np.int64]:
        """Leave the sum as it was at `begin_unit`; return the integers of what was kept apart. Local."""
        self._slices = [self._part(self._total, index) for index in range(len(self._terms))]
        self._found[:] = self._found_before
        return self._apart.cpu().numpy()

    def push(self, bucket: int) -> None:
        """Say that this worker adds no more to a bucket of `layout`. Local."""
        if self._on_cpu:
            self.reducer.push(bucket)

    def push_all(self) -> None:
        """Say that this worker adds no more to any bucket. Local."""
        for bucket in range(len(self.layout.buckets)):
            self.push(bucket)

    def agree(self) -> bool:
        """Find over all ranks whether the step's sums can be used. Collective.

        Returns:
            False when a term overflowed or was coarse: all units of the step must be added again after `drop`, which
            sets exponents to what the step's maxima ask for.

        Raises:
            ModelError: a term is not finite; raised on every member, with the first such name.
        """
        found = self._found.copy()
        self._strategy.max(found)
        self._used_by_all, self._magnitudes_of_all = np.split(found, [len(self._terms)])
        magnitudes = self._magnitudes_of_all
        bad = np.flatnonzero(magnitudes >= INFINITE)
        if bad.size:
            value = math.nan if magnitudes[bad[0]] == NOT_A_NUMBER else math.inf
            raise NonFiniteSumError(self._terms[int(self._cut.term_of[bad[0]])].name, value)
        self._wanted_exponents = self._wanted(magnitudes)
        return np.array_equal(self._wanted_exponents, self._exponents)

    def present(self, index: int) -> bool:
        """Whether any unit of any worker added to term `index`; known after `agree`."""
        return bool(self._used_by_all[index])

    def finish(self, weight: int) -> None:
        """Make `mean` give Σ weight·x / Σ weight of every term; `weight` is the step's Σ weight. Collective."""
        blocks = Blocks(
            self._cut.starts[self._cut.order], self._cut.numels[self._cut.order], self._scales[self._cut.order]
        )
        if self._on_cpu:
            self.reducer.finish(blocks, weight)
            return
        self.reducer.totals[:] = self._total.cpu().numpy()
        for bucket in range(len(self.layout.buckets)):
            self.reducer.push(bucket)
        self.reducer.finish(blocks, weight)
        self._means.copy_(torch.from_numpy(self.reducer.means))

    def drop(self) -> None:
        """Forget the sums that were pushed, and take up the exponents that `agree` found. Collective."""
        if self._on_cpu:
            self.reducer.drop()
        self._use_exponents(self._wanted_exponents)

    def mean(self, index: int) -> torch.Tensor:
        """Return the mean of term `index`, float32 or float64[numel]: a view that is new after every `finish`."""
        return self._part(self._means, index)

    def commit(self) -> None:
        """Make the step's magnitudes the history that the next step's exponents follow from; `reset` comes next."""
        seen = self._magnitudes_of_all > ZERO
        self._history[seen] = self._asked_for(self._magnitudes_of_all[seen])
        self._use_exponents(self._cut.with_defaults(self._history))
        self._of_units = self._exponents

    def exponents(self) -> dict[str, str]:
        """Return the blocks' exponents of every term, packed, by name: with the parameters, all a checkpoint needs."""
        return {term.name: _pack(self._history[self._cut.blocks_of(index)]) for index, term in enumerate(self._terms)}

    def load_exponents(self, exponents: Mapping[str, str]) -> None:
        """Take up exponents from a checkpoint.

        Raises:
            CheckpointError: they are not of this model.
        """
        names = {term.name for term in self._terms}
        if set(exponents) != names:
            raise _of_another_model(min(set(exponents) ^ names))
        for index, term in enumerate(self._terms):
            blocks = self._cut.blocks_of(index)
            found = _unpack(exponents[term.name])
            if found.size != blocks.stop - blocks.start:
                raise _of_another_model(term.name)
            self._history[blocks] = found
        self._use_exponents(self._cut.with_defaults(self._history))
        self._of_units = self._exponents

    def _wanted(self, magnitudes: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the exponents that the agreed magnitudes ask for: the present ones where those will do."""
        seen = magnitudes > ZERO
        kept = magnitudes + self._exponents
        wanted = self._exponents.copy()
        over = seen & (kept > self._limit)
        wanted[over] = self._asked_for(magnitudes[over])
        largest = self._cut.largest_by_term(np.where(seen, kept, ZERO))
        least = np.where(self._cut.largest_by_term(self._history) == _NONE, self._first, self._least)
        coarse = (largest > ZERO) & (largest < least)
        if coarse.any():
            asked = np.where(seen, magnitudes, self._cut.largest_by_term(magnitudes)[self._cut.term_of])
            again = coarse[self._cut.term_of]
            wanted[again] = self._asked_for(asked[again])
        return wanted

    def _asked_for(self, magnitudes: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.minimum(self._target - magnitudes, _LARGEST_EXPONENT)

    def _use_exponents(self, exponents: NDArray[np.int64]) -> None:
        self._exponents = self._wanted_exponents = exponents
        self._scales = np.ldexp(1.0, exponents)

    def _part(self, flat: torch.Tensor, index: int) -> torch.Tensor:
        start = self.layout.starts[index]
        return flat[start : start + self.layout.numels[index]]


@dataclass(frozen=True)
class _Cut:
    """Terms cut into blocks: where each block lies in the flat vector, and which term it is of."""

    starts: NDArray[np.int64]
    numels: NDArray[np.int64]
    term_of: NDArray[np.int64]
    first: NDArray[np.int64]  # int64[terms + 1], the first block of each term
    order: NDArray[np.int64]  # the blocks in the order in which they lie

    @classmethod
    def of(cls, layout: Layout) -> "_Cut":
        counts = -(-np.array(layout.numels, np.int64) // BLOCK_NUMEL)
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        term_of = np.repeat(np.arange(len(counts)), counts)
        offsets = (np.arange(first[-1]) - first[term_of]) * BLOCK_NUMEL
        numels = np.minimum(np.array(layout.numels, np.int64)[term_of] - offsets, BLOCK_NUMEL)
        starts = np.array(layout.starts, np.int64)[term_of] + offsets
        return cls(starts, numels, term_of, first, np.argsort(starts))

    @property
    def number(self) -> int:
        return len(self.starts)

    def blocks_of(self, term: int) -> slice:
        return slice(int(self.first[term]), int(self.first[term + 1]))

    def largest_by_term(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the largest of each term's blocks; the smallest number for a term without elements."""
        largest = np.full(len(self.first) - 1, np.iinfo(values.dtype).min, values.dtype)
        np.maximum.at(largest, self.term_of, values)
        return largest

    def with_defaults(self, history: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return exponents for all blocks, those without history included."""
        known = history != _NONE
        smallest = -self.largest_by_term(np.where(known, -history, _NONE))
        default = np.where(smallest == -_NONE, DEFAULT_EXPONENT, smallest)
        return np.where(known, history, default[self.term_of]).astype(np.int64)


class NonFiniteSumError(ModelError):
    """A term of the sum is infinite or not a number."""

    def __init__(self, name: str, value: float) -> None:
        self.name = name
        self.value = value
        super().__init__(f"{name} is not finite", everywhere=True)


def _of_another_model(name: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's exponents and the model disagree about tensor {name!r}: another model?")


def _pack(exponents: NDArray[np.int32]) -> str:
    return base64.b64encode(zlib.compress(exponents.astype("<i2").tobytes())).decode()


def _unpack(packed: str) -> NDArray[np.int16]:
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(packed, validate=True)), "<i2")
    except (ValueError, zlib.error) as error:
        raise CheckpointError(f"the checkpoint's exponents cannot be read: {error}") from None


def _flat(values: torch.Tensor) -> torch.Tensor:
    """Return `values` as a contiguous vector of float32 or float64: itself where it is one."""
    if values.layout != torch.strided:
        values = values.to_dense()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return values.reshape(-1).contiguous()


def accumulate_in_torch(
    flat: torch.Tensor, scales: NDArray[np.float64], weight: float, total: torch.Tensor, magnitudes: NDArray[np.int32]
) -> None:
    """`hpcvol.kernels.fixed_point.accumulate` in torch's own operations, on any device: the same integers."""
    padded = torch.nn.functional.pad(flat, (0, scales.size * BLOCK_NUMEL - flat.numel())).view(scales.size, BLOCK_NUMEL)
    scaled = padded.double() * (torch.from_numpy(scales).to(flat.device) * weight)[:, None]
    total.add_(torch.round(scaled).to(torch.int64).view(-1)[: flat.numel()])
    if flat.numel():
        largest = padded.abs().amax(1).double() * weight  # NaN wins
        found = torch.frexp(largest)[1].cpu().numpy()
        values = largest.cpu().numpy()
        found = np.select([np.isnan(values), np.isinf(values), values == 0], [NOT_A_NUMBER, INFINITE, ZERO], found)
        np.maximum(magnitudes, found.astype(np.int32), out=magnitudes)
