"""Shards as mapped memory, each block of them checked when it is first touched."""

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from hpcvol.data.manifest import BLOCK_NBYTES, BLOCK_SHIFT, Shard
from hpcvol.errors import DataError

_REMEDY = "Copy the file again from where it is intact, or build the dataset again."
_LINK_REMEDY = "The dataset links to this file and does not own it: restore it, or build the dataset again."


class MappedShards:
    """The files of one split, mapped read-only.

    Blocks are numbered through all shards; `checked[block]` is 1 once its checksum was found right. A file is never
    mapped beyond its size (touching such a page kills the process with SIGBUS): sizes are compared with the manifest
    when mapping, and again whenever blocks are touched for the first time, which finds files that were cut short since.

    Args:
        files: where each shard lies, and what its manifest says of it.
        split: name, for errors.

    Raises:
        DataError: a shard is missing, or its size or first block is not what the manifest says.
    """

    def __init__(self, files: Sequence[tuple[Path, Shard]], split: str) -> None:
        self.paths = [path for path, _ in files]
        self.split = split
        self.shards = shards = [shard for _, shard in files]
        starts = np.cumsum([0, *(shard.num_blocks for shard in shards)], dtype=np.int64)
        self.first_blocks: NDArray[np.int64] = starts
        self.checked = np.zeros(int(starts[-1]), np.uint8)
        self.complete = False  # True once every block is checked: then there is nothing left to ask
        self._maps = [_map(path, shard) for path, shard in files]
        self._addresses: dict[str, NDArray[np.int64]] = {}
        self._memory = [np.frombuffer(mapped, np.uint8) for mapped in self._maps]
        # The first block holds the HDF5 header and the first rows: enough to know a file that is not the manifest's.
        self.check(starts[:-1])

    def addresses(self, array: str) -> NDArray[np.int64]:
        """Return int64[shards]: the address in memory of the data of `array` in each shard; `move` changes it."""
        if array not in self._addresses:
            starts = [self._address(number, array) for number in range(len(self.shards))]
            self._addresses[array] = np.array(starts, np.int64)
        return self._addresses[array]

    def move(self, number: int, path: Path, *, trusted: bool) -> None:
        """Read shard `number` from the file `path` from now on. No other thread may read meanwhile.

        Args:
            number: of the shard.
            path: a file of the same content.
            trusted: True where all its blocks were checked already.

        Raises:
            DataError: it is missing, or of another size; then nothing has changed.
        """
        self._maps[number] = _map(path, self.shards[number])
        self._memory[number] = np.frombuffer(self._maps[number], np.uint8)
        self.paths[number] = path
        for array, addresses in self._addresses.items():
            addresses[number] = self._address(number, array)
        self.checked[self.first_blocks[number] : self.first_blocks[number + 1]] = trusted
        self.complete = bool(self.checked.all())

    def _address(self, number: int, array: str) -> int:
        return int(self._memory[number].ctypes.data) + self.shards[number].offsets[array]

    def positions(self, array: str) -> NDArray[np.int64]:
        """Return int64[shards]: where the data of `array` begins, in bytes counted through all blocks."""
        within = np.array([shard.offsets[array] for shard in self.shards], np.int64)
        return (self.first_blocks[:-1] << BLOCK_SHIFT) + within

    def check(self, blocks: NDArray[np.int64]) -> None:
        """Check `blocks` (numbers, repeats allowed) against the manifest and mark them as checked.

        Raises:
            DataError: names the shard and the block that is damaged, or the shard that was cut short.
        """
        blocks = np.unique(blocks)
        owners = np.searchsorted(self.first_blocks, blocks, side="right") - 1
        self._check_sizes(np.unique(owners).tolist())
        for block, owner in zip(blocks.tolist(), owners.tolist(), strict=True):
            shard, number = self.shards[owner], block - int(self.first_blocks[owner])
            begin = number * BLOCK_NBYTES
            found = xxhash.xxh3_64_hexdigest(self._memory[owner][begin : begin + BLOCK_NBYTES])
            expected = shard.blocks[16 * number : 16 * number + 16]
            if found != expected:
                raise DataError(
                    f"Shard {self.paths[owner]} (split {self.split}) is damaged or not the one of this dataset: "
                    f"block {number} (bytes {begin} to {min(begin + BLOCK_NBYTES, shard.nbytes) - 1}) has checksum "
                    f"{found}, the manifest says {expected}. {_remedy(self.paths[owner], shard)}"
                )
        self.checked[blocks] = 1
        self.complete = bool(self.checked.all())

    def _check_sizes(self, owners: Iterable[int]) -> None:
        for owner in owners:
            if self._maps[owner].size() != self.shards[owner].nbytes:
                raise _wrong_size(self.paths[owner], self._maps[owner].size(), self.shards[owner])


def _map(path: Path, shard: Shard) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DataError(
            f"Shard {path} is missing; the manifest lists it with {shard.rows} rows. {_remedy(path, shard)}"
        ) from None
    except OSError as error:
        raise _cannot_open(path, error) from error
    try:
        size = os.fstat(descriptor).st_size
        if size != shard.nbytes:
            raise _wrong_size(path, size, shard)
        return mmap.mmap(descriptor, shard.nbytes, prot=mmap.PROT_READ)
    except OSError as error:
        raise _cannot_open(path, error) from error
    finally:
        os.close(descriptor)


def _cannot_open(path: Path, error: OSError) -> DataError:
    return DataError(
        f"Shard {path} cannot be opened: {error.strerror}. Each shard takes an open file: raise `ulimit -n` where "
        "there are too many, or build with larger shards (option shard_nbytes)."
    )


def _wrong_size(path: Path, size: int, shard: Shard) -> DataError:
    what = "truncated" if size < shard.nbytes else "too long"
    last_block = size // BLOCK_NBYTES
    return DataError(
        f"Shard {path} is {what}: it has {size} bytes (it ends in block {last_block}), the manifest says "
        f"{shard.nbytes}. {_remedy(path, shard)}"
    )


def _remedy(path: Path, shard: Shard) -> str:
    if not shard.modified_ns:
        return _REMEDY
    try:
        changed = path.stat().st_mtime_ns != shard.modified_ns
    except OSError:
        changed = False
    return f"It was changed after the dataset was built. {_LINK_REMEDY}" if changed else _LINK_REMEDY
