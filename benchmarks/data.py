"""Shuffled batches of 256 rows: the dataset reader, np.take from an array in memory, and h5py under a DataLoader.

Every contender delivers the same kind of batch from the same rows, more than the caches hold; all files are in the page
cache, so this is the cost of reading, not of the disk.

- hpcvol: `order` and `Split.take` into four buffers in turn, as the trainer does. Both are in the time.
- numpy_ram: np.take(..., out=, mode="clip"), its fastest form, from one array in memory into four buffers in turn;
  where the indices come from is not in the time.
- naive_h5py: a map-style dataset that returns `h5py_dataset[i]`, under a DataLoader with two workers that shuffles.
  What its workers need to start is not in the time.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
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


def hpcvol_batches(path: Path, shape: tuple[int, ...], dtype: str) -> Iterator[Array]:
    split = Dataset.open(path).split("train")
    split.take(np.arange(len(split)))  # the checksums are looked at in the first epoch, and not again
    buffers = ring(shape, dtype)
    epoch = 0
    while True:
        for position in range(0, len(split) - BATCH, BATCH):
            indices = order(len(split), 0, epoch, position, BATCH)
            yield split.take(indices, lambda _shape, _dtype: next(buffers))["x"]
        epoch += 1


def numpy_batches(array: Array, shape: tuple[int, ...], dtype: str) -> Iterator[Array]:
    buffers = ring(shape, dtype)
    rng = np.random.default_rng(0)
    while True:
        indices = rng.permutation(len(array))
        for position in range(0, len(array) - BATCH, BATCH):
            yield np.take(array, indices[position : position + BATCH], axis=0, out=next(buffers), mode="clip")


def timed(batches: Iterator[Any], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - begin)
    return seconds


def naive_seconds(path: Path, rows: int, count: int) -> float:
    """Return the mean time of a batch once the workers are under way: they hand over several at once."""
    loader = DataLoader(NaiveRows(path, rows), batch_size=BATCH, shuffle=True, num_workers=2)
    batches = iter(loader)
    for _ in range(6):
        next(batches)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - begin) / count


def compare(case: str, folder: Path, nbytes: int, rounds: int) -> list[Row]:
    shape, dtype = CASES[case]
    row_nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    rows = nbytes // row_nbytes
    array = np.random.default_rng(0).integers(0, 127, rows * row_nbytes, np.uint8).view(dtype).reshape(rows, *shape)
    np.savez(folder / "rows.npz", x=array)
    path = build_dataset("npz", [folder / "rows.npz"], folder / "dataset", split="train=1", overwrite=True)
    with h5py.File(folder / "naive.h5", "w") as file:
        file["x"] = array

    contenders: dict[str, Callable[[], list[float]]] = {}
    hpcvol, numpy = hpcvol_batches(path, shape, dtype), numpy_batches(array, shape, dtype)
    contenders["hpcvol"] = lambda: timed(hpcvol, 200)
    contenders["numpy_ram"] = lambda: timed(numpy, 200)
    contenders["naive_h5py"] = lambda: [naive_seconds(folder / "naive.h5", rows, 12)]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, measure in contenders.items():
            if name != "naive_h5py" or turn % 8 == 0:
                times[name] += measure()
    reference = {name: Row(name, case, BATCH * row_nbytes, 1, seconds).summary for name, seconds in times.items()}

    def extra(name: str) -> dict[str, float]:
        own = reference[name]
        return {
            "samples_per_second": BATCH / own["median"],
            "of_numpy_ram_p25": reference["numpy_ram"]["p25"] / own["p25"],
            "of_numpy_ram_median": reference["numpy_ram"]["median"] / own["median"],
            "of_naive_h5py_median": reference["naive_h5py"]["median"] / own["median"],
        }

    return [Row(name, case, BATCH * row_nbytes, 1, seconds, extra(name)) for name, seconds in times.items()]


def main() -> None:
    options = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="hpcvol-benchmark-"))
    try:
        nbytes, rounds = (1 << 27, 8) if options.quick else (1 << 29, 40)
        rows = [row for case in CASES for row in compare(case, folder, nbytes, rounds)]
    finally:
        shutil.rmtree(folder)
    publish("data", rows, options.json)


if __name__ == "__main__":
    main()
