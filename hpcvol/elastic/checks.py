"""Which units are computed a second time, by whom, and who is wrong: pure arithmetic, the same on every member."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from hpcvol.errors import MemberError

WORD = 2**64


@dataclass(frozen=True)
class Guilty:
    """A member that is wrong, and what shows it."""

    member: int
    why: str


def seed_of(nonces: Mapping[int, bytes]) -> bytes:
    """Return what follows from the random numbers of all members and can be foreseen by none of them."""
    return hashlib.sha256(b"".join(nonces[member] for member in sorted(nonces))).digest()


def number(seed: bytes, *what: int) -> int:
    """Return 64 bits that follow from `seed` and `what`."""
    return int.from_bytes(hashlib.sha256(seed + repr(what).encode()).digest()[:8], "big")


def draw(seed: bytes, owners: Mapping[int, int], members: Sequence[int], share: float) -> dict[int, int]:
    """Return which units are computed again, and by which member: each with probability `share`, never by its owner.

    Args:
        seed: of this step.
        owners: who computed each unit.
        members: all that there are, at least two.
        share: from 0 to 1.
    """
    drawn = [unit for unit in sorted(owners) if number(seed, 0, unit) < share * WORD]
    return {unit: another(seed, unit, members, [owners[unit]]) for unit in drawn}


def another(seed: bytes, unit: int, members: Sequence[int], but: Sequence[int]) -> int:
    """Return a member that has not computed `unit` yet; -1 where all have."""
    left = [member for member in sorted(members) if member not in but]
    return left[number(seed, 1, unit, len(but)) % len(left)] if left else -1


def odd_one_out(found: Sequence[tuple[int, Hashable]]) -> int | None:
    """Return the member that found something else than the others, of three or more; None where there is no such one.

    Args:
        found: members, and what each found.
    """
    (common, times), *_ = Counter(what for _, what in found).most_common()
    odd = [member for member, what in found if what != common]
    return odd[0] if times > 1 and times == len(found) - 1 else None


def added_otherwise(
    members: Sequence[int],
    units: Mapping[int, int],
    received: Sequence[Sequence[int]],
    summed: Sequence[Sequence[int]],
) -> Guilty | None:
    """Return who added something else than it has shown, or handed on another sum than that of what it received.

    Fingerprints are linear: those of a member's units add up to that of what it added, and those of what members added
    to that of the sum.

    A member that says it received what it did not can have another one named; two cannot be told apart.

    Args:
        members: by rank.
        units: for each member the sum of the fingerprints of its units, modulo 2^64.
        received: by rank, for each rank's part the fingerprint of the slice that this rank received.
        summed: by rank, the fingerprints of each rank's slice of the sum as this rank has it.

    Raises:
        MemberError: some have another sum than the one that was made, and it cannot be found out who is wrong.
    """
    for rank, member in enumerate(members):
        made = sum(received[rank]) % WORD
        wrong = [one for one, told in zip(members, summed, strict=True) if told[rank] != made]
        if 2 * len(wrong) > len(members) > 2:
            return Guilty(member, "the sum that it handed on is not the sum of what it received")
        if wrong:
            raise MemberError(
                f"member {member} says that it handed on another sum than member {', '.join(map(str, wrong))} has, and "
                "no majority says who is wrong: test the memory and the network of their hosts, and start the run "
                "without the faulty one; it goes on from its last checkpoint",
                everywhere=True,
            )
    for rank, member in enumerate(members):
        if sum(told[rank] for told in received) % WORD != units[member] % WORD:
            return Guilty(member, "what it added to the sum is not what it had shown of its units")
    return None
