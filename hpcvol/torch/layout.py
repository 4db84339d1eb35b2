"""Where each tensor lies in one flat vector, and how that vector is cut into buckets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

ALIGNMENT = 16  # elements: 64 bytes of float32, 128 of int64; a product's bits can depend on alignment


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
