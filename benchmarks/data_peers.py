"""Shuffled batches of 256 rows against FFCV, MosaicML Streaming, WebDataset and TensorStore, where they are installed.

All read the same rows, which they wrote in their own formats with their fastest settings for this: no compression,
files in the page cache. None of them is a dependency of hpcvol; those that are missing are named and left out. Each
contender's first batch is compared with the rows.

- hpcvol: `Split.take` into four buffers in turn; hpcvol_first_epoch opens the dataset anew for each epoch, so that
  every block is checked against its checksum, hpcvol_unchecked is the same without the checks.
- loader_0, loader_2: hpcvol's `MapDataset` in a torch DataLoader with 0 and 2 workers.
- tensorstore: a zarr array in chunks of 256 rows, cached in memory whole, one read a batch.
- webdataset: 16 tar files, shards shuffled, a shuffle buffer of 4096 samples.
- streaming_0, streaming_2: MDS shards in a DataLoader with 0 and 2 workers.
- ffcv: its Loader in random order, two threads.
"""

import importlib.util
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Generator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from report import Row, arguments, publish
from torch.utils.data import DataLoader

from hpcvol.data import Dataset, Split, build_dataset, order
from hpcvol.torch.dataloader import MapDataset

BATCH = 256
CASES: dict[str, tuple[tuple[int, ...], str]] = {"2KB": ((512,), "f4"), "3KB": ((32, 32, 3), "u1")}
Array = NDArray[Any]
Batches = Generator[Any, None, None]  # arrays or tensors [256, *shape], without end


