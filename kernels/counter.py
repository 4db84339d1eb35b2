"""A counter that processes share: each takes the next number, and no two take the same one.

It is one int64 in memory that all of them map: the turn in its upper half, and in the lower one how many numbers of
that turn are taken. A later turn begins by itself when somebody takes its first number, so that nobody has to reset the
counter, and who is late with an earlier turn takes nothing. A process may die at any point: what it took is gone, and
the others go on.
"""

from numba import njit

from hpcvol.kernels.atomics import compare_exchange, load_acquire

TURN_BITS = 32
_TAKEN = (1 << TURN_BITS) - 1


@njit(nogil=True, cache=True)
def take(address, turn, limit):  # type: ignore[no-untyped-def]
    """Take the next number of a turn.

    Args:
        address: of the counter.
        turn: below 2^31; as large as that of any number taken before, or nothing is left.
        limit: numbers from 0 to `limit` - 1 are there to be taken.

    Returns:
        The number; -1 where none is left.
    """
    while True:
        word = load_acquire(address)
        now = word >> TURN_BITS
        if now > turn:
            return -1
        taken = word & _TAKEN if now == turn else 0
        if taken >= limit:
            return -1
        if compare_exchange(address, word, (turn << TURN_BITS) + taken + 1):
            return taken


@njit(nogil=True, cache=True)
def left(address, turn, limit):  # type: ignore[no-untyped-def]
    """Return how many numbers of a turn are still there; arguments as for `take`."""
    word = load_acquire(address)
    now = word >> TURN_BITS
    if now > turn:
        return 0
    return limit - (word & _TAKEN) if now == turn else limit
