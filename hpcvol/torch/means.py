"""Means that everybody computes alike: what schedules, early stopping and reports read."""

import math
from collections.abc import Iterable


def weighted_mean(terms: Iterable[tuple[float, int]]) -> float:
    """Return Σ weight·value / Σ weight over pairs (value, weight); NaN where the weights add up to 0.

    Each product is rounded to double, which is the same whoever computes it; the sum of products is rounded once
    (`math.fsum`), so that it does not depend on the order of terms.
    """
    pairs = list(terms)
    total = sum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / total if total else math.nan
