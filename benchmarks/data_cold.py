"""Shuffled batches of 256 rows from files that are not in memory, against reading the same files from end to end.

Every repetition first drops the files from the page cache and then reads each row once: an epoch of a dataset that is
larger than memory. TMPDIR has to be on the disk in question. Shares are of the sequential read's rate in the same run.

- sequential: read() of 1 MiB pieces, file after file; what the disk gives.
- hpcvol_window: rows shuffled within 4 shards at a time (`data.window = 4`), as the Trainer reads them.
- hpcvol: rows shuffled over the whole dataset, which then has to fit in memory.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from report import Row, arguments, publish

from hpcvol.data import Dataset, build_dataset
from hpcvol.data.mixing import concatenate
from hpcvol.data.windowed import WindowedOrder

BATCH = 256
ROW_NBYTES = 3072
WINDOW = 4


def drop(files: list[Path]) -> None:
    """Take `files` out of the page cache."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_sequentially(files: list[Path]) -> None:
    buffer = bytearray(1 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_an_epoch(folder: Path, window: int | None, epoch: int) -> None:
    dataset = Dataset.open(folder)
    shards = [shard.rows for _, shard in dataset.files("train")]
    split = concatenate([dataset], "train", None if window is None else WindowedOrder(shards, window))
    buffers = [np.empty((BATCH, ROW_NBYTES), np.uint8) for _ in range(4)]
    turn = iter(range(len(split)))
    for position in range(0, len(split), BATCH):
        count = min(BATCH, len(split) - position)
        rows = split.order(0, epoch, position, count)
        split.take(rows, lambda shape, _: buffers[next(turn) % 4][: shape[0]])


def main() -> None:
    options = arguments(str(__doc__)).parse_args()
    rows, shard_nbytes, rounds = (40_000, 1 << 23, 2) if options.quick else (1 << 20, 1 << 27, 5)
    folder = Path(tempfile.mkdtemp(prefix="hpcvol-benchmark-"))
    try:
        np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 255, (rows, ROW_NBYTES), np.uint8))
        np.savez(folder / "rows.npz", x=np.load(folder / "x.npy", mmap_mode="r"))
        dataset = build_dataset(
            "npz", [folder / "rows.npz"], folder / "dataset", split="train=1", options={"shard_nbytes": shard_nbytes}
        )
        files = sorted(dataset.glob("*.h5"))
        nbytes = sum(path.stat().st_size for path in files)
        contenders = {
            "sequential": lambda _: read_sequentially(files),
            "hpcvol_window": lambda epoch: read_an_epoch(dataset, WINDOW, epoch),
            "hpcvol": lambda epoch: read_an_epoch(dataset, None, epoch),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for epoch in range(rounds):
            for name, read in contenders.items():
                drop(files)
                begin = time.perf_counter()
                read(epoch)
                seconds[name].append(time.perf_counter() - begin)
    finally:
        shutil.rmtree(folder)
    reference = float(np.median(seconds["sequential"]))
    case = f"{nbytes >> 20} MiB in {len(files)} shards"
    publish(
        "data_cold",
        [
            Row(
                name,
                case,
                nbytes,
                1,
                times,
                {
                    "MB_per_second": nbytes / 1e6 / float(np.median(times)),
                    "of_disk": reference / float(np.median(times)),
                },
            )
            for name, times in seconds.items()
        ],
        options.json,
    )


if __name__ == "__main__":
    main()
