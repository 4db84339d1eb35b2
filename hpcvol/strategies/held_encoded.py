"""Sums of encoded vectors that end with those who hold a portion."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from hpcvol import tracing
from hpcvol.codecs import Codec, Floats, Payload, Seeds
from hpcvol.collectives.calling import calling
from hpcvol.collectives.direct import SharedVector
from hpcvol.collectives.payloads import PayloadBuffer, exchange, frame, framed, framed_nbytes
from hpcvol.comm import Group
from hpcvol.comm.calls import Call
from hpcvol.errors import CommError
from hpcvol.strategies.feedback import Feedback
from hpcvol.strategies.held_sums import Holders, beginning, combine_node, nodes_of
from hpcvol.strategies.layout import Layout


class HeldEncoded:
    """Each member has a vector; means of a portion, of what was encoded of it, come to be with its holders.

    The rank of a node whose turn it is adds up the node's vectors, encodes the portion, and sends it to each holder,
    who adds what came in the order of nodes: so all holders of a portion have the same bits. On one node, or where
    ranks do not share memory, each rank is a node of its own: the codec was asked for, and can be tried out.

    Args:
        group: the ranks.
        workers: those that compute; vectors of others are zero.
        codec: what encodes.
        shared: vectors where they lie, of several nodes; None where ranks do not share memory or are on one node.
        vector: this rank's.
        layout: of the vectors.
        holders: of each portion of `layout.portions`.
        feedback: this member's residual.
        seed: of what is drawn; the same on all members.
    """

    def __init__(
        self,
        group: Group,
        workers: Sequence[int],
        codec: Codec,
        shared: SharedVector | None,
        vector: Floats,
        layout: Layout,
        holders: Holders,
        feedback: Feedback,
        seed: int,
    ) -> None:
        self.vector = vector
        self._group = group
        self._codec = codec
        self._shared = shared
        self._feedback = feedback
        self._seed = seed
        nodes = [[rank] for rank in workers] if shared is None else nodes_of(group)
        nodes = [ranks for ranks in nodes if not set(ranks).isdisjoint(workers)]
        count = len(holders)
        self._portions = layout.portions(count)
        self._numels = [sum(part.stop - part.start for part in parts) for parts in self._portions]
        # Of each portion that there is something of: who sends it, by node. Neighbours of a rank are neighbours, too.
        self._carriers = [
            [ranks[portion * len(ranks) // count] for ranks in nodes] if self._numels[portion] else []
            for portion in range(count)
        ]
        self._holders = holders
        me = group.rank
        self._carried = [portion for portion in range(count) if me in self._carriers[portion]]
        self._held = [portion for portion in range(count) if me in holders[portion]]
        self._sums = {portion: np.zeros(self._numels[portion], vector.dtype) for portion in self._carried}
        rooms = [framed_nbytes(codec.room(numel, vector.dtype)) for numel in self._numels]

        def buffers(pairs: Sequence[tuple[int, int]]) -> dict[int, tuple[list[int], PayloadBuffer]]:
            """Return by rank the portions, and memory for them, of (rank, portion)."""
            by_rank: dict[int, list[int]] = {}
            for rank, portion in pairs:
                if rank != me:
                    by_rank.setdefault(rank, []).append(portion)
            return {
                rank: (portions, PayloadBuffer(sum(rooms[portion] for portion in portions)))
                for rank, portions in by_rank.items()
            }

        self._sent = buffers([(rank, portion) for portion in self._carried for rank in holders[portion]])
        self._arriving = buffers([(rank, portion) for portion in self._held for rank in self._carriers[portion]])
        parts = [part for portion in self._carried for part in self._portions[portion]]
        feedback.place(group, parts, 0, owns=any(me in ranks for ranks in nodes[:1]))

    def push(self, bucket: int) -> None:
        """Nothing: payloads are of whole portions."""

    def finish(self, weight: int, own: int) -> None:
        """Divide, so that residuals are of means whatever the weights are; sum within nodes, then with holders."""
        del own
        with tracing.span("reduce-scatter encoded", nbytes=self.vector.nbytes):
            self._add_up_node(weight)
            residual, _ = self._feedback.begin()
            seeds = Seeds.of(self._seed, self._feedback.step, self._group.rank)
            payloads, me = self._encoded(residual, seeds), self._group.rank
            with calling(self._group, "reduce_scatter", self.vector, None, "sum"):
                for portions, buffer in self._sent.values():
                    buffer.used = frame((payloads[me, portion] for portion in portions), buffer.payload)
                exchange(
                    self._group,
                    [(rank, buffer) for rank, (_, buffer) in self._sent.items()],
                    [(rank, buffer) for rank, (_, buffer) in self._arriving.items()],
                )
            self._add(payloads)

    def drop(self) -> None:
        """Nothing was combined."""

    def _add_up_node(self, weight: int) -> None:
        """Have the means of what this rank carries. Collective over the node."""
        if self._shared is not None:
            self._shared.arrive(Call.of("reduce_scatter", self.vector.dtype, self.vector.size, "sum"))
        for portion, mean in self._sums.items():
            start = 0
            for part in self._portions[portion]:
                here = mean[start : start + part.stop - part.start]
                if self._shared is None:
                    np.divide(self.vector[part], weight, out=here)
                else:
                    combine_node(self._shared, part, beginning(here, part.start), weight)
                start += here.size
        if self._shared is not None:
            self._shared.depart()

    def _encoded(self, residual: Floats | None, seeds: Seeds) -> dict[tuple[int, int], Payload]:
        codec, rows, start = self._codec, self._codec.residual_rows, 0
        found: dict[tuple[int, int], Payload] = {}
        for portion, mean in self._sums.items():
            kept = None
            here = slice(start, start + mean.size)
            if residual is not None:
                kept = np.ascontiguousarray(residual.reshape(rows, -1)[:, here]).reshape(-1)
            payload = np.empty(codec.room(mean.size, mean.dtype), np.uint8)
            found[self._group.rank, portion] = payload[: codec.encode(mean, kept, _seeds_of(portion, seeds), payload)]
            if residual is not None and kept is not None:
                residual.reshape(rows, -1)[:, here] = kept.reshape(rows, -1)
            start = here.stop
        return found

    def _add(self, payloads: dict[tuple[int, int], Payload]) -> None:
        """Have in the vector the sums of what arrived for the portions that this member holds. Local."""
        for rank, (portions, buffer) in self._arriving.items():
            with self._from(rank):
                for portion, payload in zip(portions, framed(buffer.filled, len(portions))[0], strict=True):
                    payloads[rank, portion] = payload
        for portion in self._held:
            total = np.zeros(self._numels[portion], self.vector.dtype)
            for rank in self._carriers[portion]:
                seeds = Seeds.of(self._seed, self._feedback.step, rank)
                with self._from(rank):
                    self._codec.accumulate(payloads[rank, portion], _seeds_of(portion, seeds), total)
            start = 0
            for part in self._portions[portion]:
                stop = start + part.stop - part.start
                self.vector[part] = total[start:stop]
                start = stop

    @contextmanager
    def _from(self, rank: int) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise CommError(
                f"what {self._group.name_of(rank)} has sent cannot be decoded: {error}; all members need the same "
                "codec and the same version of hpcvol"
            ) from None


def _seeds_of(portion: int, seeds: Seeds) -> Seeds:
    """Return the chances of one portion: others for each."""
    return Seeds.of(seeds.common, portion, 0)._replace(own=Seeds.of(seeds.own, portion, 0).common, step=seeds.step)
