"""Which sample goes to which split."""

import re
from collections.abc import Mapping

import numpy as np
import xxhash
from numpy.typing import NDArray

from hpcvol.data.order import order
from hpcvol.errors import ConfigError

DEFAULT = "train=.9,val=.05,test=.05"
WINDOW_ROWS = 200


def parse_split(split: str | Mapping[str, float]) -> dict[str, float]:
    """Return the share of each split by name; shares are positive and add up to 1.

    >>> parse_split("train=.8,val=.2")
    {'train': 0.8, 'val': 0.2}

    Raises:
        ConfigError: not of that form, or another sum.
    """
    if isinstance(split, str):
        pairs = [pair.partition("=") for pair in split.split(",") if pair.strip()]
        try:
            shares = {name.strip(): float(share) for name, _, share in pairs}
        except ValueError:
            raise ConfigError(f"Split {split!r} cannot be read; expected name=share, such as {DEFAULT}.") from None
        if len(shares) != len(pairs):
            raise ConfigError(f"Split {split!r} names a split twice.")
    else:
        shares = {name: float(share) for name, share in split.items()}
    for name, share in shares.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise ConfigError(f"Split name {name!r}: expected a letter, then letters, digits or underscores.")
        if not 0 < share <= 1:
            raise ConfigError(f"Split {name} has a share of {share}; expected more than 0 and at most 1.")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(f"The shares of splits {shares} add up to {sum(shares.values()):g}, expected 1.")
    return shares


def assign_rows(window: int, num_rows: int, shares: Mapping[str, float]) -> NDArray[np.int64]:
    """Return which split (by position in `shares`) each row of a window of the input belongs to.

    Every window is divided in proportion (largest remainders) and at random by its number, so the shares hold wherever
    the input is cut, sorted inputs are mixed, and a row's split does not depend on the rows of other windows.

    Args:
        window: number of the window.
        num_rows: at most WINDOW_ROWS; fewer in the last window.
        shares: see `parse_split`.

    Returns:
        int64[num_rows].
    """
    quotas = np.array(list(shares.values())) * num_rows
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    left = num_rows - int(counts.sum())
    counts[np.argsort(counts - quotas, kind="stable")[:left]] += 1
    slots = order(num_rows, seed=0, epoch=window, position=0, count=num_rows)
    return np.searchsorted(np.cumsum(counts), slots, side="right").astype(np.int64)


def assign_name(name: str, shares: Mapping[str, float]) -> str:
    """Return the split of the document `name`: by a hash of the name alone, so that it stays as others come and go."""
    fraction = xxhash.xxh3_64_intdigest(name.encode()) / 2**64
    bounds = np.cumsum(list(shares.values()))
    return list(shares)[min(int(np.searchsorted(bounds, fraction, side="right")), len(shares) - 1)]
