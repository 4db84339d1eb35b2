"""Which algorithm takes which vector: the cheapest by a table that is the first rank's, so that all choose alike."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from hpcvol.collectives import hierarchical
from hpcvol.collectives.algorithms import BEST_ON_NODE, CANDIDATES, ON_NODE, STAGED, Algorithm, Candidate
from hpcvol.collectives.broadcast import broadcast_bytes
from hpcvol.collectives.calling import calling
from hpcvol.collectives.measure import BY_MESSAGES, measure_level
from hpcvol.collectives.table import Cost, Level, Table
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector

AllReduce: TypeAlias = Callable[[Group, Vector, Op], None]

_NAME = "chooser"
_REMEMBERED = 4096

# What this process knows; what a group uses is that of its first rank.
_own = Table({})


def use_table(table: Table) -> None:
    """Let this process know `table`, in place of measurements. Local.

    Groups that have chosen already go on with theirs; a new group uses the one that its rank 0 knows.
    """
    global _own
    _own = table


def table_of(group: Group) -> Table:
    """Return the table by which `group` chooses: that of its rank 0, with what is missing there measured. Collective.

    Once a group: one short broadcast, and some tenths of a second where there is something to measure. Where all ranks
    share memory there is nothing to choose by it, and the table is empty.
    """
    return Table({}) if STAGED.usable(group) else _chooser(group).table


def choose(group: Group, vector: Vector, algorithm: Algorithm) -> AllReduce:
    """Return what combines `vector` over `group`. Collective when first called with "auto" or "hierarchical".

    The same on all ranks for the same algorithm, dtype and length.
    """
    if algorithm in CANDIDATES:
        return CANDIDATES[algorithm].allreduce
    if algorithm in ON_NODE:
        return ON_NODE[algorithm].allreduce
    if algorithm == "auto" and STAGED.usable(group):
        return BEST_ON_NODE  # without asking what it costs: nothing else comes near
    return _chooser(group).choose(vector, algorithm)


class Chooser:
    """Chooses for one group."""

    def __init__(self, group: Group, table: Table) -> None:
        self.table = table
        self._node_size = max(group.carriers.node_sizes)
        self._num_nodes = len(group.carriers.node_sizes)
        self._num_carriers = group.carriers.number
        self._size = group.size
        self._chosen: dict[tuple[int, Any, str], AllReduce] = {}

    def choose(self, vector: Vector, algorithm: Algorithm) -> AllReduce:
        """Return what is cheapest for `vector`; the first of equals. Local."""
        key = (vector.nbytes, vector.dtype, algorithm)
        chosen = self._chosen.get(key)
        if chosen is None:
            if len(self._chosen) >= _REMEMBERED:
                self._chosen.clear()
            costs = self.costs(vector.nbytes, vector.dtype)
            options = self._hierarchical(vector.nbytes, vector.dtype) if algorithm == "hierarchical" else costs
            chosen = self._chosen[key] = min(options.values(), key=lambda option: option[0])[1]
        return chosen

    def costs(self, nbytes: int, dtype: "np.dtype[Any]") -> dict[str, tuple[float, AllReduce]]:
        """Return seconds and function of every way there is, by name. Local."""
        flat = self._flat(nbytes, dtype)
        steps_differ = self._num_nodes > 1 and self._node_size > 1
        return {**flat, **self._hierarchical(nbytes, dtype)} if steps_differ else flat

    def _flat(self, nbytes: int, dtype: "np.dtype[Any]") -> dict[str, tuple[float, AllReduce]]:
        level = levels_of(self._num_nodes, self._node_size)[-1] if self._size > 1 else "node"
        return {
            candidate.name: (_seconds(candidate, cost, self._size, nbytes), candidate.allreduce)
            for candidate, cost in self._known(level)
            if candidate.takes(dtype)
        }

    def _hierarchical(self, nbytes: int, dtype: "np.dtype[Any]") -> dict[str, tuple[float, AllReduce]]:
        steps = self.table.costs.get("within", {}).get(BY_MESSAGES, Cost(0.0, 0.0))
        ranks = self._node_size
        inside = steps.seconds(2 * (ranks - 1), 2 * (ranks - 1) / ranks * nbytes)
        slice_nbytes = nbytes / self._num_carriers
        ways = self._known("between") or [(CANDIDATES["ring"], Cost(0.0, 0.0))]
        return {
            f"hierarchical, {candidate.name}": (
                inside + _seconds(candidate, cost, self._num_nodes, slice_nbytes),
                partial(hierarchical.allreduce, between=candidate.allreduce),
            )
            for candidate, cost in ways
            if candidate.takes(dtype)
        }

    def _known(self, level: Level) -> list[tuple[Candidate, Cost]]:
        costs = self.table.costs.get(level, {})
        return [(candidate, costs[name]) for name, candidate in CANDIDATES.items() if name in costs]


def levels_of(num_nodes: int, node_size: int) -> tuple[Level, ...]:
    """Return the levels that a group has; the last is that of algorithms which take all ranks for alike."""
    if num_nodes == 1:
        return ("node",) if node_size > 1 else ()
    return ("between",) if node_size == 1 else ("within", "between", "all")


def _chooser(group: Group) -> Chooser:
    chooser: Chooser | None = group.kept.get(_NAME)
    if chooser is None:
        with calling(group, "choose_algorithm"):
            chooser = group.kept[_NAME] = Chooser(group, _agree(group))
    return chooser


def _agree(group: Group) -> Table:
    """Return rank 0's table with all levels that `group` has. Collective."""
    global _own
    table = Table.from_json(broadcast_bytes(group, _own.to_json().encode()).decode())
    carriers = group.carriers
    missing = [
        level for level in levels_of(len(carriers.node_sizes), max(carriers.node_sizes)) if not table.covers([level])
    ]
    for level in missing:
        table = table.with_level(level, measure_level(group, level))
    _own = Table({**_own.costs, **table.costs})
    return table


def _seconds(candidate: Candidate, cost: Cost, size: int, nbytes: float) -> float:
    return cost.seconds(candidate.rounds(size), candidate.traffic(size) * nbytes)
