"""A few elements of a vector, with their indices."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcvol.codecs.cast import Cast
from hpcvol.codecs.codec import ALIGNMENT, Floats, Payload, Seeds, aligned
from hpcvol.codecs.quantise import Quantise

SELECTIONS = ("topk", "randomk", "threshold")

_THRESHOLD_SHARE = 8  # with more than n / 8 elements beyond the threshold a codec for all of them is shorter
_BYTE_GAPS = 180  # in the mean: beyond, indices are shorter as numbers of 16 bits


@dataclass(frozen=True)
class Sparsify:
    """Some elements, the others being 0 in this step and in the residual.

    - "topk": the share `amount` of the elements, those of largest magnitude: exactly round(amount · n), at least 1.
    - "randomk": as many, drawn at random, the same ones on all ranks. Indices are not sent. Without feedback they are
      scaled by n / k, which makes them unbiased.
    - "threshold": those with a magnitude of at least `amount`, up to n / 8 of them, of a rank's part of the mean.

    Payload: of "randomk" the values; of others how many (8 bytes), bytes of the gaps (8 bytes), from the 64th byte on
    the values, and from the next 64th byte on the gaps between indices, in bytes (or 16 bits each where the mean gap is
    over 180): about 1.1 (2) bytes an element.

    Args:
        select: one of these.
        amount: a share of the elements, above 0 and up to 1; or a magnitude, at least 0.
        values: what values become; None: they are sent as they are.
        feedback: whether what is not sent is added to the next step's gradient.

    References:
        Stich, Cordonnier, Jaggi: Sparsified SGD with memory, NeurIPS 2018 (top-k, random-k).
        Aji, Heafield: Sparse communication for distributed gradient descent, EMNLP 2017 (threshold).
    """

    select: str
    amount: float
    values: Cast | Quantise | None = None
    feedback: bool = True

    def __post_init__(self) -> None:
        if self.select not in SELECTIONS:
            raise ValueError(f"select = {self.select!r}: expected one of {', '.join(SELECTIONS)}")
        if self.select == "threshold" and not 0 <= self.amount < np.inf:
            raise ValueError(f"amount = {self.amount}: expected a magnitude, 0 or more")
        if self.select != "threshold" and not 0 < self.amount <= 1:
            raise ValueError(f"amount = {self.amount}: expected a share of the elements, above 0 and up to 1")

    @property
    def residual_rows(self) -> int:
        """As `Codec`."""
        return int(self.feedback)

    @property
    def is_summable(self) -> bool:
        """Values at indices that all have in common."""
        return self.select == "randomk" and self.values is None

    def count(self, numel: int) -> int:
        """Return how many of `numel` elements are selected, at most for a threshold."""
        if self.select == "threshold":
            return min(numel, numel // _THRESHOLD_SHARE + 1)
        return min(numel, max(1, round(self.amount * numel)))

    def room(self, numel: int, dtype: "np.dtype[Any]") -> int:
        """Values, and gaps of which each takes an element or passes over many."""
        values = self._values_nbytes(self.count(numel), dtype)
        if self.select == "randomk":
            return values
        from hpcvol.kernels import gaps

        gap = self._gap_type(numel)
        return ALIGNMENT + aligned(values) + int(gap.itemsize) * gaps.room(self.count(numel), numel, gap)

    def encode(self, x: Floats, residual: Floats | None, seeds: Seeds, payload: Payload) -> int:
        """As `Codec.encode`."""
        indices, values = self._selected(x, residual, seeds)
        if self.select == "randomk":
            if residual is None:
                values *= x.dtype.type(x.size / max(1, indices.size))
            if not np.isfinite(x).all():  # what is not selected would stay hidden
                values.fill(np.nan)
            self._put(indices, values, residual, seeds, payload)
            return self._values_nbytes(indices.size, x.dtype)
        from hpcvol.kernels import gaps

        values_nbytes = self._values_nbytes(indices.size, x.dtype)
        begin = ALIGNMENT + aligned(values_nbytes)
        payload[:begin] = 0
        self._put(indices, values, residual, seeds, payload[ALIGNMENT : ALIGNMENT + values_nbytes])
        gap = self._gap_type(x.size)
        room = gaps.room(indices.size, x.size, gap) * gap.itemsize
        used: int = gaps.encode(indices, payload[begin : begin + room].view(gap)) * gap.itemsize
        payload[:16].view(np.int64)[:] = indices.size, used
        return begin + used

    def accumulate(self, payload: Payload, seeds: Seeds, out: Floats) -> None:
        """As `Codec.accumulate`."""
        indices, values = self.decode(payload, seeds, out.size, out.dtype)
        from hpcvol.kernels import sparse

        sparse.add(indices, values, out)

    def decode(
        self, payload: Payload, seeds: Seeds, numel: int, dtype: "np.dtype[Any]"
    ) -> tuple[NDArray[np.int32], Floats]:
        """Return what a payload stands for, as a sparse vector: ascending indices and their values.

        Args:
            payload: uint8[as many as `encode` has returned].
            seeds: `common` as it was encoded with.
            numel: of what was encoded.
            dtype: of what was encoded.

        Raises:
            ValueError: it is no payload of such a vector.
        """
        if self.select == "randomk":
            from hpcvol.kernels.random_k import random_indices

            indices = np.empty(self.count(numel), np.int32)
            random_indices(numel, seeds.common, indices)
            if payload.size != self._values_nbytes(indices.size, dtype):
                raise ValueError(f"a payload of {payload.size} bytes for {numel} elements of {dtype} as {self}")
            return indices, self._taken(payload, indices.size, dtype, seeds)
        from hpcvol.kernels import gaps

        count, used = (int(number) for number in payload[:16].view(np.int64)) if payload.size >= ALIGNMENT else (-1, -1)
        end = ALIGNMENT + self._values_nbytes(max(count, 0), dtype)
        most = self.count(numel)
        counts = range(most + 1) if self.select == "threshold" else (most,)
        if count not in counts or payload.size != aligned(end) + used:
            raise ValueError(f"{payload.size} bytes are no payload of {numel} elements of {dtype} as {self}")
        indices = np.empty(count, np.int32)
        gaps.decode(payload[aligned(end) :].view(self._gap_type(numel)), numel, indices)
        return indices, self._taken(payload[ALIGNMENT:end], count, dtype, seeds)

    def _selected(self, x: Floats, residual: Floats | None, seeds: Seeds) -> tuple[NDArray[np.int32], Floats]:
        indices, values = np.empty(self.count(x.size), np.int32), np.empty(self.count(x.size), x.dtype)
        if self.select == "topk":
            from hpcvol.kernels.top_k import top_k

            top_k(x, residual, seeds.own, indices, values)
        elif self.select == "randomk":
            from hpcvol.kernels.random_k import random_k

            random_k(x, residual, seeds.common, indices, values)
        else:
            from hpcvol.kernels.threshold import threshold

            found = threshold(x, residual, self.amount, indices, values)
            if found == indices.size and not np.isfinite(x).all():  # what there is no room for would stay hidden
                values.fill(np.nan)
            return indices[:found], values[:found]
        return indices, values

    def _values_nbytes(self, count: int, dtype: "np.dtype[Any]") -> int:
        return count * dtype.itemsize if self.values is None else self.values.room(count, dtype)

    def _put(
        self, indices: NDArray[np.int32], values: Floats, residual: Floats | None, seeds: Seeds, payload: Payload
    ) -> None:
        """Write the values; what that loses goes where selection has left 0."""
        if self.values is None:
            payload[: values.nbytes] = values.view(np.uint8)
            return
        used = self.values.encode(values, None, seeds, payload)
        if residual is not None:
            from hpcvol.kernels import sparse

            decoded = np.zeros_like(values)
            self.values.accumulate(payload[:used], seeds, decoded)
            with np.errstate(invalid="ignore"):
                lost = values - decoded
            lost[~np.isfinite(lost)] = 0  # what could not be encoded has told so: its residual begins anew
            sparse.add(indices, lost, residual)

    def _taken(self, payload: Payload, count: int, dtype: "np.dtype[Any]", seeds: Seeds) -> Floats:
        if self.values is None:
            return payload.view(dtype)
        values = np.zeros(count, dtype)
        self.values.accumulate(payload, seeds, values)
        return values

    def _gap_type(self, numel: int) -> "np.dtype[Any]":
        return np.dtype(np.uint8 if numel <= _BYTE_GAPS * self.count(numel) else np.uint16)
