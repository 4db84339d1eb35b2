"""A share of a step's units computed by two members and compared, before the step takes effect.

Order is what it rests on. A member first seals its units, by the SHA-256 of their integers, and a random number, by its
SHA-256; then it adds to the sum. Only then the random numbers are revealed, and from all of them together follow the
keys of fingerprints, which units are computed again, and by whom. So nobody who shows or adds anything knows what will
be looked at; and fingerprints are linear, so that those of the units that were shown add up to that of the sum.
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

# Two fingerprints of 64 bits each.
_KEYS = 2

Offer: TypeAlias = Callable[[UnitSpan], "Iterator[Unit]"]


@dataclass(frozen=True)
class Seal:
    """What a member binds itself to before it adds: digests of its units, and of its random number."""

    units: Mapping[int, str]
    nonce: str


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
            self._mine.append((unit, _evidence(_digest([total.forget_unit() for total in self._sums]), record)))
        else:
            self._units[unit] = [total.take_unit() for total in self._sums]

    def seal(self) -> Seal:
        """Return what binds this member to its units and to a new random number. Local."""
        self._nonce = secrets.token_bytes(16)
        return Seal(
            {unit: _digest(kept) for unit, kept in self._units.items()}, hashlib.sha256(self._nonce).hexdigest()
        )

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
        guilty = settle(lambda: self._reveal(seals, records))
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

    def _reveal(self, seals: Mapping[int, Seal], records: "Mapping[int, UnitRecord]") -> Guilty | None:
        """Look at what was added to the sums, and draw the units to check."""
        group = self._group
        with tracing.span("reveal"):
            nonces = dict(zip(group.members, group.gather_objects(self._nonce), strict=True))
        for member, nonce in nonces.items():
            if hashlib.sha256(nonce).hexdigest() != seals[member].nonce:
                return Guilty(member, "the random number that it revealed is not the one that it had sealed")
        self._seed = seed_of(nonces)
        if guilty := self._look_at_sums():
            return guilty
        owners = {unit: record.member for unit, record in records.items()}
        self._checkers = draw(self._seed, owners, group.members, self._share) if group.size > 1 else {}
        self._found = {
            unit: [(owners[unit], _evidence(seals[owners[unit]].units.get(unit, ""), records[unit]))]
            for unit in self._checkers
        }
        return None

    def _look_at_sums(self) -> Guilty | None:
        """Compare what members showed with what they added, by fingerprints."""
        reducers = [total.reducer for total in self._sums]
        told = []
        for index, reducer in enumerate(reducers):
            assert isinstance(reducer, VerifiedExact)
            for lane in range(_KEYS):
                key = number(self._seed, 2, index, lane)
                units = sum(_print(kept[index], key) for kept in self._units.values())
                told.append((units, reducer.received(key), reducer.summed(key)))
        everybody = self._group.gather_objects(told)
        members = self._group.members
        for place in range(len(told)):
            units_of, received, summed = zip(*(one[place] for one in everybody), strict=True)
            if guilty := added_otherwise(members, dict(zip(members, units_of, strict=True)), received, summed):
                return guilty
        return None

    def _compare(self, failure: Exception | None) -> Guilty | None:
        """Gather what checks have found; have a third compute what two disagree about."""
        group = self._group
        for member, found in zip(
            group.members, gather_agreed(group, self._mine, failure, "checking units of others"), strict=True
        ):
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


def _print(values: NDArray[np.int64], key: int) -> int:
    return int(fingerprint(values, np.uint64(0), np.uint64(key)))


def _digest(kept: Sequence[NDArray[np.int64]]) -> str:
    digest = hashlib.sha256()
    for values in kept:
        digest.update(values.data)
    return digest.hexdigest()


def _evidence(digest: str, record: "UnitRecord") -> str:
    """Return what has to be the same whoever computes a unit; as text, in which NaN equals NaN."""
    return repr((digest, record.num_samples, record.weight, record.loss, sorted(record.metrics.items())))
