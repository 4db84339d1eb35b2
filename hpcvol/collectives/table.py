"""The cost of each algorithm: seconds = alpha · rounds + beta · traffic · bytes, fitted to short measurements.

References:
    Hockney, The communication challenge for MPP: Intel Paragon and Meiko CS-2, Parallel Computing 20 (1994), section 3.
    Thakur, Rabenseifner and Gropp, Optimization of collective communication operations in MPICH, IJHPCA 19 (2005),
    section 3.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import numpy as np

# Between which ranks: of one node; one of each node, all carriers of a node at once; all ranks of several nodes. And
# "within": what the hierarchical algorithm does within nodes.
Level: TypeAlias = Literal["node", "within", "between", "all"]
LEVELS: tuple[Level, ...] = ("node", "within", "between", "all")

_FORMAT = 1
_ITERATIONS = 10
_TOLERANCE = 0.1  # relative deviation from which on a measurement counts less


@dataclass(frozen=True)
class Cost:
    """What a message and a byte cost.

    Attributes:
        alpha: seconds a round.
        beta: seconds a byte of traffic.
    """

    alpha: float
    beta: float

    def seconds(self, rounds: float, traffic_nbytes: float) -> float:
        """Return what so many rounds and bytes take."""
        return self.alpha * rounds + self.beta * traffic_nbytes


@dataclass(frozen=True)
class Measurement:
    """One algorithm, timed: rounds, bytes of traffic, seconds."""

    rounds: float
    traffic_nbytes: float
    seconds: float


@dataclass(frozen=True)
class Table:
    """The cost of algorithms by level and name. The same table gives the same choices on every rank.

    Attributes:
        costs: by level, then by algorithm.
    """

    costs: Mapping[Level, Mapping[str, Cost]]

    def covers(self, levels: Sequence[Level]) -> bool:
        """Return whether there is something about all of these levels."""
        return all(self.costs.get(level) for level in levels)

    def with_level(self, level: Level, costs: Mapping[str, Cost]) -> Self:
        """Return this table with other costs at `level`."""
        return type(self)({**self.costs, level: dict(costs)})

    def to_json(self) -> str:
        """Return the table as text, which `from_json` reads back to the same numbers."""
        levels = {
            level: {name: {"alpha": cost.alpha, "beta": cost.beta} for name, cost in costs.items()}
            for level, costs in self.costs.items()
        }
        return json.dumps({"format": _FORMAT, "costs": levels}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the table that `text` tells.

        Raises:
            ValueError: it tells none.
        """
        try:
            content: Any = json.loads(text)
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, expected {_FORMAT}")
            costs: dict[Level, dict[str, Cost]] = {
                level: {name: _cost(cost) for name, cost in content["costs"][level].items()}
                for level in LEVELS
                if level in content["costs"]
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no table of costs: {type(error).__name__} {error}") from None
        return cls(costs)


def fit(measurements: Sequence[Measurement]) -> Cost:
    """Return the alpha and beta that come closest to the measurements, in proportion to each.

    Least squares of the relative deviation, by which a short message counts as much as a long one; what lies far off
    (another program had the core) counts less, by Huber's weights. Neither is negative.

    Args:
        measurements: one or more, of any number of rounds and bytes.
    """
    rounds, traffic, seconds = np.array([[m.rounds, m.traffic_nbytes, m.seconds] for m in measurements]).T
    # Scaled, so that both columns are of one size.
    scale = traffic.max() or 1.0
    terms = np.stack([rounds, traffic / scale], axis=1) / seconds[:, None]
    weights = np.ones(len(measurements))
    for _ in range(_ITERATIONS):
        alpha, beta = _least_squares(terms * weights[:, None], weights)
        deviation = np.abs(terms @ np.array([alpha, beta]) - 1)
        weights = np.sqrt(_TOLERANCE / np.maximum(deviation, _TOLERANCE))
    return Cost(float(alpha), float(beta / scale))


def _least_squares(terms: Any, ones: Any) -> tuple[float, float]:
    """Solve for two numbers that are not negative."""
    (alpha, beta), *_ = np.linalg.lstsq(terms, ones, rcond=None)
    if alpha < 0 or beta < 0:
        # The best with one of them alone; with two unknowns that is all there is to try.
        alone = [float(column @ ones / max(column @ column, 1e-300)) for column in terms.T]
        left = [float(np.sum((column * one - ones) ** 2)) for column, one in zip(terms.T, alone, strict=True)]
        alpha, beta = (alone[0], 0.0) if left[0] <= left[1] else (0.0, alone[1])
    return float(alpha), float(beta)


def _cost(content: Any) -> Cost:
    alpha, beta = float(content["alpha"]), float(content["beta"])
    if not (0 <= alpha < math.inf and 0 <= beta < math.inf):
        raise ValueError(f"alpha {alpha} and beta {beta}: expected numbers that are not negative")
    return Cost(alpha, beta)
