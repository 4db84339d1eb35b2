"""The all-reduce algorithms by name, and what each costs in terms of ranks and bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from hpcvol.collectives import halving_doubling, library, recursive_doubling, ring
from hpcvol.collectives.combine import HALF
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector
from hpcvol.errors import ConfigError

# What `comm.algorithm` may be.
Algorithm: TypeAlias = Literal["auto", "ring", "recursive_doubling", "halving_doubling", "hierarchical", "library"]


@dataclass(frozen=True)
class Candidate:
    """An algorithm over ranks that are all alike, and how its cost grows with their number.

    Attributes:
        name: as in `Algorithm`.
        allreduce: combines a vector over a group, in place.
        rounds: messages one after the other, of so many ranks.
        traffic: bytes through one rank's link for each byte of the vector, of so many ranks.
        takes: whether `auto` may give it vectors of a dtype.
        refuses: why it cannot work over a group, and what to do; None where it can. The same on all ranks, local.
    """

    name: str
    allreduce: Callable[[Group, Vector, Op], None]
    rounds: Callable[[int], float]
    traffic: Callable[[int], float]
    takes: Callable[[Any], bool] = lambda _: True
    refuses: Callable[[Group], str | None] = lambda _: None


def _two_trips(size: int) -> float:
    return 2 * (size - 1) / size


def _doublings(size: int) -> float:
    """Exchanges of recursive doubling, those with ranks that are folded in among them."""
    whole = size.bit_length() - 1
    return whole if size == 1 << whole else whole + 2


# The library's own choice between algorithms is not told; these are the terms of the best one for short, and for long.
CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate("ring", ring.allreduce, lambda size: 2 * (size - 1), _two_trips),
        Candidate("recursive_doubling", recursive_doubling.allreduce, _doublings, _doublings),
        Candidate(
            "halving_doubling",
            halving_doubling.allreduce,
            lambda size: 2 * (size.bit_length() - 1) + (0 if size & (size - 1) == 0 else 2),
            lambda size: _two_trips(1 << (size.bit_length() - 1)) + (0 if size & (size - 1) == 0 else 2),
        ),
        # Its detour over float32 for half types is not what was measured.
        Candidate("library", library.allreduce, _doublings, _two_trips, lambda dtype: dtype.name not in HALF),
    )
}


def check_algorithm(group: Group, name: str) -> None:
    """Refuse an algorithm that does not exist, or that cannot work over `group`. The same on all ranks.

    Raises:
        ConfigError: with `everywhere` set; what can be had instead.
    """
    if name not in get_args(Algorithm):
        raise ConfigError(
            f"unknown algorithm {name!r}: expected one of {', '.join(get_args(Algorithm))}", everywhere=True
        )
    reason = CANDIDATES[name].refuses(group) if name in CANDIDATES else None
    if reason is not None:
        raise ConfigError(f"the all-reduce algorithm {name!r} cannot work here: {reason}", everywhere=True)
