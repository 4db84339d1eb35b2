"""An order that shuffles within a few shards at a time, so that a cache smaller than the data can move along."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hpcvol.data.order import order
from hpcvol.errors import DataError

# Epochs never get here: the numbers from here on tell the permutations of windows apart.
_WINDOWS_EPOCH = 1 << 61


class WindowedOrder:
    """Every row once an epoch: the shards in a random order, and the rows of each `window` of them in a row shuffled.

    A pure function of (seed, epoch, position), in memory of a few numbers a shard.

    Args:
        shard_rows: rows of each shard, in the order of the rows.
        window: shards whose rows are shuffled together.

    Attributes:
        num_samples: in every epoch.
    """

    def __init__(self, shard_rows: Sequence[int], window: int) -> None:
        self._rows = np.array(shard_rows, np.int64)
        self._first_rows = np.cumsum([0, *shard_rows[:-1]], dtype=np.int64)
        self._window = window
        self._num_windows = -(-len(shard_rows) // window)
        self.num_samples = int(self._rows.sum())
        self._visits = lru_cache(maxsize=4)(self._visits_of)

    def __call__(self, seed: int, epoch: int, position: int, count: int) -> NDArray[np.int64]:
        """Return the rows at positions `position` .. `position + count - 1` of an epoch, as `order` does."""
        end = position + count
        if position < 0 or count < 0 or end > self.num_samples:
            raise DataError(
                f"Positions {position} to {end - 1} are not all within an epoch of {self.num_samples} samples."
            )
        pieces = [np.empty(0, np.int64)]
        while position < end:
            shards, starts = self._visits(seed, epoch)
            window = self._window_at(seed, epoch, position)
            bounds = starts[window * self._window : (window + 1) * self._window + 1]
            first, last = int(bounds[0]), int(bounds[-1])
            taken = min(end, last) - position
            stream = _WINDOWS_EPOCH + epoch * self._num_windows + window
            drawn = order(last - first, seed, stream, position - first, taken) + first
            visit = np.searchsorted(bounds, drawn, side="right") - 1
            pieces.append(drawn - bounds[visit] + self._first_rows[shards[window * self._window + visit]])
            position += taken
        return np.concatenate(pieces)

    def shards_ahead(self, seed: int, epoch: int, position: int) -> list[int]:
        """Return the shards of the window at `position`, then those of the one after it, in the order of their use."""
        shards, _ = self._visits(seed, epoch)
        begin = self._window_at(seed, epoch, position) * self._window
        ahead = shards[begin : begin + 2 * self._window].tolist()
        if begin + self._window >= len(shards):
            ahead += self._visits(seed, epoch + 1)[0][: self._window].tolist()
        return list(dict.fromkeys(ahead))

    def _window_at(self, seed: int, epoch: int, position: int) -> int:
        _, starts = self._visits(seed, epoch)
        return (int(np.searchsorted(starts, position, side="right")) - 1) // self._window

    def _visits_of(self, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shards in the epoch's order, and the position at which each begins (and the end)."""
        shards = order(len(self._rows), seed, _WINDOWS_EPOCH - 1 - epoch, 0, len(self._rows))
        return shards, np.cumsum(np.concatenate([[0], self._rows[shards]]), dtype=np.int64)


class FollowedOrder:
    """A `WindowedOrder` that tells, whenever it is asked, which shards training needs now and next.

    Args:
        order: the order.
        want: takes the shards' numbers, in the order of their use.

    Attributes:
        num_samples: in every epoch.
    """

    def __init__(self, order: WindowedOrder, want: Callable[[Sequence[int]], None]) -> None:
        self._order = order
        self._want = want
        self.num_samples = order.num_samples

    def __call__(self, seed: int, epoch: int, position: int, count: int) -> NDArray[np.int64]:
        """See `WindowedOrder`."""
        self._want(self._order.shards_ahead(seed, epoch, position))
        return self._order(seed, epoch, position, count)
