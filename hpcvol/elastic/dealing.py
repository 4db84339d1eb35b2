"""How many of a step's units each worker is given."""

import heapq
from collections.abc import Sequence


def shares(number: int, speeds: Sequence[float]) -> list[int]:
    """Return how many of `number` equal units each worker computes so that the last of them is done soonest. Pure.

    Each unit goes to the worker that would be done with it first, the earlier one of equals: no other way of giving
    them out ends sooner. Workers of one speed get shares that differ by one at most, the earlier ones the larger.

    Args:
        number: of units.
        speeds: units a second by worker, 0 for one that is to get none; one at least is not 0. The same on all
            members, or they deal differently.
    """
    given = [0] * len(speeds)
    waiting = [(1 / speed, worker) for worker, speed in enumerate(speeds) if speed > 0]
    heapq.heapify(waiting)
    for _ in range(number):
        _, worker = waiting[0]
        given[worker] += 1
        heapq.heapreplace(waiting, ((given[worker] + 1) / speeds[worker], worker))
    return given
