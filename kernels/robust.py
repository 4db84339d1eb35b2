"""Combining the vectors of several members so that a few of them, whatever they hold, cannot decide the outcome.

A stack has one row a member. What is not a number counts as infinitely large: it is an outlier, and as such left out.
All is added in double, in the order of rows or of size: the same rows give the same bits.
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def trimmed_mean(stack, trim, out):  # type: ignore[no-untyped-def]
    """Write to `out`, element by element, the mean of what is left without the `trim` smallest and largest.

    Args:
        stack: float32[members, n] or float64[members, n], left alone.
        trim: from each end, less than half of the members. With (members - 1) // 2 it is the median, with 0 the mean.
        out: of the stack's dtype, [n], changed in place.
    """
    members, numel = stack.shape
    column = np.empty(members, np.float64)
    for i in range(numel):
        for member in range(members):
            value = np.float64(stack[member, i])
            if value != value:
                value = np.float64(np.inf)
            place = member
            while place > 0 and column[place - 1] > value:
                column[place] = column[place - 1]
                place -= 1
            column[place] = value
        total = 0.0
        for place in range(trim, members - trim):
            total += column[place]
        out[i] = total / (members - 2 * trim)


@njit(nogil=True, cache=True)
def squared_distances(stack, distances):  # type: ignore[no-untyped-def]
    """Write |x_i - x_j|² of all rows to `distances`; infinity where one of the two is not finite.

    Args:
        stack: as for `trimmed_mean`.
        distances: float64[members, members], changed in place.
    """
    members = stack.shape[0]
    for one in range(members):
        distances[one, one] = 0.0
        for other in range(one):
            distances[one, other] = distances[other, one] = _squared_distance(stack[one], stack[other])


@njit(nogil=True, cache=True)
def squared_distances_from(centre, stack, distances):  # type: ignore[no-untyped-def]
    """Write |x_i - centre|² of all rows to `distances`, float64[members]; infinity where a row is not finite."""
    for member in range(stack.shape[0]):
        distances[member] = _squared_distance(stack[member], centre)


@njit(nogil=True, cache=True)
def _squared_distance(one, other):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(one.size):
        difference = np.float64(one[i]) - np.float64(other[i])
        total += difference * difference
    return np.inf if total != total else total


@njit(nogil=True, cache=True)
def move(centre, stack, shares):  # type: ignore[no-untyped-def]
    """Move `centre` by Σ shares_i · (x_i - centre) / members, in place; rows whose share is 0 are not looked at.

    Args:
        centre: of the stack's dtype, [n].
        stack: as for `trimmed_mean`.
        shares: float64[members].
    """
    members, numel = stack.shape
    for i in range(numel):
        start = np.float64(centre[i])
        total = 0.0
        for member in range(members):
            if shares[member] > 0.0:
                total += shares[member] * (np.float64(stack[member, i]) - start)
        centre[i] = start + total / members
