"""The cache on a node's own disk: filled in the background, checked, and smaller than the data where it has to be."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from hpcvol.data import Dataset, build_dataset, cache
from hpcvol.data.cached import CachedSplit
from hpcvol.data.windowed import WindowedOrder
from hpcvol.errors import DataError

pytestmark = pytest.mark.without_mpi

NUM_ROWS = 2000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    x = np.random.default_rng(0).integers(0, 255, (NUM_ROWS, 100), np.uint8)
    np.savez(folder / "a.npz", x=x, i=np.arange(NUM_ROWS))
    return build_dataset("npz", [folder / "a.npz"], folder / "out", split="train=1", options={"shard_nbytes": 21_600})


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Dataset:
    return Dataset.open(shutil.copytree(built, tmp_path / "dataset"))


@pytest.fixture
def opened(dataset: Dataset, tmp_path: Path) -> Iterator[Callable[..., CachedSplit]]:
    splits: list[CachedSplit] = []

    def open_split(order: WindowedOrder | None = None) -> CachedSplit:
        splits.append(CachedSplit(dataset.files("train"), "train", dataset.fields, order, tmp_path / "local"))
        return splits[-1]

    yield open_split
    for split in splits:
        split.cache.close()


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def read_from(split: CachedSplit) -> list[Path]:
    """Read one row of each shard, and say which file it came from."""
    rows = np.cumsum([0, *(shard.rows for shard in split._shards.shards[:-1])])
    np.testing.assert_array_equal(split.take(rows)["i"], rows)
    return [path.parent for path in split._shards.paths]


def test_rows_come_from_the_cache_once_it_is_filled(
    dataset: Dataset, opened: Callable[..., CachedSplit], tmp_path: Path
) -> None:
    split = opened()
    assert len(dataset.files("train")) == 10
    wait_for(lambda: len(list((tmp_path / "local").glob("*.h5"))) == 10)
    wait_for(lambda: set(read_from(split)) == {tmp_path / "local"})
    for path, _ in dataset.files("train"):
        path.unlink()  # the originals are not needed any more
    np.testing.assert_array_equal(split.take(np.arange(NUM_ROWS))["i"], np.arange(NUM_ROWS))


def test_what_is_cached_is_taken_by_the_next_run(opened: Callable[..., CachedSplit], tmp_path: Path) -> None:
    first = opened()
    wait_for(lambda: set(read_from(first)) == {tmp_path / "local"})
    first.cache.close()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "local").glob("*.h5")}
    second = opened()
    wait_for(lambda: set(read_from(second)) == {tmp_path / "local"})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "local").glob("*.h5")} == times


def test_a_damaged_copy_is_made_again(opened: Callable[..., CachedSplit], tmp_path: Path) -> None:
    first = opened()
    wait_for(lambda: set(read_from(first)) == {tmp_path / "local"})
    first.cache.close()
    copies = sorted((tmp_path / "local").glob("*.h5"))
    copies[3].write_bytes(bytes(copies[3].stat().st_size))
    os.truncate(copies[4], 1000)
    second = opened()
    wait_for(lambda: set(read_from(second)) == {tmp_path / "local"})
    np.testing.assert_array_equal(second.take(np.arange(NUM_ROWS))["i"], np.arange(NUM_ROWS))


def test_a_damaged_original_is_not_copied(dataset: Dataset, opened: Callable[..., CachedSplit], tmp_path: Path) -> None:
    path, shard = dataset.files("train")[0]
    with path.open("r+b") as file:
        file.seek(shard.nbytes - 1)
        byte = file.read(1)[0]
        file.seek(shard.nbytes - 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(DataError, match=r"block 0.*has checksum"):
        opened()
    assert not list((tmp_path / "local").glob("*.h5"))


def test_a_disk_that_is_too_small_holds_what_it_can(
    opened: Callable[..., CachedSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_to(monkeypatch, tmp_path / "local", shards=4)
    split = opened()
    wait_for(lambda: read_from(split).count(tmp_path / "local") == 4)
    np.testing.assert_array_equal(split.take(np.arange(NUM_ROWS))["i"], np.arange(NUM_ROWS))
    assert len(list((tmp_path / "local").glob("*.h5"))) == 4


def limit_to(monkeypatch: pytest.MonkeyPatch, folder: Path, shards: int) -> None:
    """Let the disk have room for so many shards of this dataset, all of a size."""

    def free(_: Path) -> int:
        held = list(folder.glob("*.h5"))
        return (shards - len(held)) * 30_000

    monkeypatch.setattr(cache, "free_nbytes", free)


def test_with_a_window_a_small_cache_moves_along(
    dataset: Dataset, opened: Callable[..., CachedSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_to(monkeypatch, tmp_path / "local", shards=4)
    order = WindowedOrder([shard.rows for _, shard in dataset.files("train")], 2)
    split = opened(order)
    seen: list[int] = []
    for position in range(0, NUM_ROWS, 50):
        rows = split.order(0, 0, position, 50)
        need = {int(shard) for shard in np.searchsorted(split_starts(dataset), rows, side="right") - 1}
        # The shards of this window come to the cache, whichever were there before.
        wait_for(lambda need=need: all(read_from(split)[shard] == tmp_path / "local" for shard in need))  # type: ignore[misc]
        seen += split.take(rows)["i"].tolist()
        assert len(list((tmp_path / "local").glob("*.h5"))) <= 4
    assert sorted(seen) == list(range(NUM_ROWS))


def split_starts(dataset: Dataset) -> np.ndarray:
    return np.cumsum([0, *(shard.rows for _, shard in dataset.files("train"))])


def test_a_folder_that_cannot_be_made_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache = .*file/local cannot be made: Not a directory"):
        CachedSplit(dataset.files("train"), "train", dataset.fields, None, tmp_path / "file" / "local")


def test_a_folder_that_goes_away_does_not_stop_the_reading(opened: Callable[..., CachedSplit], tmp_path: Path) -> None:
    split = opened()
    wait_for(lambda: set(read_from(split)) == {tmp_path / "local"})
    shutil.rmtree(tmp_path / "local")
    wait_for(lambda: tmp_path / "local" not in read_from(split))
    np.testing.assert_array_equal(split.take(np.arange(NUM_ROWS))["i"], np.arange(NUM_ROWS))


def test_two_runs_that_copy_the_same_shard_do_not_write_into_each_other(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have other lists of shards, so one lock does not exclude the other; the second begins as the first ends."""
    at_end, second_began, published = threading.Event(), threading.Event(), threading.Event()
    files, publish, digest = dataset.files("train"), cache.publish, xxhash.xxh3_64_hexdigest

    def publish_late(aside: Path, path: Path) -> None:
        if not at_end.is_set():
            at_end.set()
            assert second_began.wait(30)
        publish(aside, path)

    class Hashes:
        @staticmethod
        def xxh3_64_hexdigest(data: bytes) -> str:
            if at_end.is_set() and threading.current_thread() is not threading.main_thread():
                second_began.set()  # it has read its first block
                assert published.wait(30)
            return digest(data)

    monkeypatch.setattr(cache, "publish", publish_late)
    monkeypatch.setattr(cache, "xxhash", Hashes)
    first = cache.CacheFiller(tmp_path / "local", files[:1])
    assert at_end.wait(30)
    second = cache.CacheFiller(tmp_path / "local", files[:2])
    changes: dict[int, Path] = {}
    wait_for(lambda: changes or changes.update(first.take_changes()))
    try:
        assert second_began.is_set()
        assert cache.is_intact(changes[0], files[0][1])
    finally:
        published.set()
        first.close()
        second.close()


