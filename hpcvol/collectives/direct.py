"""All-reduce of vectors that lie in memory which the ranks of a node share: combined in place, nothing is copied."""

from typing import Any

import numpy as np

from hpcvol.collectives.rendezvous import compiled, go_on, ops_of
from hpcvol.comm.calls import Call
from hpcvol.comm.group import Group
from hpcvol.comm.shared_memory import SharedMemory, allocate
from hpcvol.comm.vectors import Vector


class SharedVector:
    """One vector a rank, of the same length and dtype, which all ranks of a node can read and write. Made by `share`.

    The address of this rank's vector never changes, so that views of it (gradients) stay valid, also when the other
    ranks change (`with_peers_of`).

    Attributes:
        mine: this rank's vector, 64-byte aligned, zero at first.
        of: the vectors of all ranks of the node, by node rank.
        addresses: int64[ranks of the node], where each of `of` begins in this process.
        node: the ranks of the node.
    """

    def __init__(self, group: Group, memory: SharedMemory, dtype: "np.dtype[Any]") -> None:
        from hpcvol.kernels import combine, direct

        self.node = group.node
        self.of: tuple[Vector, ...] = tuple(part.view(dtype) for part in memory.of)
        self.mine: Vector = self.of[self.node.rank]
        self.addresses = memory.addresses
        self._memory = memory
        self._calls = self.node.calls  # kept beyond the group's end: kernels write to its board
        self._plan = direct.plan_of(self.node.rank, self._calls.addresses, memory.addresses)
        self._plan_address: int = self._plan.ctypes.data
        self._kernels = direct
        self._combine = combine.combine
        self._kind = combine.KINDS[dtype.name]
        self._allreduce = direct.ALLREDUCE[dtype.name]
        self._finished = direct.FINISHED
        self._numel = self.mine.size
        self._size = self.node.size
        self._codes = {op: Call.of("allreduce", dtype, 0, op).code for op in ops_of(dtype)}
        self._part = slice(0, 0)

    def allreduce(self, op: str = "sum", start: int = 0, stop: int | None = None, divisor: int | None = None) -> None:
        """Replace the elements `start` to `stop` of all vectors by their `op` over the node. Collective, in place.

        Each rank combines its slice of all vectors in the order of ranks, and writes it to all of them: the same bits
        on all ranks, and for the same vectors the same bits every time. A rank reads and writes as many elements as the
        vector has, and sends nothing.

        Args:
            op: "sum", "min", "max", "product", and where the dtype is of floats "mean".
            start: the same on all ranks, as `stop` is.
            stop: the end of the vector where it is not given.
            divisor: what a mean divides the sum by, the same on all ranks; the number of ranks where it is not given.

        Raises:
            MismatchError: another rank is in another call, or gave another length or op.
            MemberError: another rank has died.
            ValueError: there are no such elements, or no such op.
        """
        if stop is None:
            stop = self._numel
        if not 0 <= start <= stop <= self._numel or op not in self._codes:
            raise self._refusal(op, start, stop)
        code, address, kernel = self._codes[op], self._plan_address, self._allreduce
        by = self._size if divisor is None else divisor
        stage = kernel(address, code, by, start, stop, 0)
        if stage != self._finished:
            go_on(self.node, stage, lambda at: kernel(address, code, by, start, stop, at), self._finished)

    def reduce_slice(
        self, op: str = "sum", start: int = 0, stop: int | None = None, num_slices: int | None = None
    ) -> Vector:
        """Combine this rank's slice of all vectors into its own vector: the first half of an all-reduce. Collective.

        Between the two halves only the owner of a slice may touch it, and only its own vector: others still read their
        slices of that. `spread_slice` comes next.

        Args:
            op: as for `allreduce`.
            start: as for `allreduce`.
            stop: as for `allreduce`.
            num_slices: the first so many ranks of the node have a slice; all where it is not given.

        Returns:
            The slice, a view of `mine`; empty on ranks that have none.

        Raises:
            MismatchError, MemberError, ValueError: as `allreduce`.
        """
        stop = self._numel if stop is None else stop
        if not 0 <= start <= stop <= self._numel or op not in self._codes:
            raise self._refusal(op, start, stop)
        self.arrive(Call.of("allreduce", self.mine.dtype, stop - start, op))
        self._part = self.slice_of(self.node.rank, start, stop, num_slices)
        size, itemsize = self.node.size, self.mine.itemsize
        vectors = self._plan_address + 8 * (2 + size)
        own = vectors + 8 * self.node.rank
        part = self._part
        low, high = part.start * itemsize, part.stop * itemsize
        self._combine(self._kind, self._codes[op] & 15, vectors, size, own, 1, size, low, high)
        return self.mine[part]

    def spread_slice(self) -> None:
        """Copy this rank's slice to the vectors of all ranks, and wait until all have: the second half. Collective."""
        for vector in self.of:
            if vector is not self.mine:
                vector[self._part] = self.mine[self._part]
        self.depart()

    def slice_of(self, rank: int, start: int, stop: int, num_slices: int | None = None) -> slice:
        """Return which elements of `start` to `stop` the node's `rank` combines. Local."""
        count = self.node.size if num_slices is None else num_slices
        if rank >= count:
            return slice(stop, stop)
        size = self.mine.itemsize
        low, high = self._kernels.slice_of(start * size, stop * size, rank, count)
        return slice(low // size, high // size)

    def arrive(self, call: Call) -> None:
        """Enter `call` and wait for all ranks of the node to be in it: what they wrote can be read. Collective."""
        kernels, address, fingerprint = self._kernels, self._plan_address, call.fingerprint
        wait_ns = self.node.waiting.spin_ns
        stage = kernels.arrive(address, fingerprint, kernels.ENTER, wait_ns)
        go_on(self.node, stage, lambda at: kernels.arrive(address, fingerprint, at, wait_ns), kernels.DEPART)

    def depart(self) -> None:
        """Leave the call once no rank of the node will touch the vectors of others in it any more. Collective."""
        kernels, address = self._kernels, self._plan_address
        wait_ns = self.node.waiting.spin_ns
        kernels.done(address)
        stage = kernels.depart(address, wait_ns)
        go_on(self.node, stage, lambda _: int(kernels.depart(address, wait_ns)), kernels.FINISHED)

    def with_peers_of(self, group: Group) -> "SharedVector | None":
        """Return the same vector of this rank beside those of its peers in `group`. Collective over `group.node`.

        Ranks that are new to the group call `share` meanwhile. None where they cannot share memory.
        """
        memory = self._memory.with_peers_of(group)
        return _shared(group, memory, self.mine.dtype)

    def _refusal(self, op: str, start: int, stop: int) -> ValueError:
        if op not in self._codes:
            return ValueError(f"unknown op {op!r} for {self.mine.dtype}: expected one of {', '.join(self._codes)}")
        return ValueError(f"no elements {start} to {stop} in a vector of {self._numel}")


def share(group: Group, numel: int, dtype: Any) -> SharedVector | None:
    """Allocate a vector on every rank, open to all ranks of its node. Collective over `group.node`.

    Args:
        group: whose nodes.
        numel: length, the same on all ranks of a node.
        dtype: float32, float64, float16, bfloat16 (of ml_dtypes), int32 or int64.

    Returns:
        The vector; None where memory cannot be shared, which has then been said.
    """
    kind = np.dtype(dtype)
    return _shared(group, allocate(group, numel * kind.itemsize), kind)


def _shared(group: Group, memory: SharedMemory | None, dtype: "np.dtype[Any]") -> SharedVector | None:
    if memory is None or (group.node.size > 1 and not group.node.calls.shared):
        return None
    from hpcvol.kernels.direct import compile_for

    compiled(group, lambda: compile_for(dtype.name))
    return SharedVector(group, memory, dtype)
