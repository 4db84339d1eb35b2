"""Reading from several threads, from many shards, and without what only writing needs."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hpcvol.data import Dataset, build_dataset, order
from hpcvol.errors import DataError
from hpcvol.kernels import gather, permutation

pytestmark = pytest.mark.without_mpi


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    x = np.random.default_rng(0).standard_normal((20_000, 50)).astype(np.float32)
    np.savez(folder / "a.npz", x=x, i=np.arange(20_000))
    return build_dataset("npz", [folder / "a.npz"], folder / "out", split="train=1", options={"shard_nbytes": 400_000})


def test_threads_share_a_split(path: Path) -> None:
    """All of them meet unchecked blocks at once."""
    split = Dataset.open(path).split("train")
    x = np.load(path.parent / "a.npz")["x"]

    def read(worker: int) -> None:
        for batch in range(40):
            indices = order(len(split), seed=worker, epoch=0, position=batch * 100, count=100)
            np.testing.assert_array_equal(split.take(indices)["x"], x[indices])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, range(8)))


def test_the_order_of_the_input_is_kept_over_many_shards(path: Path) -> None:
    split = Dataset.open(path).split("train")
    assert len(list(path.glob("*.h5"))) > 8
    np.testing.assert_array_equal(split.take(np.arange(len(split)))["i"], np.arange(20_000))


def test_an_empty_batch_has_the_shape_of_a_batch(path: Path) -> None:
    batch = Dataset.open(path).split("train").take(np.array([], np.int64))
    assert batch["x"].shape == (0, 50)


def test_too_many_open_files_say_what_to_raise(path: Path) -> None:
    code = (
        "import resource; from hpcvol.data import Dataset; from hpcvol.errors import DataError\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))\n"
        f"try: Dataset.open({str(path)!r}).split('train')\n"
        "except DataError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ulimit -n" in run.stdout


def test_reading_imports_neither_h5py_nor_torch_nor_mpi(path: Path) -> None:
    code = (
        "import sys; import numpy as np; from hpcvol.data import Dataset\n"
        f"Dataset.open({str(path)!r}).split('train').take(np.arange(3))\n"
        "print([name for name in ('h5py', 'torch', 'mpi4py') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_kernels_release_the_gil_and_are_cached() -> None:
    kernels = [
        value for module in (gather, permutation) for value in vars(module).values() if hasattr(value, "py_func")
    ]
    if not kernels:
        pytest.skip("NUMBA_DISABLE_JIT")
    assert len(kernels) >= 8
    assert all(kernel.targetoptions["nogil"] for kernel in kernels)
    assert all(type(kernel._cache).__name__ == "FunctionCache" for kernel in kernels)


def test_the_manifest_is_whole_in_memory_and_shards_are_not_opened_before_their_split_is(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "dataset.json").write_bytes((path / "dataset.json").read_bytes())
    dataset = Dataset.open(tmp_path)
    assert dataset.splits == {"train": 20_000}
    with pytest.raises(DataError, match="is missing"):
        dataset.split("train")