def make_rows(num_rows: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Return random rows whose first four bytes are their number."""
    row_nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    rows = np.random.default_rng(0).integers(0, 127, (num_rows, row_nbytes), np.uint8)
    rows[:, :4] = np.arange(num_rows, dtype="<u4").view(np.uint8).reshape(num_rows, 4)
    return rows.view(dtype).reshape(num_rows, *shape)


def check(batch: Any, rows: Array) -> None:
    """Compare a batch with the rows that it says it has."""
    found = np.ascontiguousarray(np.asarray(batch))
    numbers = found.view(np.uint8).reshape(BATCH, -1)[:, :4].copy().view("<u4")[:, 0]
    np.testing.assert_array_equal(found.view(np.uint8), np.ascontiguousarray(rows[numbers]).view(np.uint8))


def epochs(split: Split, rows: Array) -> Batches:
    buffers = [np.zeros((BATCH, *rows.shape[1:]), rows.dtype) for _ in range(4)]
    turn = count()
    for epoch in count():
        for position in range(0, len(split) - BATCH, BATCH):
            indices = order(len(split), 0, epoch, position, BATCH)
            yield split.take(indices, lambda _shape, _dtype: buffers[next(turn) % 4])["x"]


def hpcvol(folder: Path, rows: Array) -> Batches:
    split = Dataset.open(folder / "dataset").split("train")
    split.take(np.arange(len(split)))
    return epochs(split, rows)


def reopened(folder: Path, rows: Array, *, checked: bool) -> Batches:
    while True:
        split = Dataset.open(folder / "dataset").split("train")
        if not checked:
            split._shards.checked[:] = 1
            split._shards.complete = True
        batches = epochs(split, rows)
        for _ in range(len(rows) // BATCH - 1):
            yield next(batches)


def loader(folder: Path, workers: int) -> Batches:
    data = MapDataset(folder / "dataset")
    batches = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)
    while True:
        for batch in batches:
            yield batch["x"]


def tensorstore(folder: Path, rows: Array) -> Batches:
    import tensorstore as ts

    store = ts.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(folder / "rows.zarr")},
            "metadata": {"chunks": [BATCH, *rows.shape[1:]], "compressor": None},
        },
        dtype=rows.dtype,
        shape=rows.shape,
        create=True,
        delete_existing=True,
        context=ts.Context({"cache_pool": {"total_bytes_limit": 2 * rows.nbytes}}),
    ).result()
    store.write(rows).result()
    for epoch in count():
        for position in range(0, len(rows) - BATCH, BATCH):
            yield store[order(len(rows), 0, epoch, position, BATCH)].read().result()


def webdataset(folder: Path, rows: Array) -> Batches:
    import webdataset as wds

    with wds.ShardWriter(str(folder / "rows-%03d.tar"), maxcount=-(-len(rows) // 16), verbose=0) as writer:
        for i, row in enumerate(rows):
            writer.write({"__key__": f"{i:08d}", "bin": row.tobytes()})
    files = sorted(str(path) for path in folder.glob("rows-*.tar"))
    pipeline = (
        wds.WebDataset(files, shardshuffle=16, empty_check=False)
        .shuffle(4096)
        .map(lambda sample: (np.frombuffer(sample["bin"], rows.dtype).reshape(rows.shape[1:]),))
        .batched(BATCH, partial=False)
    )
    while True:
        for (batch,) in pipeline:
            yield batch


def streaming(folder: Path, rows: Array, workers: int) -> Batches:
    from streaming import MDSWriter, StreamingDataset

    where = folder / f"mds-{workers}"
    kind = f"ndarray:{rows.dtype}:{','.join(map(str, rows.shape[1:]))}"
    with MDSWriter(out=str(where), columns={"x": kind}) as writer:
        for row in rows:
            writer.write({"x": row})
    data = StreamingDataset(local=str(where), shuffle=True, batch_size=BATCH)
    batches = DataLoader(data, BATCH, num_workers=workers, drop_last=True, persistent_workers=workers > 0)
    while True:
        for batch in batches:
            yield batch["x"]


def ffcv(folder: Path, rows: Array) -> Batches:
    from ffcv.fields import NDArrayField
    from ffcv.fields.decoders import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import DatasetWriter

    path = str(folder / "rows.beton")
    DatasetWriter(path, {"x": NDArrayField(rows.dtype, rows.shape[1:])}, num_workers=2).from_indexed_dataset(
        [(row,) for row in rows]
    )
    batches = Loader(
        path, BATCH, num_workers=2, order=OrderOption.RANDOM, os_cache=True, pipelines={"x": [NDArrayDecoder()]}
    )
    while True:
        for (batch,) in batches:
            yield batch


def contenders(folder: Path, rows: Array) -> dict[str, Batches]:
    """Return those that can be had here."""
    peers: dict[str, tuple[str, Callable[[], Batches]]] = {
        "tensorstore": ("tensorstore", lambda: tensorstore(folder, rows)),
        "webdataset": ("webdataset", lambda: webdataset(folder, rows)),
        "streaming_0": ("streaming", lambda: streaming(folder, rows, 0)),
        "streaming_2": ("streaming", lambda: streaming(folder, rows, 2)),
        "ffcv": ("ffcv", lambda: ffcv(folder, rows)),
    }
    found = {
        "hpcvol": hpcvol(folder, rows),
        "hpcvol_first_epoch": reopened(folder, rows, checked=True),
        "hpcvol_unchecked": reopened(folder, rows, checked=False),
        "loader_0": loader(folder, 0),
        "loader_2": loader(folder, 2),
    }
    for name, (package, make) in peers.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not installed")
            continue
        found[name] = make()
        try:
            check(next(found[name]), rows)
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name}: does not run here: {type(error).__name__}: {error}")
            del found[name]
    return found


def compare(case: str, folder: Path, nbytes: int, rounds: int) -> list[Row]:
    shape, dtype = CASES[case]
    rows = make_rows(nbytes // (int(np.prod(shape)) * np.dtype(dtype).itemsize), shape, dtype)
    np.savez(folder / "rows.npz", x=rows)
    build_dataset("npz", [folder / "rows.npz"], folder / "dataset", split="train=1", options={"non_finite": "keep"})
    batches = contenders(folder, rows)
    for iterator in batches.values():
        check(next(iterator), rows)
    times: dict[str, list[float]] = {name: [] for name in batches}
    per_epoch = len(rows) // BATCH - 1  # whole epochs, so that the checks and the loaders' starts are all in
    for _ in range(rounds):
        for name, iterator in batches.items():
            number = per_epoch if name.startswith("hpcvol") else min(per_epoch, 30)
            begin = time.perf_counter()
            for _ in range(number):
                next(iterator)
            times[name].append((time.perf_counter() - begin) / number)
    for iterator in batches.values():
        iterator.close()
    middle = {name: float(np.median(seconds)) for name, seconds in times.items()}

    def extra(name: str) -> dict[str, float]:
        return {"samples_per_second": BATCH / middle[name], "hpcvol_is_faster_by": middle[name] / middle["hpcvol"]}

    row_nbytes = rows[0].nbytes
    return [Row(name, case, BATCH * row_nbytes, 1, seconds, extra(name)) for name, seconds in times.items()]


def main() -> None:
    options = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of the peers
    nbytes, rounds = (1 << 24, 2) if options.quick else (1 << 27, 8)
    results: list[Row] = []
    for case in CASES:
        folder = Path(tempfile.mkdtemp(prefix="hpcvol-benchmark-"))
        try:
            results += compare(case, folder, nbytes, rounds)
        finally:
            shutil.rmtree(folder)
    publish("data_peers", results, options.json)


if __name__ == "__main__":
    main()
