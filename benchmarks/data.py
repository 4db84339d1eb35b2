"""Shuffled batches of 256 rows: the dataset reader, np.take from an array in memory, and h5py under a DataLoader.

Every contender delivers the same kind of batch from the same rows, more than the caches hold; all files are in the page
cache, so this is the cost of reading, not of the disk.

- hpcvol: `Split.take` into four buffers in turn, as the trainer does.
- hpcvol_with_order: the same with the call of `order` that says which samples; for the others the indices are ready.
- numpy_ram: np.take(..., out=, mode="clip"), its fastest form, from one array in memory into four buffers in turn.
- naive_h5py: a map-style dataset that returns `h5py_dataset[i]`, under a DataLoader with two workers that shuffles.
  What its workers need to start is not in the time.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from report import Row, arguments, publish
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hpcvol.data import Dataset, build_dataset, order

BATCH = 256
CASES: dict[str, tuple[tuple[int, ...], str]] = {
    "256B": ((64,), "f4"),
    "2KB": ((512,), "f4"),
    "3KB": ((32, 32, 3), "u1"),
}
Array = NDArray[Any]


class NaiveRows(TorchDataset[Array]):
    """One h5py read a sample, file opened by each worker."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self.rows = rows
        self.file: Any = None

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> Array:
        if self.file is None:
            self.file = h5py.File(self.path, "r")
        return np.asarray(self.file["x"][i])


def ring(shape: tuple[int, ...], dtype: str) -> Iterator[Array]:
    buffers = [np.zeros((BATCH, *shape), dtype) for _ in range(4)]
    while True:
        yield from buffers


def hpcvol_contenders(path: Path, shape: tuple[int, ...], dtype: str) -> dict[str, Iterator[float]]:
    split = Dataset.open(path).split("train")
    split.take(np.arange(len(split)))  # the checksums are looked at in the first epoch, and not again
    buffers = ring(shape, dtype)

    def allocate(_shape: tuple[int, ...], _dtype: np.dtype[Any]) -> Array:
        return next(buffers)

    def indices(position: int, epoch: int) -> NDArray[np.int64]:
        return order(len(split), 0, epoch, position, BATCH)

    return {
        "hpcvol": timed(len(split), indices, lambda ready: split.take(ready, allocate)),
        "hpcvol_with_order": timed(len(split), lambda *at: at, lambda at: split.take(indices(*at), allocate)),
    }


def numpy_contender(array: Array, shape: tuple[int, ...], dtype: str) -> Iterator[float]:
    buffers = ring(shape, dtype)

    def indices(position: int, epoch: int) -> NDArray[np.int64]:
        return order(len(array), 0, epoch, position, BATCH)

    return timed(len(array), indices, lambda ready: np.take(array, ready, axis=0, out=next(buffers), mode="clip"))


def timed(rows: int, prepare: Callable[[int, int], Any], work: Callable[[Any], Any]) -> Iterator[float]:
    """Yield the seconds of `work(prepare(position, epoch))` for one batch after the other; `prepare` is not in them."""
    for epoch in count():
        for position in range(0, rows - BATCH, BATCH):
            prepared = prepare(position, epoch)
            begin = time.perf_counter()
            work(prepared)
            yield time.perf_counter() - begin


def naive_seconds(path: Path, rows: int, batches: int) -> float:
    """Return the mean time of a batch once the workers are under way: they hand over several at once."""
    loader = DataLoader(NaiveRows(path, rows), batch_size=BATCH, shuffle=True, num_workers=2)
    iterator = iter(loader)
    for _ in range(6):
        next(iterator)
    begin = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return (time.perf_counter() - begin) / batches


def compare(case: str, folder: Path, nbytes: int, rounds: int) -> list[Row]:
    shape, dtype = CASES[case]
    row_nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    rows = nbytes // row_nbytes
    array = np.random.default_rng(0).integers(0, 127, rows * row_nbytes, np.uint8).view(dtype).reshape(rows, *shape)
    np.savez(folder / "rows.npz", x=array)
    path = build_dataset("npz", [folder / "rows.npz"], folder / "dataset", split="train=1", overwrite=True)
    with h5py.File(folder / "naive.h5", "w") as file:
        file["x"] = array

    contenders = hpcvol_contenders(path, shape, dtype) | {"numpy_ram": numpy_contender(array, shape, dtype)}
    times: dict[str, list[float]] = {name: [] for name in (*contenders, "naive_h5py")}
    for turn in range(rounds):
        for _ in range(10):
            for name, seconds in contenders.items():
                times[name] += islice(seconds, 20)
        if turn % 8 == 0:
            times["naive_h5py"].append(naive_seconds(folder / "naive.h5", rows, 12))
    reference = {name: Row(name, case, BATCH * row_nbytes, 1, seconds).summary for name, seconds in times.items()}

    def extra(name: str) -> dict[str, float]:
        own = reference[name]
        return {
            "samples_per_second": BATCH / own["median"],
            "of_numpy": reference["numpy_ram"]["median"] / own["median"],
            "of_numpy_p25": reference["numpy_ram"]["p25"] / own["p25"],
            "of_naive": reference["naive_h5py"]["median"] / own["median"],
        }

    return [Row(name, case, BATCH * row_nbytes, 1, seconds, extra(name)) for name, seconds in times.items()]


def main() -> None:
    options = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="hpcvol-benchmark-"))
    try:
        nbytes, rounds = (1 << 25, 2) if options.quick else (1 << 29, 40)
        rows = [row for case in CASES for row in compare(case, folder, nbytes, rounds)]
    finally:
        shutil.rmtree(folder)
    publish("data", rows, options.json)


if __name__ == "__main__":
    main()
