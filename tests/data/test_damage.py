"""Damaged datasets are refused by name, at the latest when the damaged part is touched, and never kill the process."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash

from hpcvol.data import Dataset, build_dataset
from hpcvol.data.manifest import BLOCK_NBYTES
from hpcvol.errors import DataError

pytestmark = pytest.mark.without_mpi

ROW = 1000
NUM_ROWS = 4200


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    np.savez(folder / "a.npz", x=np.random.default_rng(0).integers(0, 256, (NUM_ROWS, ROW), dtype=np.uint8))
    return build_dataset(
        "npz", [folder / "a.npz"], folder / "out", split="train=1", options={"shard_nbytes": 1_600_000}
    )


@pytest.fixture
def dataset(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "dataset"))


def shard(dataset: Path, number: int) -> Path:
    return sorted(dataset.glob("train-*.h5"))[number]


def refusal(dataset: Path, rows: range = range(NUM_ROWS)) -> str:
    with pytest.raises(DataError) as caught:
        Dataset.open(dataset).split("train").take(np.array(rows))
    return str(caught.value)


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 4]))


def test_the_intact_one_is_taken_whole(intact: Path) -> None:
    split = Dataset.open(intact).split("train")
    expected = np.load(intact.parent / "a.npz")["x"]
    indices = np.random.default_rng(1).integers(0, NUM_ROWS, 500)
    np.testing.assert_array_equal(split.take(indices)["x"], expected[indices])
    np.testing.assert_array_equal(split.take(np.arange(NUM_ROWS))["x"], expected)
    np.testing.assert_array_equal(split.take(indices)["x"], expected[indices])


def test_a_flipped_bit_is_found_when_its_block_is_touched(dataset: Path) -> None:
    path = shard(dataset, 1)
    flip(path, 3 * BLOCK_NBYTES + 17)
    split = Dataset.open(dataset).split("train")
    split.take(np.arange(100))  # rows of another shard are good
    message = refusal(dataset)
    assert path.name in message
    assert "block 3 " in message
    assert "split train" in message
    for _ in range(2):  # it stays refused: a bad block is never marked as checked
        with pytest.raises(DataError, match="block 3 "):
            split.take(np.arange(NUM_ROWS))


@pytest.mark.parametrize("position", [0, 100, BLOCK_NBYTES - 1])
def test_damage_to_the_first_block_is_found_when_opening(dataset: Path, position: int) -> None:
    flip(shard(dataset, 0), position)
    with pytest.raises(DataError, match="block 0 "):
        Dataset.open(dataset).split("train")


def test_every_single_block_is_checked(dataset: Path) -> None:
    path = shard(dataset, 2)
    last_bytes = [*range(BLOCK_NBYTES - 1, path.stat().st_size, BLOCK_NBYTES), path.stat().st_size - 1]
    assert len(last_bytes) == 4
    for block, position in enumerate(last_bytes):
        flip(path, position)
        assert f"block {block} " in refusal(dataset)
        flip(path, position)
    Dataset.open(dataset).split("train").take(np.arange(NUM_ROWS))


@pytest.mark.parametrize("left", [0, 1, BLOCK_NBYTES, 999_999])
def test_a_truncated_shard_is_refused(dataset: Path, left: int) -> None:
    path = shard(dataset, 1)
    os.truncate(path, left)
    message = refusal(dataset)
    assert path.name in message
    assert "truncated" in message
    assert f"block {left // BLOCK_NBYTES}" in message


def test_a_shard_truncated_after_it_was_opened_is_refused(dataset: Path) -> None:
    split = Dataset.open(dataset).split("train")
    os.truncate(shard(dataset, 0), BLOCK_NBYTES)
    with pytest.raises(DataError, match="truncated"):
        split.take(np.array([1500]))


def test_a_torn_shard_is_refused(dataset: Path) -> None:
    """The right size, but the end was never written."""
    path = shard(dataset, 0)
    size = path.stat().st_size
    os.truncate(path, 2 * BLOCK_NBYTES)
    os.truncate(path, size)
    assert "block 2 " in refusal(dataset)


def test_a_longer_shard_is_refused(dataset: Path) -> None:
    with shard(dataset, 0).open("ab") as file:
        file.write(b"more")
    assert "too long" in refusal(dataset)


def test_a_missing_shard_is_refused(dataset: Path) -> None:
    path = shard(dataset, 1)
    path.unlink()
    assert f"{path.name} is missing" in refusal(dataset)


def test_shards_that_changed_places_are_refused(dataset: Path) -> None:
    first, second = shard(dataset, 0), shard(dataset, 1)
    assert first.stat().st_size == second.stat().st_size
    shutil.move(first, dataset / "aside")
    shutil.move(second, first)
    shutil.move(dataset / "aside", second)
    assert "not the one of this dataset" in refusal(dataset)


def rewrite(dataset: Path, change: Callable[[str], str]) -> None:
    path = dataset / "dataset.json"
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda _text: "", "not JSON"),
        (lambda _text: "{}", "lacks"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "version 2"),
        (lambda text: text.replace('"rows": 1600', '"rows": 1601'), "checksum"),
        (lambda text: text.replace("|u1", "|i1"), "checksum"),
    ],
)
def test_a_damaged_manifest_is_refused(dataset: Path, change: Callable[[str], str], words: str) -> None:
    before = (dataset / "dataset.json").read_text()
    rewrite(dataset, change)
    assert (dataset / "dataset.json").read_text() != before
    with pytest.raises(DataError, match=words):
        Dataset.open(dataset)


def test_a_manifest_of_another_dataset_is_refused(dataset: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=np.zeros((50, 3)))
    other = build_dataset("npz", [tmp_path / "b.npz"], tmp_path / "other", split="train=1")
    shutil.copy(other / "dataset.json", dataset / "dataset.json")
    assert "is missing" in refusal(dataset, range(10))


def test_a_manifest_with_a_forged_checksum_is_still_held_to_its_id(dataset: Path) -> None:
    def forge(text: str) -> str:
        content = json.loads(text)
        content["splits"]["train"][0]["rows"] += 1
        del content["checksum"]
        content["checksum"] = xxhash.xxh3_64_hexdigest(
            json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        )
        return json.dumps(content)

    rewrite(dataset, forge)
    with pytest.raises(DataError, match="id"):
        Dataset.open(dataset)


def test_what_is_not_a_dataset_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, words in [
        (tmp_path, "has no dataset.json"),
        (tmp_path / "no", "no such folder"),
        (tmp_path / "file", "file"),
    ]:
        with pytest.raises(DataError, match=words):
            Dataset.open(path)


def test_absent_and_empty_splits_say_what_there_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 3)))
    dataset = Dataset.open(build_dataset("npz", [tmp_path / "a.npz"], tmp_path / "out"))
    assert dataset.splits == {"train": 2, "val": 0, "test": 0}
    with pytest.raises(DataError, match=r"'val'.*is empty.*train \(2 samples\)"):
        dataset.split("val")
    with pytest.raises(DataError, match=r"'valid'.*does not exist.*train \(2 samples\)"):
        dataset.split("valid")


@pytest.mark.parametrize("bad", [-1, NUM_ROWS, 2**62])
def test_samples_out_of_range_are_refused(intact: Path, bad: int) -> None:
    with pytest.raises(DataError, match=rf"Sample {bad} .*entry 2 .*0 to {NUM_ROWS - 1}"):
        Dataset.open(intact).split("train").take(np.array([0, 1, bad]))


def test_memory_that_does_not_fit_is_refused(intact: Path) -> None:
    split = Dataset.open(intact).split("train")
    indices = np.arange(4)
    with pytest.raises(DataError, match="allocate"):
        split.take(indices, lambda shape, dtype: np.empty((shape[0] - 1, *shape[1:]), dtype))
    with pytest.raises(DataError, match="allocate"):
        split.take(indices, lambda shape, dtype: np.empty((shape[0], 2 * shape[1]), dtype)[:, ::2])
    mine = np.empty((4, ROW), np.uint8)
    assert split.take(indices, lambda _shape, _dtype: mine)["x"] is mine
