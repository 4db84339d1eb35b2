"""All-reduce of vectors that a codec encodes: what travels are payloads, and all ranks end with the same bits.

Four ways, of which the codec and the number of ranks decide (`how`). For n ranks and payloads of p bytes:

- gathered: everybody sends its payload to everybody, and adds all of them in the order of ranks. One message each way
  at a time, (n - 1) p bytes.
- in two shots: everybody sends the payload of each slice to its owner, who adds them, encodes the sum again, and sends
  that to everybody. 2 (n - 1) / n p bytes. What the second encoding loses is the owner's to add to its next one.
- merged: sparse vectors, by recursive doubling: log2 n messages of sums that grow with each.
- summed: payloads that are vectors themselves, by an ordinary all-reduce.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcvol.codecs import Codec, Floats, Momentum, Seeds, Sparsify
from hpcvol.collectives.calling import calling
from hpcvol.collectives.folding import Fold
from hpcvol.collectives.payloads import PayloadBuffer, exchange, others, spread
from hpcvol.collectives.slices import even_bounds
from hpcvol.collectives.thin import ThinSum
from hpcvol.comm.group import Group
from hpcvol.comm.messages import Messages
from hpcvol.errors import CommError

Way = Literal["gathered", "two_shots", "merged", "summed"]

# One message each way is worth more than fewer bytes until then: two shots send 2 (n - 1) / n payloads, and wait twice.
_GATHERED_RANKS = 2
# Sparse payloads are so short that latency decides for longer.
_MERGED_RANKS = 8


def how(codec: Codec, num_ranks: int) -> Way:
    """Return which way payloads of `codec` are summed over so many ranks. Local."""
    if codec.is_summable:
        return "summed"
    selection = codec.selection if isinstance(codec, Momentum) else codec
    if isinstance(selection, Sparsify):
        mergeable = selection.values is None and selection.select != "randomk"
        return "merged" if mergeable and num_ranks > _MERGED_RANKS else "gathered"
    return "gathered" if num_ranks <= _GATHERED_RANKS else "two_shots"


class EncodedSum:
    """Sums vectors of one length over the ranks of a group; holds the memory of payloads. Made alike on all ranks.

    Args:
        group: all of its ranks make the same calls.
        codec: the same on all ranks.
        numel: elements of the vectors.
        dtype: float32 or float64.
        way: one of those above; by default what `how` says.
    """

    def __init__(self, group: Group, codec: Codec, numel: int, dtype: "np.dtype[Any]", way: Way | None = None) -> None:
        self._group = group
        self._codec = codec
        self._way: Way = how(codec, group.size) if way is None else way
        self._bounds = even_bounds(numel, group.size)
        self._mine = slice(*self._bounds[group.rank])
        rooms = [codec.room(numel, dtype)] * group.size
        if self._way == "two_shots":
            rooms = [codec.room(stop - start, dtype) for start, stop in self._bounds]
        elif self._way == "summed":
            rooms = rooms[:1]
            self._thin = ThinSum(group, rooms[0] // dtype.itemsize, dtype)
        self._buffers = [PayloadBuffer(room) for room in rooms]
        self._arriving = [PayloadBuffer(rooms[group.rank]) for _ in rooms] if self._way == "two_shots" else []
        self.sent_nbytes = 0

    def sum(self, vector: Floats, residual: Floats | None, seed: int, step: int) -> None:
        """Replace `vector` by the sum of what the payloads of all ranks stand for. Collective, in place.

        Args:
            vector: float32[numel] or float64[numel].
            residual: this rank's, as for `Codec.encode`. Of all ranks together it is afterwards what the sum lacks.
            seed: the same on all ranks.
            step: the same on all ranks, another one in each call.

        Raises:
            MismatchError: members are in different calls.
            MemberError: another member died.
            CommError: what another rank has sent is no payload of this codec.
        """
        group = self._group
        if group.size == 1:
            if residual is not None:
                send_all(self._codec, vector, residual)
            return
        seeds = [Seeds.of(seed, step, rank) for rank in range(group.size)]
        with calling(group, "allreduce", vector, None, "sum"):
            {"gathered": self._gather, "two_shots": self._two_shots, "merged": self._merge, "summed": self._sum}[
                self._way
            ](vector, residual, seeds)

    def _gather(self, vector: Floats, residual: Floats | None, seeds: list[Seeds]) -> None:
        rank = self._group.rank
        self._encode(vector, residual, seeds[rank], self._buffers[rank])
        self.sent_nbytes = spread(self._group, self._buffers)
        vector.fill(0)
        for source, buffer in enumerate(self._buffers):
            self._add(buffer, seeds[source], source, vector)

    def _two_shots(self, vector: Floats, residual: Floats | None, seeds: list[Seeds]) -> None:
        group, rank, mine = self._group, self._group.rank, vector[self._mine]

        def encoded() -> Iterator[tuple[int, PayloadBuffer]]:
            for owner in others(group):
                part = slice(*self._bounds[owner])
                lost = None if residual is None else residual[part]
                self._encode(vector[part], lost, seeds[rank], self._buffers[owner])
                yield owner, self._buffers[owner]

        sources = sorted(others(group))
        self.sent_nbytes = exchange(group, encoded(), [(source, self._arriving[source]) for source in sources])
        # The owner's own part needs no encoding; the order is that of ranks, for the same bits every time.
        for source in sources:
            self._add(self._arriving[source], seeds[source], source, mine)
        lost = None if residual is None else residual[self._mine]
        self._encode(mine, lost, _second(seeds[rank]), self._buffers[rank])
        self.sent_nbytes += spread(group, self._buffers)
        vector.fill(0)
        for owner, buffer in enumerate(self._buffers):
            self._add(buffer, _second(seeds[owner]), owner, vector[slice(*self._bounds[owner])])

    def _sum(self, vector: Floats, residual: Floats | None, seeds: list[Seeds]) -> None:
        (buffer,) = self._buffers
        self._encode(vector, residual, seeds[self._group.rank], buffer)
        self._thin.sum(buffer.filled.view(vector.dtype))
        self.sent_nbytes = self._thin.sent_nbytes
        vector.fill(0)
        self._codec.accumulate(buffer.filled, seeds[0], vector)

    def _merge(self, vector: Floats, residual: Floats | None, seeds: list[Seeds]) -> None:
        from hpcvol.kernels import sparse

        rank = self._group.rank
        codec = self._codec.at(seeds[rank].step) if isinstance(self._codec, Momentum) else self._codec
        assert isinstance(codec, Sparsify)
        self._encode(vector, residual, seeds[rank], self._buffers[rank])
        part = codec.decode(self._buffers[rank].filled, seeds[rank], vector.size, vector.dtype)
        part = _Doubling(self._group, codec.count(vector.size), vector).merge(*part)
        self.sent_nbytes = part[0].nbytes + part[1].nbytes
        vector.fill(0)
        sparse.add(*part, vector)

    def _encode(self, x: Floats, residual: Floats | None, seeds: Seeds, buffer: PayloadBuffer) -> None:
        buffer.used = self._codec.encode(x, residual, seeds, buffer.payload)

    def _add(self, buffer: PayloadBuffer, seeds: Seeds, source: int, out: Floats) -> None:
        try:
            self._codec.accumulate(buffer.filled, seeds, out)
        except ValueError as error:
            raise CommError(
                f"what {self._group.name_of(source)} has sent cannot be decoded: {error}; all members need the same "
                "codec and the same version of hpcvol"
            ) from None


def send_all(codec: Codec | None, vector: Floats, residual: Floats) -> None:
    """Add what a codec has kept to a vector that nothing is to be left out of; nothing is kept of it then. Local."""
    if isinstance(codec, Momentum):
        codec.add_all(vector, residual)
        return
    vector += residual
    residual.fill(0)


class _Doubling:
    """Sums sparse vectors by recursive doubling, for any number of ranks.

    Args:
        group: all of its ranks take part.
        count: elements that a rank's vector has at most.
        vector: of the length and dtype of the dense ones.
    """

    def __init__(self, group: Group, count: int, vector: Floats) -> None:
        self._group = group
        self._fold = Fold(group)
        self._count = count
        self._numel = vector.size
        self._dtype = vector.dtype

    def merge(self, indices: NDArray[np.int32], values: Floats) -> tuple[NDArray[np.int32], Floats]:
        """Return the sum over all ranks. Collective."""
        fold, group = self._fold, self._group
        extra = group.rank < 2 * (group.size - fold.size)
        with Messages(group) as messages:
            if fold.place is None:
                messages.send(indices, group.rank + 1)
                messages.send(values, group.rank + 1)
                return self._receive(messages, group.rank + 1, self._numel)
            ranks = 1
            if extra:
                indices, values = self._merged((indices, values), self._receive(messages, group.rank - 1, self._count))
                ranks = 2
            distance = 1
            while distance < fold.size:
                partner = fold.rank_at(fold.place ^ distance)
                messages.send(indices, partner)
                messages.send(values, partner)
                room = min(self._numel, 2 * max(ranks, 2) * distance * self._count)
                indices, values = self._merged((indices, values), self._receive(messages, partner, room))
                distance *= 2
            if extra:
                messages.send(indices, group.rank - 1)
                messages.send(values, group.rank - 1)
            return indices, values

    def _receive(self, messages: Messages, source: int, room: int) -> tuple[NDArray[np.int32], Floats]:
        indices, values = np.empty(room, np.int32), np.empty(room, self._dtype)
        first = messages.receive_up_to(indices, source)
        second = messages.receive_up_to(values, source)
        messages.wait(first)
        messages.wait(second)
        return indices[: first.nbytes // indices.itemsize], values[: second.nbytes // values.itemsize]

    def _merged(
        self, a: tuple[NDArray[np.int32], Floats], b: tuple[NDArray[np.int32], Floats]
    ) -> tuple[NDArray[np.int32], Floats]:
        from hpcvol.kernels import sparse

        room = a[0].size + b[0].size
        indices, values = np.empty(room, np.int32), np.empty(room, self._dtype)
        found = sparse.merge(*a, *b, indices, values)
        return indices[:found], values[:found]


def _second(seeds: Seeds) -> Seeds:
    """Return the seeds of a second encoding."""
    return seeds._replace(own=seeds.own ^ 1)
