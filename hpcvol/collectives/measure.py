"""Timing the algorithms where they are to run: some milliseconds each, so that the choice rests on this machine."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from hpcvol.collectives import hierarchical, recursive_doubling
from hpcvol.collectives.algorithms import CANDIDATES, Candidate
from hpcvol.collectives.slices import even_bounds
from hpcvol.collectives.table import Cost, Level, Measurement, fit
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector

NBYTES = tuple(1 << bits for bits in range(10, 23, 2))  # 1 KiB to 4 MiB
REPETITIONS = 3

# At a level. A next size begins only if it is expected to end within it.
BUDGET_SECONDS = 0.2
_GROWTH = 4

# The step within nodes of the hierarchical algorithm, by messages.
WITHIN = "within"


def measure_level(group: Group, level: Level) -> Mapping[str, Cost]:
    """Time all algorithms at a level of `group`; the same answer on all ranks. Collective over `group`.

    Args:
        group: "node" is timed on its nodes all at once, "between" on the carriers, all at once, "all" on itself.
        level: which.
    """
    began = time.perf_counter()
    part = _part(group, level)
    candidates = [*CANDIDATES.values(), *([_within()] if level == "node" else [])]
    measured: dict[str, list[Measurement]] = {candidate.name: [] for candidate in candidates}
    size = _largest(group, part)
    spent = np.zeros(1)
    for nbytes in NBYTES:
        before = spent[0]
        vector = np.ones(nbytes // 4, np.float32)
        for candidate in candidates:
            seconds = _time(group, part, candidate, vector)
            measured[candidate.name].append(
                Measurement(candidate.rounds(size), candidate.traffic(size) * nbytes, seconds)
            )
        spent = np.array([time.perf_counter() - began])
        recursive_doubling.allreduce(group, spent, "max")
        if spent[0] + _GROWTH * (spent[0] - before) > BUDGET_SECONDS:
            break
    return {name: fit(rows) for name, rows in measured.items()}


def _time(group: Group, part: Group | None, candidate: Candidate, vector: Vector) -> float:
    """Return the least time of some repetitions, of which the slowest rank's counts."""
    seconds = np.zeros(REPETITIONS + 1)
    for repetition in range(seconds.size):
        vector.fill(1.0)
        began = time.perf_counter()
        if part is not None and part.size > 1:
            candidate.allreduce(part, vector, "max")
        seconds[repetition] = time.perf_counter() - began
    recursive_doubling.allreduce(group, seconds, "max")
    return float(max(seconds[1:].min(), 1e-9))  # the first one warms up


def _part(group: Group, level: Level) -> Group | None:
    parts: Mapping[Level, Callable[[], Group | None]] = {
        "node": lambda: group.node,
        "between": lambda: group.carriers.peers,
        "all": lambda: group,
    }
    return parts[level]()


def _largest(group: Group, part: Group | None) -> int:
    """Return the largest part that any rank has."""
    size = np.array([part.size if part is not None else 1])
    recursive_doubling.allreduce(group, size, "max")
    return int(size[0])


def _within() -> Candidate:
    def allreduce(node: Group, vector: Vector, op: Op) -> None:
        bounds = even_bounds(vector.size, node.size)
        steps = hierarchical.ByMessages()
        steps.reduce_scatter(node, vector, bounds, op)
        steps.all_gather(node, vector, bounds)

    return Candidate(WITHIN, allreduce, lambda size: 2 * (size - 1), lambda size: 2 * (size - 1) / size)