def test_what_dead_processes_left_is_removed(opened: Callable[..., CachedSplit], tmp_path: Path) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    names = {
        "dead": f".a.h5.{host}-{dead.pid}-00000000.aside",
        "alive": f".a.h5.{host}-{os.getpid()}-00000000.aside",
        "elsewhere": f".a.h5.{host}x-{dead.pid}-00000000.aside",
        "old": f".a.h5.{host}x-{dead.pid}-00000001.aside",
        "not ours": "thesis.aside",
    }
    for name in names.values():
        (folder / name).write_bytes(b"half")
    os.utime(folder / names["old"], (time.time() - 90_000,) * 2)
    split = opened()
    wait_for(lambda: set(read_from(split)) == {folder})
    split.cache.close()
    left = {path.name for path in folder.glob("*.aside")}
    assert left == {names["alive"], names["elsewhere"], names["not ours"]}


FILL = """
import sys, time
from pathlib import Path
from hpcvol.data import Dataset
from hpcvol.data.cached import CachedSplit
dataset = Dataset.open(sys.argv[1])
split = CachedSplit(dataset.files("train"), "train", dataset.fields, None, Path(sys.argv[2]))
until = time.monotonic() + 30
while len(list(Path(sys.argv[2]).glob("*.h5"))) < 10 and time.monotonic() < until:
    time.sleep(0.01)
print(split.cache._lock >= 0, flush=True)
sys.stdin.read()
"""


def test_one_process_of_a_node_copies(dataset: Dataset, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILL, str(dataset.path), str(tmp_path / "local")]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    holders = [process.stdout.readline().strip() for process in processes if process.stdout]
    for process in processes:
        process.communicate()
    assert sorted(holders) == ["False", "False", "True"]
