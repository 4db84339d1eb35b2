"""Which buckets are complete while a backward pass still computes the others."""

from collections.abc import Callable, Sequence
from functools import partial

from hpcvol.errors import ModelError
from hpcvol.strategies.layout import Layout


class Readiness:
    """Counts the gradients of one backward pass and pushes each bucket as soon as it and all before it are complete.

    Buckets are pushed in one order, the same on every member, since members combine them in the order of pushing. A
    parameter that a pass does not use completes nothing: its bucket, and those behind it, are pushed when the pass is
    over.

    A parameter may get its gradient in several parts (one that is shared between segments of reentrant activation
    checkpointing). The first pass is only watched, and such a parameter keeps its bucket back from then on.

    Args:
        names: of the parameters, for messages.
        bucket_of: the bucket of each parameter.
        push: called with a bucket's number.
    """

    def __init__(self, names: Sequence[str], bucket_of: Sequence[int], push: Callable[[int], None]) -> None:
        self._names = names
        self._bucket_of = bucket_of
        self._push = push
        self._sizes = [0] * (max(bucket_of, default=-1) + 1)
        for bucket in bucket_of:
            self._sizes[bucket] += 1
        self._in_parts: set[int] = set()
        self._watched = False
        self._last = False
        self._next = 0
        self.begin_step()

    def begin_step(self) -> None:
        """Forget the step before."""
        self._next = 0
        self._begin_pass(last=False)

    def begin_pass(self, *, last: bool) -> None:
        """A backward pass begins; in the step's last one on this member buckets are pushed."""
        self._begin_pass(last=last and self._watched)

    def _begin_pass(self, *, last: bool) -> None:
        self._last = last
        self._seen: set[int] = set()
        self._left = list(self._sizes)

    def arrived(self, index: int) -> None:
        """Parameter `index` has its gradient of this pass, or a further part of it.

        Raises:
            ModelError: a further part, when the bucket was pushed.
        """
        bucket = self._bucket_of[index]
        if index in self._seen:
            self._in_parts.add(index)
            if bucket < self._next:
                raise ModelError(
                    f"parameter {self._names[index]!r} got a part of its gradient after the gradient had been sent: a "
                    "backward pass has to complete each parameter once; give activation checkpointing "
                    "use_reentrant=False"
                )
            return
        self._seen.add(index)
        if not self._last or index in self._in_parts:
            return
        self._left[bucket] -= 1
        while self._next < len(self._left) and self._left[self._next] == 0:
            self._push(self._next)
            self._next += 1

    def end_pass(self) -> None:
        """The pass is over: from now on it is known which parameters get gradients in parts."""
        self._watched = True
        self._last = False

    def push_rest(self) -> None:
        """Push every bucket that was not: the step's units are all computed."""
        while self._next < len(self._sizes):
            self._push(self._next)
            self._next += 1


def in_one_order(
    names: Sequence[str], sums: Sequence[tuple[Sequence[int], Layout, Callable[[int], None]]]
) -> Readiness:
    """Return the readiness of parameters of several sums, whose buckets are pushed one sum after the other.

    Args:
        names: of all parameters.
        sums: for each its parameters (by place in `names`), their layout, and what pushes one of its buckets.
    """
    bucket_of = [0] * len(names)
    pushes: list[Callable[[], None]] = []
    for indices, layout, push in sums:
        for index, bucket in zip(indices, layout.bucket_of, strict=True):
            bucket_of[index] = len(pushes) + bucket
        # Tensors without elements are of bucket 0 where there is none.
        pushes += [partial(push, bucket) for bucket in range(max(len(layout.buckets), 1))]
    return Readiness(names, bucket_of, lambda bucket: pushes[bucket]())
