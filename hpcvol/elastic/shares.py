"""How many units of a step each member gets: pure arithmetic, the same on every member."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heapify, heapreplace


@dataclass(frozen=True)
class Worker:
    """What dealing knows of a member.

    Attributes:
        seconds: that it takes for a unit, > 0; so many times more as its priority is below the highest.
        limit: units it may get.
    """

    seconds: float
    limit: int


def shares(count: int, workers: Sequence[Worker]) -> list[int]:
    """Return how many of `count` units each worker gets, so that the last of them is done as early as can be.

    Of shares that are equally good earlier workers have more. Where all limits together are less than `count`, there
    are no limits but those of 0, and where all are 0 none at all.
    """
    if sum(worker.limit for worker in workers) < count:
        some = any(worker.limit for worker in workers)
        workers = [Worker(worker.seconds, count if worker.limit or not some else 0) for worker in workers]
    full: set[int] = set()
    while True:
        # By then each could have done so many, if units could be cut: nobody gets fewer, since all those are done
        # before any other would be.
        open_ones = [index for index in range(len(workers)) if index not in full]
        rates = sum((1 / Fraction(workers[index].seconds) for index in open_ones), Fraction())
        left = count - sum(workers[index].limit for index in full)
        done = left / rates if rates else Fraction()
        found = [int(done / Fraction(worker.seconds)) for worker in workers]
        over = {index for index in open_ones if found[index] > workers[index].limit}
        if not over:
            break
        full |= over
    found = [worker.limit if index in full else found[index] for index, worker in enumerate(workers)]
    for _ in range(count - sum(found)):
        free = [index for index, worker in enumerate(workers) if found[index] < worker.limit]
        best = min(free, key=lambda index: (workers[index].seconds * (found[index] + 1), index))
        found[best] += 1
    return found


def finish(dealt: Sequence[int], workers: Sequence[Worker]) -> float:
    """Return after how many seconds the last of the workers is done with its share."""
    return max(number * worker.seconds for number, worker in zip(dealt, workers, strict=True))


def expected_end(count: int, seconds: Sequence[float], held: int = 0) -> float:
    """Return after how many seconds `count` units are done at the earliest if each worker has `held` others first.

    Args:
        count: units, > 0.
        seconds: a unit, of each worker.
        held: units that come first.
    """
    uncut = count / sum(1 / one for one in seconds)
    taken = [max(held, int(uncut / one)) for one in seconds]
    next_ends = [(one * (number + 1), index) for index, (one, number) in enumerate(zip(seconds, taken, strict=True))]
    heapify(next_ends)
    end = max((one * number for one, number in zip(seconds, taken, strict=True) if number > held), default=0.0)
    for _ in range(count - sum(taken) + held * len(taken)):
        end, index = next_ends[0]
        heapreplace(next_ends, (end + seconds[index], index))
    return end
