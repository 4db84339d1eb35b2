"""Reading all of a dataset, and naming everything in it that is damaged, with the samples that it affects."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash

from hpcvol.data.manifest import BLOCK_NBYTES, FILE_NAME, Field, Manifest, Shard, offsets_name, read_manifest

OnRead = Callable[[int], object]

# xxh3 hashes 12 GB/s in a thread, without the GIL: threads are there to keep several reads in flight, without which
# network file systems and SSDs do not come to their speed.
_NUM_THREADS = 4
_PIECE_BLOCKS = 16
_OFFSET_NBYTES = 8


@dataclass(frozen=True)
class Damage:
    """One thing of a dataset that is not what the manifest says.

    Args:
        file: the shard.
        what: in words, such as `blocks 3 to 4 (bytes 786432 to 1310719) differ from their checksums`.
        split: of the shard.
        samples: first and last of the split's samples that may be affected; None where none is (a shard's header).
    """

    file: Path
    what: str
    split: str
    samples: tuple[int, int] | None

    def __str__(self) -> str:
        if self.samples is None:
            return f"{self.file}: {self.what}; no sample lies there"
        first, last = self.samples
        which = f"sample {first}" if first == last else f"samples {first} to {last}"
        return f"{self.file}: {self.what}; affects {which} of split {self.split}"


def verify_dataset(folder: Path, on_read: OnRead = lambda _nbytes: None) -> list[Damage]:
    """Read every block of every shard of the dataset in `folder` and return all that is damaged. Local.

    Files are read and not mapped, so that one that shrinks meanwhile is a finding and not the end of the process.

    Args:
        folder: of the dataset.
        on_read: called with numbers of bytes as they have been read, by several threads.

    Raises:
        DataError: there is no dataset, or its manifest is damaged.
    """
    manifest = read_manifest(folder)
    damages: list[Damage] = []
    with ThreadPoolExecutor(_NUM_THREADS, "hpcvol-verify") as threads:
        for split, shards in manifest.splits.items():
            first = 0
            for shard in shards:
                place = _Place(folder / shard.file, shard, split, first, manifest.fields)
                damages += _verify_shard(place, threads, on_read)
                first += shard.rows
    return damages


def dataset_nbytes(manifest: Manifest) -> int:
    """Return the size of all shards together, in bytes."""
    return sum(shard.nbytes for shard in chain.from_iterable(manifest.splits.values()))


def unlisted_files(folder: Path, manifest: Manifest) -> list[Path]:
    """Return what lies in a dataset's folder and is no part of it, by name. Local."""
    listed = {FILE_NAME, *(shard.file for shard in chain.from_iterable(manifest.splits.values()))}
    return sorted(path for path in folder.iterdir() if path.name not in listed)


@dataclass(frozen=True)
class _Place:
    """One shard, and where it stands in its split."""

    path: Path
    shard: Shard
    split: str
    first_sample: int
    fields: Mapping[str, Field]

    def damage(self, what: str, rows: tuple[int, int] | None) -> Damage:
        samples = None if rows is None else (self.first_sample + rows[0], self.first_sample + rows[1])
        return Damage(self.path, what, self.split, samples)

    @property
    def all_rows(self) -> tuple[int, int] | None:
        return (0, self.shard.rows - 1) if self.shard.rows else None


def _verify_shard(place: _Place, threads: ThreadPoolExecutor, on_read: OnRead) -> Iterator[Damage]:
    shard = place.shard
    try:
        descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error.strerror})"
        yield place.damage(what, place.all_rows)
        return
    try:
        size = os.fstat(descriptor).st_size
        if size != shard.nbytes:
            what = f"is {'truncated' if size < shard.nbytes else 'too long'}: {size} bytes, expected {shard.nbytes}"
            yield place.damage(what, _rows_in(place, descriptor, size, shard.nbytes))
        whole_blocks = shard.num_blocks if size >= shard.nbytes else size // BLOCK_NBYTES
        pieces = range(0, whole_blocks, _PIECE_BLOCKS)
        found = threads.map(lambda first: _bad_blocks(place, descriptor, first, whole_blocks, on_read), pieces)
        for first, last, why in _runs(chain.from_iterable(found)):
            begin, end = first * BLOCK_NBYTES, min((last + 1) * BLOCK_NBYTES, shard.nbytes)
            blocks = f"block {first}" if first == last else f"blocks {first} to {last}"
            what = f"{blocks} (bytes {begin} to {end - 1}): {why}"
            yield place.damage(what, _rows_in(place, descriptor, begin, end))
    finally:
        os.close(descriptor)


