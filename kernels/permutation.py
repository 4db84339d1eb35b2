"""A pseudo-random permutation of 0..n-1 whose values can be computed one by one, in constant memory.

The permutation is an alternating Feistel network over the smallest power of two that holds n, with cycle walking back
into 0..n-1. Its round function is a 32-bit integer hash, so every value is the same on every machine.

References:
    Luby and Rackoff, How to construct pseudorandom permutations from pseudorandom functions, SIAM J. Comput. 1988.
    Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002 (cycle walking).
    Wellons, hash-prospector: the 32-bit hash "lowbias32".
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

NUM_ROUNDS = 6
_LOW32 = 0xFFFFFFFF


@njit(nogil=True, cache=True)
def hash32(x: int) -> int:
    """Return a hash of x, both below 2^32: a bijection."""
    # Plain ints under a 32-bit mask: int64 wraps in compiled code and is exact in Python, the low 32 bits agree.
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW32
    return x ^ (x >> 16)


@njit(nogil=True, cache=True)
def round_keys(seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the keys of the rounds, int64[NUM_ROUNDS] below 2^32, a hash of the 63-bit `seed` and `epoch`."""
    state = hash32(seed & _LOW32)
    state = hash32(state ^ (seed >> 32))
    state = hash32(state ^ (epoch & _LOW32))
    state = hash32(state ^ (epoch >> 32))
    keys = np.empty(NUM_ROUNDS, np.int64)
    for i in range(NUM_ROUNDS):
        state = hash32((state + 0x9E3779B9) & _LOW32)
        keys[i] = state
    return keys


@njit(nogil=True, cache=True)
def _encipher(values: Any, right_bits: int, left_mask: int, right_mask: int, keys: Any) -> None:
    k0, k1, k2, k3, k4, k5 = int(keys[0]), int(keys[1]), int(keys[2]), int(keys[3]), int(keys[4]), int(keys[5])
    for i in range(values.size):
        x = int(values[i])
        left, right = x >> right_bits, x & right_mask
        # Unequal halves change in turn, each under its own mask: a bijection for any number of bits, odd ones too.
        left ^= hash32(right ^ k0) & left_mask
        right ^= hash32(left ^ k1) & right_mask
        left ^= hash32(right ^ k2) & left_mask
        right ^= hash32(left ^ k3) & right_mask
        left ^= hash32(right ^ k4) & left_mask
        right ^= hash32(left ^ k5) & right_mask
        values[i] = (left << right_bits) | right


@njit(nogil=True, cache=True)
def permute_at(num_samples: int, seed: int, epoch: int, places: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Write the values of the permutation at positions `places` into `out`. Overwrites `places`, too.

    Args:
        num_samples: n, at least 1; the permutation is one of 0..n-1.
        seed: 0 to 2^63 - 1.
        epoch: 0 to 2^63 - 1; each pair (seed, epoch) has a permutation of its own.
        places: int64[count], each in 0..n-1.
        out: int64[count].
    """
    num_bits = 0
    while (num_samples - 1) >> num_bits > 0:
        num_bits += 1
    left_bits = num_bits // 2
    right_bits = num_bits - left_bits
    keys = round_keys(seed, epoch)
    values = places
    slots = np.arange(out.size)
    pending = out.size
    # Values that leave 0..n-1 go through the cipher again, all of a pass together so that the compiler vectorises it.
    while pending > 0:
        _encipher(values[:pending], right_bits, (1 << left_bits) - 1, (1 << right_bits) - 1, keys)
        outside = 0
        for i in range(pending):
            value, slot = values[i], slots[i]
            out[slot] = value
            values[outside] = value
            slots[outside] = slot
            outside += int(value >= num_samples)
        pending = outside


@njit(nogil=True, cache=True)
def permute(num_samples: int, seed: int, epoch: int, start: int, out: NDArray[np.int64]) -> None:
    """Write the values of the permutation at positions start, start + 1, ... into `out`.

    Args:
        num_samples: as in `permute_at`.
        seed: as in `permute_at`.
        epoch: as in `permute_at`.
        start: first position; start + out.size must not be beyond n.
        out: int64[count], overwritten.
    """
    permute_at(num_samples, seed, epoch, np.arange(start, start + out.size), out)
