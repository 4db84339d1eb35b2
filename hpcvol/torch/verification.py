"""A share of a step's units computed by two members and compared, before the step takes effect.

Order is what it rests on. A member first seals its units, by the SHA-256 of their integers, and two random numbers, by
theirs; then it adds to the sum. Only then the first numbers are revealed, and from all of them together follow the keys
of fingerprints. These are linear: those of a member's units, which it now shows, add up to that of what it added. Only
when all are shown the second numbers are revealed, and from these follows which units are computed again, and by whom;
their digests and fingerprints are compared. So nobody knows what will be looked at while it computes, adds or shows.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpcvol import tracing
from hpcvol.comm import Group, gather_agreed
from hpcvol.elastic.checks import Guilty, added_otherwise, another, draw, number, odd_one_out, seed_of
from hpcvol.elastic.units import UnitSpan
from hpcvol.errors import MemberError
from hpcvol.kernels.fingerprint import fingerprint
from hpcvol.strategies.verified_exact import VerifiedExact
from hpcvol.torch.exact import ExactSum

if TYPE_CHECKING:
    from hpcvol.torch.loader import Unit
    from hpcvol.torch.step import UnitRecord

# Fingerprints of 64 bits each.
_KEYS = 4

Offer: TypeAlias = Callable[[UnitSpan], "Iterator[Unit]"]


@dataclass(frozen=True)
class Seal:
    """What a member binds itself to before it adds: digests of its units, and of its random numbers.

    Attributes:
        units: by their index.
        key: of the number that fingerprints follow from.
        draw: of the number that checks follow from.
    """

    units: Mapping[int, str]
    key: str
    draw: str


class Verification:
    """Verifies the steps of a run. One a member, the same calls on all.

    Args:
        share: of units that are computed by two members.
        group: of the run.
        sums: all that units add to.

    Attributes:
        guilty: who was found to be wrong in the rounds that were gone through last.
    """

    def __init__(self, share: float, group: Group, sums: Sequence[ExactSum]) -> None:
        self._share = share
        self._group = group
        self._sums = [total for total in sums if total.layout.numel]
        self._units: dict[int, list[NDArray[np.int64]]] = {}
        self._found: dict[int, list[tuple[int, str]]] = {}
        self._checking = False
        self._mine: list[tuple[int, str]] = []
        self._checkers: dict[int, int] = {}
        self._shown: dict[int, list[int]] = {}
        self.guilty: Guilty | None = None

    def reset(self) -> None:
        """Forget all units of the step. Local."""
        self._units = {}

    @contextmanager
    def watching(self, unit: int, record: "UnitRecord") -> Iterator[bool]:
        """Keep what a unit adds in the body. Yields whether it counts, or was computed as a check. Local."""
        for total in self._sums:
            total.begin_unit()
        yield not self._checking
        if self._checking:
            kept = [total.forget_unit() for total in self._sums]
            self._mine.append((unit, _evidence(_digest(kept), self._prints(kept), record)))
        else:
            self._units[unit] = [total.take_unit() for total in self._sums]

    def seal(self) -> Seal:
        """Return what binds this member to its units and to new random numbers. Local."""
        self._key_nonce, self._draw_nonce = secrets.token_bytes(16), secrets.token_bytes(16)
        digests = {unit: _digest(kept) for unit, kept in self._units.items()}
        return Seal(digests, _sealed(self._key_nonce), _sealed(self._draw_nonce))

    def rounds(
        self,
        seals: Mapping[int, Seal],
        records: "Mapping[int, UnitRecord]",
        settle: "Callable[[Callable[[], Guilty | None]], Guilty | None]",
        compute: "Callable[[int], Iterator[Unit]]",
        failure: Callable[[], Exception | None],
    ) -> "Iterator[Unit]":
        """Verify a step whose sums are made, and yield the units that this member has to check. Collective.

        Args:
            seals: of all members.
            records: of all units.
            settle: as `Membership.settle`.
            compute: yields a unit, by its index, to the loop.
            failure: why this member could not compute one.

        Raises:
            MemberError: somebody is wrong, and it cannot be found out who.
        """
        guilty = settle(lambda: self._look_at_sums(seals, records))
        if guilty is None:
            guilty = settle(lambda: self._draw(seals, records))
        while guilty is None and self._checkers:
            self._mine = []
            self._checking = True
            try:
                for unit in [unit for unit, who in self._checkers.items() if who == self._me]:
                    yield from compute(unit)
            finally:
                self._checking = False
            guilty = settle(lambda: self._compare(failure()))
        self.guilty = guilty

    @property
    def _me(self) -> int:
        return self._group.members[self._group.rank]

    def _look_at_sums(self, seals: Mapping[int, Seal], records: "Mapping[int, UnitRecord]") -> Guilty | None:
        """Reveal keys; compare what members show of their units with what they added, by fingerprints."""
        members = self._group.members
        nonces, guilty = self._reveal(self._key_nonce, {member: seal.key for member, seal in seals.items()})
        if guilty:
            return guilty
        self._key_seed = seed_of(nonces)
        mine = {unit: self._prints(kept) for unit, kept in self._units.items()}
        received, summed, beyond = [], [], []
        for index, total in enumerate(self._sums):
            reducer = total.reducer
            assert isinstance(reducer, VerifiedExact)
            beyond.append(reducer.out_of_range())
            for lane in range(_KEYS):
                key = self._key(index, lane)
                received.append(reducer.received(key))
                summed.append(reducer.summed(key))
        told = self._group.gather_objects((mine, received, summed, beyond))
        shown, received_by, summed_by, beyond_by = zip(*told, strict=True)
        for rank, member in enumerate(members):
            owned = {unit for unit, record in records.items() if record.member == member}
            if set(shown[rank]) != owned or set(seals[member].units) != owned:
                return Guilty(member, "it showed other units than it reported")
            if any(parts[rank] for one in beyond_by for parts in one):
                return Guilty(member, "what it added to the sum is larger than a step's units can be")
        self._shown = {unit: prints for one in shown for unit, prints in one.items()}
        for place in range(len(received)):
            units = {
                member: sum(prints[place] for prints in one.values())
                for member, one in zip(members, shown, strict=True)
            }
            parts, sums = [one[place] for one in received_by], [one[place] for one in summed_by]
            if guilty := added_otherwise(members, units, parts, sums):
                return guilty
        return None

    def _draw(self, seals: Mapping[int, Seal], records: "Mapping[int, UnitRecord]") -> Guilty | None:
        """Draw the units to check, now that members can no longer change what they showed."""
        group = self._group
        nonces, guilty = self._reveal(self._draw_nonce, {member: seal.draw for member, seal in seals.items()})
        if guilty:
            return guilty
        self._seed = seed_of(nonces)
        owners = {unit: record.member for unit, record in records.items()}
        self._checkers = draw(self._seed, owners, group.members, self._share) if group.size > 1 else {}
        self._found = {
            unit: [(owners[unit], _evidence(seals[owners[unit]].units[unit], self._shown[unit], records[unit]))]
            for unit in self._checkers
        }
        return None

    def _reveal(self, nonce: bytes, sealed: Mapping[int, str]) -> tuple[dict[int, bytes], Guilty | None]:
        """Return the random numbers of all members, and whose is not the one that it had sealed."""
        with tracing.span("reveal"):
            nonces = dict(zip(self._group.members, self._group.gather_objects(nonce), strict=True))
        for member, revealed in nonces.items():
            if _sealed(revealed) != sealed[member]:
                return nonces, Guilty(member, "the random number that it revealed is not the one that it had sealed")
        return nonces, None

    def _key(self, index: int, lane: int) -> int:
        return number(self._key_seed, 2, index, lane)

    def _prints(self, kept: Sequence[NDArray[np.int64]]) -> list[int]:
        """Return the fingerprints of a unit: of each sum's integers, one a key."""
        return [
            int(fingerprint(values, np.uint64(0), np.uint64(self._key(index, lane))))
            for index, values in enumerate(kept)
            for lane in range(_KEYS)
        ]

    def _compare(self, failure: Exception | None) -> Guilty | None:
        """Gather what checks have found; have a third compute what two disagree about."""
        group = self._group
        for member, found in zip(
            group.members, gather_agreed(group, self._mine, failure, "checking units of others"), strict=True
        ):
            due = [unit for unit, who in self._checkers.items() if who == member]
            if sorted(unit for unit, _ in found) != sorted(due):
                return Guilty(member, "it did not report the checks that it was asked for")
            for unit, evidence in found:
                self._found[unit].append((member, evidence))
        again: dict[int, int] = {}
        for unit in self._checkers:
            found = self._found[unit]
            if len({evidence for _, evidence in found}) == 1:
                continue
            odd = odd_one_out(found)
            if len(found) > 2 and odd is not None:
                return Guilty(odd, f"two others come to another gradient of unit {unit}")
            asked = [member for member, _ in found]
            third = another(self._seed, unit, group.members, asked)
            if len(found) > 2 or third < 0:
                names = " and ".join(group.name_of(group.members.index(member)) for member in asked)
                raise MemberError(
                    f"{names} come to different gradients of unit {unit}, and no majority says who is wrong: test the "
                    "memory and the processors of these hosts, and start the run without the faulty one; it goes on "
                    "from its last checkpoint",
                    everywhere=True,
                )
            again[unit] = third
        self._checkers = again
        return None


def _sealed(nonce: bytes) -> str:
    return hashlib.sha256(nonce).hexdigest()


def _digest(kept: Sequence[NDArray[np.int64]]) -> str:
    digest = hashlib.sha256()
    for values in kept:
        digest.update(values.data)
    return digest.hexdigest()


def _evidence(digest: str, prints: Sequence[int], record: "UnitRecord") -> str:
    """Return what has to be the same whoever computes a unit; as text, in which NaN equals NaN.

    Metrics are not in it: what they are computed from may be the member's own, as its time is.
    """
    return repr((digest, prints, record.num_samples, record.weight, record.loss))
