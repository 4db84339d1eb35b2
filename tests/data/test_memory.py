"""Building takes the same memory however large the input is."""

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import inputs
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

pytestmark = pytest.mark.without_mpi

ROW_NBYTES = 40_000
LARGE_ROWS = 2500  # 100 MB
SMALL_ROWS = 400
BOUND_NBYTES = 50 << 20

# The peak is that of the process itself (VmHWM): the one that getrusage gives begins with what its parent had.
BUILD = """
import sys
from pathlib import Path
from hpcvol.data import Dataset, build_dataset

def peak():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10

kind, small, large, out = sys.argv[1:]
build_dataset(kind, [small], out + "/small")
before = peak()
build_dataset(kind, [large], out + "/large")
print(peak() - before, sum(Dataset.open(out + "/large").splits.values()))
"""


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, ROW_NBYTES), np.uint8)


def write_npz(path: Path, count: int) -> None:
    np.savez(path, x=rows(count))


def write_hdf5(path: Path, count: int) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = rows(count)


def write_parquet(path: Path, count: int) -> None:
    values = pyarrow.FixedSizeListArray.from_arrays(rows(count).reshape(-1), ROW_NBYTES)
    pyarrow.parquet.write_table(pyarrow.table({"x": values}), path, compression="none", use_dictionary=False)


def write_tar(path: Path, count: int) -> None:
    with tarfile.open(path, "w") as tar:
        for i, row in enumerate(rows(count)):
            inputs.add_sample(tar, f"s{i}", {"x.bin": row.tobytes(), "cls": b"1"})


def write_bytes(path: Path, count: int) -> None:
    path.write_bytes(rows(count).tobytes())


def write_csv(path: Path, count: int) -> None:
    line = io.BytesIO()
    np.savetxt(line, np.arange(ROW_NBYTES // 40)[None], fmt="%d", delimiter=",")
    path.write_bytes(b",".join(b"c%d" % i for i in range(ROW_NBYTES // 40)) + b"\n" + line.getvalue() * count)


KINDS: dict[str, tuple[str, Callable[[Path, int], None], int]] = {
    "text": ("txt", write_bytes, 1),
    "tokens": ("bin", write_bytes, 1),
    "npz": ("npz", write_npz, 1),
    "hdf5": ("h5", write_hdf5, 1),
    "parquet": ("parquet", write_parquet, 1),
    "webdataset": ("tar", write_tar, 1),
    "csv": ("csv", write_csv, 2),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_memory_does_not_grow_with_the_input(tmp_path: Path, kind: str) -> None:
    suffix, write, fewer = KINDS[kind]
    write(tmp_path / f"small.{suffix}", SMALL_ROWS)
    write(tmp_path / f"large.{suffix}", LARGE_ROWS // fewer)
    paths = [str(tmp_path / f"{size}.{suffix}") for size in ("small", "large")]
    run = subprocess.run(
        [sys.executable, "-c", BUILD, kind, *paths, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    grown, samples = map(int, run.stdout.split())
    assert samples > LARGE_ROWS // fewer * 0.95 or kind in ("text", "tokens")
    assert grown < BOUND_NBYTES, f"{grown >> 20} MiB more for {LARGE_ROWS * ROW_NBYTES >> 20} MiB of input"
