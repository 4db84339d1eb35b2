"""Timing the algorithms where they are to run: some tenths of a second, so that the choice rests on this machine."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hpcvol.collectives import hierarchical, recursive_doubling
from hpcvol.collectives.algorithms import CANDIDATES, Candidate
from hpcvol.collectives.slices import even_bounds
from hpcvol.collectives.table import Cost, Level, Measurement, fit
from hpcvol.comm.group import Group
from hpcvol.comm.vectors import Op, Vector

NBYTES = (1 << 10, 1 << 15, 1 << 20, 1 << 23)

# At a level. A next size begins only if what was measured so far lets expect that it ends within it.
BUDGET_SECONDS = 0.25
# Of one size. Few where messages are slow; many where they are fast, because another program that has the core for some
# milliseconds would otherwise slow all of them down.
_LEAST_TURNS = 3
_MOST_TURNS = 50

# The steps within nodes of the hierarchical algorithm.
BY_MESSAGES = "by_messages"


def measure_level(group: Group, level: Level) -> Mapping[str, Cost]:
    """Time all algorithms at a level of `group`; the same answer on all ranks. Collective over `group`.

    Args:
        group: "node" is timed on its nodes all at once, "between" on the carriers, all at once, "all" on itself.
        level: which; "within" is timed on nodes too.
    """
    part = _part(group, level)
    candidates = [_within()] if level == "within" else list(CANDIDATES.values())
    size = int(_largest(group, np.array([1 if part is None else part.size]))[0])
    rows: list[list[Measurement]] = [[] for _ in candidates]
    costs: list[Cost] = []
    spent = 0.0
    turns = _MOST_TURNS // 2
    for nbytes in NBYTES:
        terms = [(candidate.rounds(size), candidate.traffic(size) * nbytes) for candidate in candidates]
        expected = sum(cost.seconds(*term) for cost, term in zip(costs, terms, strict=False))
        if costs:
            left = (BUDGET_SECONDS - spent) / 2
            turns = min(_MOST_TURNS, int(left / max(expected, 1e-9)))
            if turns < _LEAST_TURNS:
                break
        seconds, least = _time(group, part, candidates, nbytes, turns)
        spent += seconds
        for of_candidate, term, one in zip(rows, terms, least, strict=True):
            of_candidate.append(Measurement(*term, one))
        costs = [fit(of_candidate) for of_candidate in rows]
    return dict(zip([candidate.name for candidate in candidates], costs, strict=True))


def _time(
    group: Group, part: Group | None, candidates: Sequence[Candidate], nbytes: int, turns: int
) -> tuple[float, Sequence[float]]:
    """Return how long all took, and the least time of each, in which the slowest rank counts; the same on all ranks.

    The candidates take turns, so that what disturbs the machine for a while disturbs all of them.
    """
    vector = np.zeros(nbytes // 4, np.float32)
    times = np.zeros((turns + 1, len(candidates)), np.int64)
    for turn in range(turns + 1):
        for number, candidate in enumerate(candidates):
            vector.fill(0.0)  # as gradients are: written just before
            began = time.perf_counter_ns()
            if part is not None and part.size > 1:
                candidate.allreduce(part, vector, "sum")
            times[turn, number] = time.perf_counter_ns() - began
    slowest = _largest(group, times.reshape(-1)).reshape(times.shape)
    least = np.maximum(slowest[1:].min(axis=0), 1)  # the first turn warms up
    return float(slowest.sum()) * 1e-9, (least * 1e-9).tolist()


def _part(group: Group, level: Level) -> Group | None:
    parts: Mapping[Level, Callable[[], Group | None]] = {
        "node": lambda: group.node,
        "within": lambda: group.node,
        "between": lambda: group.carriers.peers,
        "all": lambda: group,
    }
    return parts[level]()


def _largest(group: Group, numbers: Vector) -> Vector:
    """Return the largest of each of the int64 `numbers` on any rank."""
    largest = numbers.astype(np.int64)
    recursive_doubling.allreduce(group, largest, "max")
    return largest


def _within() -> Candidate:
    def allreduce(node: Group, vector: Vector, op: Op) -> None:
        bounds = even_bounds(vector.size, node.size)
        steps = hierarchical.ByMessages()
        steps.reduce_scatter(node, vector, bounds, op)
        steps.all_gather(node, vector, bounds)

    return Candidate(BY_MESSAGES, allreduce, lambda size: 2 * (size - 1), lambda size: 2 * (size - 1) / size)
