"""Where each tensor lies in one flat vector, and how that vector is cut into buckets and portions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hpcvol.kernels.fixed_point import GRAIN_NUMEL

ALIGNMENT = 16  # elements: 64 bytes of float32, 128 of int64; a product's bits can depend on alignment


@dataclass(frozen=True)
class Piece:
    """Neighbouring elements of one tensor.

    Attributes:
        tensor: its place in the order of the tensors.
        start: first element, from the tensor's beginning.
        stop: behind the last one.
        place: of the first one in the flat vector.
    """

    tensor: int
    start: int
    stop: int
    place: int


@dataclass(frozen=True)
class Layout:
    """Places of tensors in a flat vector, last tensor first, since backward passes reach the last ones first.

    Attributes:
        starts: first element of each tensor, in the order of the tensors.
        numels: elements of each tensor.
        numel: elements of the flat vector.
        buckets: (start, stop) of neighbouring tensors that are combined together; the first ones are ready first.
        bucket_of: the bucket of each tensor.
    """

    starts: tuple[int, ...]
    numels: tuple[int, ...]
    numel: int
    buckets: tuple[tuple[int, int], ...]
    bucket_of: tuple[int, ...]

    def gaps(self) -> Iterator[slice]:
        """Yield the elements that belong to no tensor."""
        ends = sorted((start, start + numel) for start, numel in zip(self.starts, self.numels, strict=True))
        for (_, end), (following, _) in pairwise([*ends, (self.numel, self.numel)]):
            if end < following:
                yield slice(end, following)

    def portions(self, number: int) -> tuple[tuple[slice, ...], ...]:
        """Cut every bucket into `number` portions of neighbours, so that all that is numbered alike is as long.

        Cuts are at multiples of GRAIN_NUMEL elements of a tensor: element-wise optimizers come to the same bits there,
        and a norm can be added up.

        Returns:
            By portion, by bucket.
        """
        cuts = np.unique(
            np.concatenate(
                [
                    np.arange(start, start + max(numel, 1), GRAIN_NUMEL)
                    for start, numel in zip(self.starts, self.numels, strict=True)
                ]
                or [np.zeros(0, np.int64)]
            )
        )
        given = np.zeros(number)
        found: list[list[slice]] = [[] for _ in range(number)]
        for start, stop in self.buckets:
            # What each would have by the end of this bucket, if cuts could be anywhere, less what it has.
            due = np.maximum(stop / number - given, 0.0)
            inside = cuts[np.searchsorted(cuts, start) : np.searchsorted(cuts, stop)]
            ends = start + np.cumsum(due) * ((stop - start) / due.sum())
            begin = start
            for portion in range(number):
                end = stop if portion == number - 1 else max(begin, _nearest(inside, float(ends[portion]), stop))
                found[portion].append(slice(begin, end))
                given[portion] += end - begin
                begin = end
        return tuple(map(tuple, found))

    def pieces(self, part: slice) -> list[Piece]:
        """Return what of the tensors lies in `part` of the flat vector, in their order."""
        found = []
        for tensor, (begin, numel) in enumerate(zip(self.starts, self.numels, strict=True)):
            start, stop = max(begin, part.start), min(begin + numel, part.stop)
            if start < stop:
                found.append(Piece(tensor, start - begin, stop - begin, start))
        return found

    @classmethod
    def of(cls, numels: Sequence[int], bucket_numel: int) -> "Layout":
        """Lay out tensors of `numels` elements in buckets of `bucket_numel` elements or more."""
        starts, bucket_of = [0] * len(numels), [0] * len(numels)
        buckets: list[tuple[int, int]] = []
        begin = end = 0
        for index in reversed(range(len(numels))):
            starts[index], bucket_of[index] = end, len(buckets)
            end += -(-numels[index] // ALIGNMENT) * ALIGNMENT
            if end - begin >= bucket_numel:
                buckets.append((begin, end))
                begin = end
        if end > begin:
            buckets.append((begin, end))
        elif buckets:  # tensors without elements at the end of the vector belong to the last bucket
            bucket_of = [min(bucket, len(buckets) - 1) for bucket in bucket_of]
        return cls(tuple(starts), tuple(numels), end, tuple(buckets), tuple(bucket_of))


def _nearest(cuts: NDArray[np.int64], wanted: float, end: int) -> int:
    """Return which of `cuts` (ascending) or `end` is the nearest to `wanted`."""
    after = int(np.searchsorted(cuts, wanted))
    around = [*cuts[max(after - 1, 0) : after + 1].tolist(), end]
    return int(min(around, key=lambda cut: abs(cut - wanted)))
