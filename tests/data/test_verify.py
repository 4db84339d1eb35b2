"""Reading all of a dataset finds every damage, and names the samples that it affects."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpcvol.data import Dataset, build_dataset
from hpcvol.data.manifest import BLOCK_NBYTES, read_manifest
from hpcvol.data.verify import Damage, unlisted_files, verify_dataset
from hpcvol.errors import DataError

pytestmark = pytest.mark.without_mpi

ROW = 1000
NUM_ROWS = 4200


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    np.savez(folder / "a.npz", x=np.random.default_rng(0).integers(0, 256, (NUM_ROWS, ROW), dtype=np.uint8))
    options = {"shard_nbytes": 1_600_000}
    return build_dataset("npz", [folder / "a.npz"], folder / "out", split="train=1", options=options)


@pytest.fixture
def dataset(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "dataset"))


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 0 to 3,999 bytes, in one shard."""
    folder = tmp_path_factory.mktemp("ragged")
    (folder / "rows.py").write_text(
        "import numpy as np\n"
        "def rows():\n"
        "    return [{'x': np.full(i * 37 % 4000, i % 251, np.uint8)} for i in range(1000)]\n"
    )
    build_dataset("python", [f"{folder / 'rows.py'}:rows"], folder / "out", split="train=1")
    return folder / "out"


def shard(dataset: Path, number: int) -> Path:
    return sorted(dataset.glob("train-*.h5"))[number]


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 4]))


def changed_samples(dataset: Path, intact: Path) -> set[int]:
    """Which samples read differently now, found by mapping both without any check."""
    good, bad = (np.concatenate([_rows(one, k) for k in range(3)]) for one in (intact, dataset))
    return set(np.flatnonzero((good != bad).any(axis=1)).tolist())


def _rows(dataset: Path, number: int) -> np.ndarray:
    entry = read_manifest(dataset).splits["train"][number]
    return np.memmap(dataset / entry.file, np.uint8, "r", entry.offsets["x"], (entry.rows, ROW))


def test_an_intact_dataset_is_whole_and_all_of_it_is_read(intact: Path) -> None:
    read: list[int] = []
    assert verify_dataset(intact, read.append) == []
    assert sum(read) == sum(path.stat().st_size for path in intact.glob("*.h5"))


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("position", [BLOCK_NBYTES - 1, BLOCK_NBYTES, 3 * BLOCK_NBYTES + 17, -1])
def test_one_flipped_bit_is_found_with_its_samples(dataset: Path, intact: Path, number: int, position: int) -> None:
    path = shard(dataset, number)
    position %= path.stat().st_size
    flip(path, position)
    (changed,) = changed_samples(dataset, intact)
    (damage,) = verify_dataset(dataset)
    assert damage.file == path
    assert f"block {position // BLOCK_NBYTES} " in damage.what
    assert damage.samples is not None
    first, last = damage.samples
    assert first <= changed <= last
    assert last - first <= BLOCK_NBYTES // ROW + 1
    assert f"samples {first} to {last} of split train" in str(damage)


def test_all_damages_are_named_and_neighbours_are_one(dataset: Path) -> None:
    for block in (1, 2, 5):
        flip(shard(dataset, 0), block * BLOCK_NBYTES + 5)
    shard(dataset, 1).unlink()
    with shard(dataset, 1).open("ab") as file:  # the third, now that the second is gone
        file.write(b"more")
    texts = [str(damage) for damage in verify_dataset(dataset)]
    assert len(texts) == 4
    assert "blocks 1 to 2 " in texts[0]
    assert "block 5 " in texts[1]
    assert "is missing; affects samples 1600 to 3199 of split train" in texts[2]
    assert "is too long" in texts[3]


def test_a_truncated_shard_names_what_is_lost(dataset: Path) -> None:
    os.truncate(shard(dataset, 1), 2 * BLOCK_NBYTES + 10)
    (damage,) = verify_dataset(dataset)
    assert "truncated" in damage.what
    assert damage.samples is not None
    first, last = damage.samples
    offset = read_manifest(dataset).splits["train"][1].offsets["x"]
    assert first == 1600 + (2 * BLOCK_NBYTES + 10 - offset) // ROW
    assert last == 3199


def test_damage_to_the_header_affects_no_sample() -> None:
    damage = Damage(Path("a.h5"), "block 0", "train", None)
    assert str(damage) == "a.h5: block 0; no sample lies there"


def test_ragged_rows(ragged: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(ragged, tmp_path / "dataset"))
    (entry,) = read_manifest(dataset).splits["train"]
    position = entry.offsets["x"] + entry.items["x"] // 2
    flip(dataset / entry.file, position)
    lengths = np.array([i * 37 % 4000 for i in range(1000)])
    owner = int(np.searchsorted(np.cumsum(lengths), entry.items["x"] // 2, side="right"))
    (damage,) = verify_dataset(dataset)
    assert damage.samples is not None
    first, last = damage.samples
    assert 0 < first <= owner <= last < 999
    assert lengths[first + 1 : last].sum() <= BLOCK_NBYTES


def test_damaged_offsets_of_ragged_rows(ragged: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(ragged, tmp_path / "dataset"))
    (entry,) = read_manifest(dataset).splits["train"]
    flip(dataset / entry.file, entry.offsets["x_offsets"] + 8 * 500)
    (damage,) = verify_dataset(dataset)
    assert damage.samples is not None
    assert damage.samples[0] <= 499
    assert damage.samples[1] >= 500


def test_what_it_finds_is_what_reading_refuses(dataset: Path) -> None:
    flip(shard(dataset, 2), 2 * BLOCK_NBYTES)
    (damage,) = verify_dataset(dataset)
    assert damage.samples is not None
    split = Dataset.open(dataset).split("train")
    first, last = damage.samples
    split.take(np.arange(first))
    with pytest.raises(DataError, match="block 2 "):
        split.take(np.arange(first, last + 1))


def test_files_that_are_not_listed(dataset: Path) -> None:
    (dataset / "notes.txt").write_text("mine")
    assert unlisted_files(dataset, read_manifest(dataset)) == [dataset / "notes.txt"]


def test_a_dataset_tells_how_it_was_built(intact: Path) -> None:
    recipe = read_manifest(intact).recipe
    assert recipe["kind"] == "npz"
    assert recipe["options"] == {"shard_nbytes": 1_600_000}
    assert recipe["split"] == {"train": 1.0}
