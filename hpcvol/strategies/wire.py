"""How shards lie in memory, and how what is pushed for them and pulled from them is sent: encoded, where asked for.

A push is sent as it is, in stretches of buckets, or encoded and whole. It is encoded by shard and vector, so that each
holder can decode its own part. Its sender decodes it too: holders that read its memory find there what those find that
get messages.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpcvol.codecs import Cast, Codec, Floats, Payload, Seeds
from hpcvol.codecs.codec import aligned
from hpcvol.collectives import Vector
from hpcvol.collectives.payloads import frame, framed, framed_nbytes
from hpcvol.strategies.layout import Layout

Bytes = Payload

# A stretch is at least as long, where there is so much: MPIs deliver what is shorter before anybody wants to have it.
_STRETCH_NBYTES = 256 * 1024


@dataclass(frozen=True)
class Stretch:
    """What is sent at once of a push: neighbouring parts of one shard and vector.

    Attributes:
        vector: which; those that go along are numbered behind those that are pushed.
        places: in it, of one bucket each.
        bucket: the last one of them.
        start: of its first byte among all that a holder receives.
        nbytes: that it has.
    """

    vector: int
    places: tuple[slice, ...]
    bucket: int
    start: int
    nbytes: int


@dataclass(frozen=True)
class Part:
    """Neighbouring elements that a member holds.

    Attributes:
        vector: which of the store's vectors they are of.
        place: where they are in it.
        shard: which shard they are of.
        values: as they are now, in the holder's memory.
    """

    vector: int
    place: slice
    shard: int
    values: Vector


class Plan:
    """Where each shard's parts lie, one after the other: the same on all members.

    Args:
        layouts: of the vectors.
        dtypes: of them.
        holders: the ranks of each shard.

    Attributes:
        parts: of each shard: vector, and where in it.
        nbytes: of each shard, as it is.
    """

    def __init__(
        self, layouts: Sequence[Layout], dtypes: "Sequence[np.dtype[Any]]", holders: Sequence[Sequence[int]]
    ) -> None:
        portions = [layout.portions(len(holders)) for layout in layouts]
        self.parts: list[list[tuple[int, slice]]] = [
            [(vector, part) for vector, cut in enumerate(portions) for part in cut[shard] if part.start < part.stop]
            for shard in range(len(holders))
        ]
        self._starts = [[start for start, _ in layout.buckets] for layout in layouts]
        self.dtypes = dtypes
        self.nbytes = [sum(self._room(vector, part) for vector, part in parts) for parts in self.parts]
        self._holders = holders

    def held(self, rank: int) -> list[int]:
        """Return the shards that `rank` holds."""
        return [shard for shard, ranks in enumerate(self._holders) if rank in ranks]

    def room(self, shards: Sequence[int]) -> int:
        """Return the bytes that `shards` take."""
        return sum(self.nbytes[shard] for shard in shards)

    def views(self, memory: Bytes, shards: Sequence[int]) -> list[Part]:
        """Return the parts of `shards`, one after the other in `memory`."""
        found, offset = [], 0
        for shard in shards:
            for vector, place in self.parts[shard]:
                dtype = self.dtypes[vector]
                nbytes = (place.stop - place.start) * dtype.itemsize
                found.append(Part(vector, place, shard, memory[offset : offset + nbytes].view(dtype)))
                offset += self._room(vector, place)
        return found

    def stretches(self, shards: Sequence[int]) -> list[Stretch]:
        """Return `shards` as they are sent, in the order of `views`."""
        found: list[Stretch] = []
        offset = 0
        for shard in shards:
            for vector in sorted({vector for vector, _ in self.parts[shard]}):
                places = [place for one, place in self.parts[shard] if one == vector]
                rest = sum(self._room(vector, place) for place in places)
                taken: list[slice] = []
                nbytes = 0
                for place in places:
                    taken.append(place)
                    nbytes += self._room(vector, place)
                    rest -= self._room(vector, place)
                    if rest == 0 or min(nbytes, rest) >= _STRETCH_NBYTES:
                        bucket = bisect_right(self._starts[vector], place.start) - 1
                        found.append(Stretch(vector, tuple(taken), bucket, offset, nbytes))
                        offset += nbytes
                        taken, nbytes = [], 0
        return found

    def _room(self, vector: int, place: slice) -> int:
        return aligned((place.stop - place.start) * self.dtypes[vector].itemsize)


class Wire:
    """What pushes and pulls are, as they are sent. Local; one thread may encode while another one decodes.

    Args:
        plan: where shards lie.
        codec: of what is pushed; None: as it is.
        seed: of what a codec draws; the same on all members.
        along: whether vectors go along with a push, of the same lengths, as they are.
        pulled: what those who pull may have it rounded to.
    """

    def __init__(self, plan: Plan, codec: Codec | None, seed: int, *, along: bool, pulled: Cast | None) -> None:
        self._plan = plan
        self._codec = codec
        self._seed = seed
        self._along = along
        self._pulled = pulled
        self._payloads: dict[tuple[int, int], Payload] = {}
        # By shard: each vector that it has something of, where, and how many elements.
        self._places: list[list[tuple[int, list[slice], int]]] = []
        for parts in plan.parts:
            places: dict[int, list[slice]] = {}
            for vector, place in parts:
                places.setdefault(vector, []).append(place)
            self._places.append(
                [(vector, own, sum(one.stop - one.start for one in own)) for vector, own in places.items()]
            )

    def room(self, shards: Sequence[int]) -> int:
        """Return the bytes that a push for `shards` takes at most."""
        raw = self._plan.room(shards)
        if self._codec is None:
            return raw * (2 if self._along else 1)
        coded = sum(
            framed_nbytes(self._codec.room(numel, self._plan.dtypes[vector]))
            for shard in shards
            for vector, _, numel in self._places[shard]
        )
        return coded + (raw if self._along else 0)

    def encode(self, vector: int, values: Vector, residual: Floats | None, step: int, own: int) -> None:
        """Encode one vector of a push, of which `values` becomes what it stands for.

        Args:
            vector: which.
            values: of it, by this member.
            residual: as `Codec.encode`, of the whole vector; changed.
            step: that it is of.
            own: of what this member draws for itself.
        """
        codec = self._codec
        if codec is None:
            return
        rows = None if residual is None else residual.reshape(codec.residual_rows, -1)
        for shard, vectors in enumerate(self._places):
            for place in (places for one, places, _ in vectors if one == vector):
                x = np.concatenate([values[part] for part in place])
                kept = None
                if rows is not None:
                    kept = np.concatenate([rows[:, part] for part in place], axis=1).reshape(-1)
                payload = np.empty(codec.room(x.size, x.dtype), np.uint8)
                seeds = self._seeds(step, shard, vector, own)
                payload = payload[: codec.encode(x, kept, seeds, payload)]
                self._payloads[shard, vector] = payload
                x.fill(0)
                codec.accumulate(payload, seeds, x)
                _spread(x, [values[part] for part in place])
                if rows is not None and kept is not None:
                    for row, mine in zip(rows, kept.reshape(len(rows), -1), strict=True):
                        _spread(mine, [row[part] for part in place])

    def stretches(self, shards: Sequence[int]) -> list[Stretch]:
        """Return how a push for who holds `shards` is sent; none where it is encoded, and sent as a whole."""
        if self._codec is not None:
            return []
        pushed, room = self._plan.stretches(shards), self._plan.room(shards)
        number = len(self._plan.dtypes)
        along = [replace(one, vector=one.vector + number, start=one.start + room) for one in pushed]
        return [*pushed, *along] if self._along else pushed

    def pack(self, shards: Sequence[int], along: Sequence[Vector]) -> Bytes:
        """Return a push for who holds `shards` as a whole; it was given to `encode`."""
        memory = np.empty(self.room(shards), np.uint8)
        payloads = (self._payloads[shard, vector] for shard in shards for vector, _, _ in self._places[shard])
        offset = frame(payloads, memory)
        if self._along:
            offset += self._copy(shards, along, memory[offset:])
        return memory[:offset]

    def arriving(self, memory: Bytes, shards: Sequence[int]) -> list[Bytes]:
        """Return where in `memory` what is sent of a push is to arrive: each of `stretches`, or all of it."""
        found = [memory[one.start : one.start + one.nbytes] for one in self.stretches(shards)]
        return found if self._codec is None else [memory]

    def unpack(self, memory: Bytes, shards: Sequence[int], step: int) -> list[Vector]:
        """Return what was pushed for each part of `shards`, and behind these what went along for each.

        Args:
            memory: in which all has arrived.
            shards: that were pushed for.
            step: that it is of.
        """
        if self._codec is None:
            return self._raw(memory, shards)
        found: list[Vector] = []
        vectors = [(shard, *one) for shard in shards for one in self._places[shard]]
        payloads, offset = framed(memory, len(vectors))
        for (shard, vector, places, numel), payload in zip(vectors, payloads, strict=True):
            x = np.zeros(numel, self._plan.dtypes[vector])
            self._codec.accumulate(payload, self._seeds(step, shard, vector, 0), x)
            ends = np.cumsum([place.stop - place.start for place in places])[:-1]
            found += np.split(x, ends)
        if self._along:
            found += [part.values for part in self._plan.views(memory[offset:], shards)]
        return found

    def _raw(self, memory: Bytes, shards: Sequence[int]) -> list[Vector]:
        found = [part.values for part in self._plan.views(memory, shards)]
        if self._along:
            found += [part.values for part in self._plan.views(memory[self._plan.room(shards) :], shards)]
        return found

    def pulled_nbytes(self, shards: Sequence[int], *, exactly: bool) -> int:
        """Return the bytes that are sent to who pulls `shards`."""
        if exactly or self._pulled is None:
            return self._plan.room(shards)
        codec = self._pulled
        return sum(
            aligned(codec.room(place.stop - place.start, self._plan.dtypes[vector]))
            for shard in shards
            for vector, place in self._plan.parts[shard]
        )

    def give(self, shards: Sequence[int], held: Sequence[Part], memory: Bytes, *, exactly: bool) -> None:
        """Write to `memory` what is sent to who pulls `shards`, out of what is `held`."""
        values = {(part.shard, part.vector, part.place.start): part.values for part in held}
        if exactly or self._pulled is None:
            for part in self._plan.views(memory, shards):
                part.values[:] = values[part.shard, part.vector, part.place.start]
            return
        offset = 0
        for shard in shards:
            for vector, place in self._plan.parts[shard]:
                mine = values[shard, vector, place.start]
                room = self._pulled.room(mine.size, mine.dtype)
                self._pulled.encode(mine, None, Seeds(0, 0), memory[offset : offset + room])
                offset += aligned(room)

    def take(self, memory: Bytes, shards: Sequence[int], into: Sequence[Vector], *, exactly: bool) -> None:
        """Have in the vectors `into` what `give` wrote."""
        if exactly or self._pulled is None:
            for part in self._plan.views(memory, shards):
                into[part.vector][part.place] = part.values
            return
        offset = 0
        for shard in shards:
            for vector, place in self._plan.parts[shard]:
                mine = into[vector][place]
                room = self._pulled.room(mine.size, mine.dtype)
                mine.fill(0)
                self._pulled.accumulate(memory[offset : offset + room], Seeds(0, 0), mine)
                offset += aligned(room)

    def _seeds(self, step: int, shard: int, vector: int, own: int) -> Seeds:
        """Return the chances of one encoding: all but `own` is known to whoever decodes it."""
        number = (step * len(self._places) + shard) * len(self._plan.dtypes) + vector
        return Seeds(Seeds.of(self._seed, number, 0).common, own, step)

    def _copy(self, shards: Sequence[int], vectors: Sequence[Vector], memory: Bytes) -> int:
        for part in self._plan.views(memory, shards):
            part.values[:] = vectors[part.vector][part.place]
        return self._plan.room(shards)


def _spread(whole: Vector, parts: Sequence[Vector]) -> None:
    start = 0
    for part in parts:
        part[:] = whole[start : start + part.size]
        start += part.size
