"""A number beside data that one process changes and others copy: odd while they change, other afterwards."""

from numba import njit

from hpcvol.kernels.atomics import compare_exchange, load_acquire, store_release


@njit(nogil=True, cache=True)
def look(address):  # type: ignore[no-untyped-def]
    """Return the number at `address`; all that was written before it can be read."""
    return load_acquire(address)


@njit(nogil=True, cache=True)
def begin(address, value):  # type: ignore[no-untyped-def]
    """Make the even number `value` odd: what is written from now on is written after that."""
    compare_exchange(address, value, value + 1)


@njit(nogil=True, cache=True)
def tell(address, value):  # type: ignore[no-untyped-def]
    """Write the number: all that was written before is there for who sees it."""
    store_release(address, value)


@njit(nogil=True, cache=True)
def unchanged(address, value):  # type: ignore[no-untyped-def]
    """Whether the number is still `value` after all that was read before."""
    return compare_exchange(address, value, value)
