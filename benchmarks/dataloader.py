"""A stock torch DataLoader over hpcvol datasets: two workers against none, and against torch's own hand-over.

Each repetition is one shuffled epoch, all contenders in turn; the time is that of a batch. All files are in the page
cache, and the number in a contender's name is that of its workers.
What a loader that costs nothing loses by worker processes is the worst case for them: a transform that takes time is
what they are for. `cpu_training` is the training process's time for a batch, `of_none` the speed against no workers.

- hpcvol_map, hpcvol_iterable: `MapDataset` and `IterableDataset`.
- torch: the same gather in `__getitems__`, its tensors handed over by torch.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from report import Row, arguments, publish
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hpcvol import IterableDataset, MapDataset
from hpcvol.data import Dataset, build_dataset

CASES: dict[str, tuple[tuple[int, ...], str, int]] = {
    "2KB, 256 a batch": ((512,), "f4", 256),
    "2KB, 1024 a batch": ((512,), "f4", 1024),
    "12KB, 256 a batch": ((64, 64, 3), "u1", 256),
}
WORKERS = (0, 2)


class PlainRows(TorchDataset[Any]):
    """Rows gathered in one call, and left to torch from there."""

    def __init__(self, path: Path) -> None:
        self.split = Dataset.open(path).split("train")

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        return self.split.take(np.asarray(indices))


def to_torch(batch: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def loaders(path: Path, batch_size: int) -> dict[str, DataLoader[Any]]:
    found: dict[str, DataLoader[Any]] = {}
    for workers in WORKERS:
        settings: dict[str, Any] = {"num_workers": workers}
        if workers:
            settings |= {"persistent_workers": True, "prefetch_factor": 4}
        by_index = {"batch_size": batch_size, "shuffle": True, "drop_last": True, **settings}
        iterable = IterableDataset(path, batch_size=batch_size, drop_last=True)
        found[f"hpcvol_map_{workers}"] = DataLoader(MapDataset(path), **by_index)
        found[f"hpcvol_iterable_{workers}"] = DataLoader(iterable, batch_size=None, **settings)
        found[f"torch_{workers}"] = DataLoader(PlainRows(path), collate_fn=to_torch, **by_index)
    return found


def epoch_seconds(loader: DataLoader[Any]) -> tuple[float, float]:
    """Return wall-clock and this process's processor time a batch, once the workers are under way."""
    iterator = iter(loader)
    next(iterator)
    wall, cpu, batches = time.perf_counter(), time.process_time(), 0
    for _ in iterator:
        batches += 1
    return (time.perf_counter() - wall) / batches, (time.process_time() - cpu) / batches


def compare(case: str, folder: Path, nbytes: int, rounds: int) -> list[Row]:
    shape, dtype, batch_size = CASES[case]
    row_nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    rows = np.random.default_rng(0).integers(0, 127, (nbytes // row_nbytes, *shape)).astype(dtype)
    np.savez(folder / "rows.npz", x=rows)
    path = build_dataset("npz", [folder / "rows.npz"], folder / "dataset", split="train=1", overwrite=True)
    contenders = loaders(path, batch_size)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, loader in contenders.items():
            measured = epoch_seconds(loader)
            if turn:  # the first looks at checksums and fills caches
                times[name].append(measured)
    median = {name: float(np.median([wall for wall, _ in one])) for name, one in times.items()}
    return [
        Row(
            name,
            case,
            batch_size * row_nbytes,
            1,
            [wall for wall, _ in one],
            {
                "samples_per_second": batch_size / median[name],
                "of_none": median[f"{name.rpartition('_')[0]}_0"] / median[name],
                "cpu_training": float(np.median([cpu for _, cpu in one])),
            },
        )
        for name, one in times.items()
    ]


def main() -> None:
    options = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="hpcvol-benchmark-"))
    try:
        nbytes, rounds = (1 << 25, 2) if options.quick else (1 << 28, 15)
        rows = [row for case in CASES for row in compare(case, folder, nbytes, rounds)]
    finally:
        shutil.rmtree(folder)
    publish("dataloader", rows, options.json)


if __name__ == "__main__":
    main()