def _bad_blocks(place: _Place, descriptor: int, first: int, num_blocks: int, on_read: OnRead) -> list[tuple[int, str]]:
    """Return (block, why) of the damaged ones among `_PIECE_BLOCKS` blocks from `first` on, all below `num_blocks`."""
    shard, bad = place.shard, []
    begin, last = first * BLOCK_NBYTES, min(first + _PIECE_BLOCKS, num_blocks)
    buffer = memoryview(bytearray(min(last * BLOCK_NBYTES, shard.nbytes) - begin))
    try:
        filled = _read(descriptor, buffer, begin)
    except OSError as error:
        return [(block, f"cannot be read ({error.strerror})") for block in range(first, last)]
    on_read(filled)
    for block in range(first, last):
        at = (block - first) * BLOCK_NBYTES
        found = xxhash.xxh3_64_hexdigest(buffer[at : min(at + BLOCK_NBYTES, filled)])
        if found != shard.blocks[16 * block : 16 * block + 16]:
            bad.append((block, "not what the manifest's checksum says"))
    return bad


def _read(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset` on, as far as the file goes; return the number of bytes."""
    filled = 0
    while filled < len(buffer) and (number := os.preadv(descriptor, [buffer[filled:]], offset + filled)):
        filled += number
    return filled


def _runs(blocks: Iterable[tuple[int, str]]) -> Iterator[tuple[int, int, str]]:
    """Join neighbours: yield (first, last, why)."""
    run: tuple[int, int, str] | None = None
    for block, why in blocks:
        if run is not None and block == run[1] + 1 and why == run[2]:
            run = (run[0], block, why)
            continue
        if run is not None:
            yield run
        run = (block, block, why)
    if run is not None:
        yield run


def _rows_in(place: _Place, descriptor: int, begin: int, end: int) -> tuple[int, int] | None:
    """Return first and last row of the shard that have something in bytes `begin` to `end - 1`, None where none has."""
    found: list[tuple[int, int]] = []
    for name, field in place.fields.items():
        if not field.ragged:
            found += _overlap(place.shard.offsets[name], field.item_nbytes, place.shard.rows, begin, end)
            continue
        bounds = place.shard.offsets[offsets_name(name)]
        for first, last in _overlap(bounds, _OFFSET_NBYTES, place.shard.rows + 1, begin, end):
            # Offset i is the end of row i - 1 and the beginning of row i.
            found.append((max(0, first - 1), min(last, place.shard.rows - 1)))
        items = _overlap(place.shard.offsets[name], field.item_nbytes, place.shard.items[name], begin, end)
        found += [_rows_of_items(place, descriptor, bounds, *span) for span in items]
    return (min(first for first, _ in found), max(last for _, last in found)) if found else None


def _overlap(start: int, stride: int, count: int, begin: int, end: int) -> list[tuple[int, int]]:
    """Return [(first, last)] of `count` entries of `stride` bytes from `start` on that overlap, [] where none does."""
    if stride == 0 or count == 0 or end <= start or begin >= start + stride * count:
        return []
    return [(max(0, (begin - start) // stride), min(count - 1, (end - 1 - start) // stride))]


def _rows_of_items(place: _Place, descriptor: int, bounds: int, first: int, last: int) -> tuple[int, int]:
    """Return the rows that hold items `first` to `last` of a ragged field, all rows where its offsets are damaged."""
    rows = place.shard.rows
    buffer = bytearray((rows + 1) * _OFFSET_NBYTES)
    try:
        whole = _read(descriptor, memoryview(buffer), bounds) == len(buffer)
    except OSError:
        whole = False
    offsets = np.frombuffer(buffer, "<i8")
    if not whole or (np.diff(offsets) < 0).any():
        return 0, rows - 1
    begin, end = np.searchsorted(offsets, [first, last], side="right") - 1
    return int(np.clip(begin, 0, rows - 1)), int(np.clip(end, 0, rows - 1))
