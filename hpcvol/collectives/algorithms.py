"""The all-reduce algorithms by name, and what each costs in terms of ranks and bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from hpcvol.collectives import cross_memory, halving_doubling, library, recursive_doubling, ring, staged
from hpcvol.collectives.calling import calling
from hpcvol.collectives.combine import HALF
from hpcvol.comm.calls import ALGORITHMS
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector
from hpcvol.errors import ConfigError

# What `comm.algorithm` may be: `ALGORITHMS`.
Algorithm: TypeAlias = Literal[
    "auto", "ring", "recursive_doubling", "halving_doubling", "hierarchical", "library", "staged", "cross_memory"
]


@dataclass(frozen=True)
class Candidate:
    """An algorithm over ranks that are all alike, and how its cost grows with their number.

    Attributes:
        name: as in `Algorithm`.
        allreduce: combines a vector over a group, in place.
        rounds: messages one after the other, of so many ranks.
        traffic: bytes through one rank's link for each byte of the vector, of so many ranks.
        takes: whether `auto` may give it vectors of a dtype.
    """

    name: str
    allreduce: Callable[[Group, Vector, Op], None]
    rounds: Callable[[int], float]
    traffic: Callable[[int], float]
    takes: Callable[[Any], bool] = lambda _: True


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


@dataclass(frozen=True)
class OnNode:
    """An algorithm for ranks that are all on one node. It numbers its calls itself.

    Attributes:
        name: as in `Algorithm`.
        allreduce: as that of a candidate.
        find_out: returns whether it can work over a group, which it remembers in `group.kept` under its name.
        needs: what it needs, in words.
    """

    name: str
    allreduce: Callable[[Group, Vector, Op], None]
    find_out: Callable[[Group], bool]
    needs: str

    def usable(self, group: Group) -> bool:
        """Return whether it can work over `group`. Collective when first asked."""
        if self.name in group.kept:
            return self.find_out(group)
        with calling(group, "choose_algorithm"):
            return self.find_out(group)


STAGED = OnNode(
    "staged",
    partial(staged.allreduce, algorithm="staged"),
    staged.usable,
    "all members on one host, in memory that they share",
)
CROSS_MEMORY = OnNode(
    "cross_memory",
    cross_memory.allreduce,
    cross_memory.usable,
    "all members on one host, with the permission to read each other's memory (ptrace)",
)
ON_NODE = {one.name: one for one in (STAGED, CROSS_MEMORY)}
# What "auto" takes where it can.
BEST_ON_NODE = staged.allreduce
NUMBER_THEMSELVES = frozenset([BEST_ON_NODE, *(one.allreduce for one in ON_NODE.values())])


def check_name(name: str) -> None:
    """Refuse an algorithm that does not exist. Local.

    Raises:
        ConfigError: with `everywhere` set.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"unknown algorithm {name!r}: expected one of {', '.join(ALGORITHMS)}", everywhere=True)


def check_algorithm(group: Group, name: str) -> None:
    """Refuse an algorithm that does not exist, or that cannot work over `group`. Collective; the same on all ranks.

    Raises:
        ConfigError: with `everywhere` set; what can be had instead.
    """
    check_name(name)
    if name in ON_NODE and not ON_NODE[name].usable(group):
        hosts = ", ".join(dict.fromkeys(group.hosts))
        raise ConfigError(
            f"the all-reduce algorithm {name!r} needs {ON_NODE[name].needs}, which members on {hosts} do not have: "
            'choose another, or "auto"',
            everywhere=True,
        )
