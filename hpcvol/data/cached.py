"""A split whose shards are read from the node's own disk, as they come to lie there."""

import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcvol.data.cache import CacheFiller
from hpcvol.data.dataset import EpochOrder, Split
from hpcvol.data.manifest import Field, Shard
from hpcvol.data.mapped import MappedShards
from hpcvol.data.readers import Allocate, Array
from hpcvol.data.windowed import FollowedOrder, WindowedOrder
from hpcvol.errors import DataError


class CachedSplit(Split):
    """A split with a cache; what is not in the cache yet is read where it lies.

    Copies are checked against the manifest when they are made, and by each process before it reads them.

    Args:
        files: where each shard lies, and what its manifest says of it.
        split: name, for errors.
        fields: of every sample.
        order: what training visits; with a `WindowedOrder` the cache moves along.
        folder: of the cache.

    Attributes:
        cache: fills the folder.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, Shard]],
        split: str,
        fields: Mapping[str, Field],
        order: EpochOrder | None,
        folder: Path,
    ) -> None:
        super().__init__(MappedShards(files, split), fields, order)
        self.cache = CacheFiller(folder, files, moves_along=isinstance(order, WindowedOrder))
        weakref.finalize(self, self.cache.close)
        self._mutex = threading.Lock()
        if isinstance(order, WindowedOrder):
            self.order = FollowedOrder(order, self.cache.want)

    def take(self, indices: NDArray[np.int64], allocate: Allocate = np.empty) -> dict[str, Array]:
        """See `Split.take`. One thread at a time: meanwhile no shard may move."""
        with self._mutex:
            for number, path in self.cache.take_changes().items():
                with suppress(DataError):  # it went again: the cache will say so, and until then the old one is there
                    self._shards.move(number, path, trusted=path.parent == self.cache.folder)
            return super().take(indices, allocate)
