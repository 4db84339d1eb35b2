"""Kinds of input that others made: tokens, pictures, HDF5, Parquet, tar files."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import inputs
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from hpcvol.data import Dataset, build_dataset
from hpcvol.data.images import CenterCrop, RandomCrop
from hpcvol.errors import ConfigError, DataError, HpcvolError

pytestmark = pytest.mark.without_mpi

ALL = "train=1"


def rows_of(path: Path, split: str = "train") -> dict[str, NDArray[Any]]:
    opened = Dataset.open(path).split(split)
    return opened.take(np.arange(len(opened)))


def texts(columns: dict[str, NDArray[Any]], field: str) -> list[bytes]:
    return [bytes(row[:length]) for row, length in zip(columns[field], columns[f"{field}_length"], strict=True)]


def test_tokens_have_the_shape_of_text(tmp_path: Path) -> None:
    tokens = inputs.make_tokens(tmp_path / "a.bin", 10_000)
    out = build_dataset("tokens", [tmp_path / "a.bin"], tmp_path / "out", options={"sequence_length": 65})
    found = rows_of(out)["tokens"]
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found.reshape(-1), tokens[: 9000 // 65 * 65])
    np.testing.assert_array_equal(rows_of(out, "test")["tokens"][0], tokens[9500:9565])


def test_tokens_of_files_that_are_for_one_split(tmp_path: Path) -> None:
    train = inputs.make_tokens(tmp_path / "train.bin", 9000)
    val = inputs.make_tokens(tmp_path / "val.bin", 1200)
    paths = {"train": [tmp_path / "train.bin"], "val": [tmp_path / "val.bin"]}
    out = build_dataset("tokens", paths, tmp_path / "out", options={"sequence_length": 100, "shard_nbytes": 4000})
    assert Dataset.open(out).splits == {"train": 90, "val": 12}
    np.testing.assert_array_equal(rows_of(out)["tokens"].reshape(-1), train)
    np.testing.assert_array_equal(rows_of(out, "val")["tokens"].reshape(-1), val)


def test_pictures_are_kept_encoded_and_decoded_by_the_transform(tmp_path: Path) -> None:
    inputs.make_images(tmp_path / "photos")
    out = build_dataset("images", [tmp_path / "photos"], tmp_path / "out", split=ALL)
    assert Dataset.open(out).fields["label"].classes == ("cat", "dog")
    batch = rows_of(out)
    files = {path.read_bytes(): path.parent.name for path in (tmp_path / "photos").glob("*/*")}
    classes = ["cat", "dog"]
    assert [files[data] for data in texts(batch, "image")] == [classes[label] for label in batch["label"]]
    assert set(batch["label"][:20]) == {0, 1}  # neighbours are of different classes
    for transform in (CenterCrop(16), RandomCrop(16)):
        decoded = transform(batch, np.random.default_rng(0))
        assert set(decoded) == {"image", "label"}
        assert decoded["image"].shape == (60, 3, 16, 16)
        np.testing.assert_array_equal(decoded["image"].mean(axis=(1, 2, 3)) > 125, batch["label"] == 1)


def test_what_a_picture_is_cropped_to_depends_on_the_generator_alone(tmp_path: Path) -> None:
    inputs.make_images(tmp_path / "photos", each=4)
    batch = rows_of(build_dataset("images", [tmp_path / "photos"], tmp_path / "out", split=ALL))
    one, same, other = (RandomCrop(16)(batch, np.random.default_rng(seed))["image"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("settings", [{}, {"chunks": True, "compression": "gzip"}])
def test_hdf5_rows_are_copied(tmp_path: Path, settings: dict[str, Any]) -> None:
    inputs.make_hdf5(tmp_path / "a.h5", **settings)
    out = build_dataset("hdf5", [tmp_path / "a.h5"], tmp_path / "out", split=ALL)
    np.testing.assert_array_equal(rows_of(out)["x"], inputs.columns()["x"])
    np.testing.assert_array_equal(rows_of(out)["labels_y"], inputs.columns()["y"])
    only = build_dataset("hdf5", [tmp_path / "a.h5"], tmp_path / "only", options={"fields": "labels/y"})
    assert set(Dataset.open(only).fields) == {"labels_y"}


def test_hdf5_rows_are_linked_where_they_lie(tmp_path: Path) -> None:
    inputs.make_hdf5(tmp_path / "a.h5")
    inputs.make_hdf5(tmp_path / "b.h5")
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    out = build_dataset("hdf5", paths, tmp_path / "out", split="train=.8,val=.2", options={"link": True})
    assert [path.name for path in out.iterdir()] == ["dataset.json"]
    x, y = inputs.columns()["x"], inputs.columns()["y"]
    np.testing.assert_array_equal(rows_of(out)["x"], np.concatenate([x[:360], x[:360]]))
    np.testing.assert_array_equal(rows_of(out, "val")["labels_y"], np.concatenate([y[360:], y[360:]]))


@pytest.mark.parametrize("folder", ["out", "other", "link"])
def test_a_dataset_does_not_link_to_files_of_its_own_folder(tmp_path: Path, folder: str) -> None:
    """Replacing the dataset would remove them."""
    inputs.make_hdf5(tmp_path / "a.h5")
    out = build_dataset("hdf5", [tmp_path / "a.h5"], tmp_path / "out", split=ALL)
    (tmp_path / "link").symlink_to(out)
    before = {path.name: path.read_bytes() for path in out.glob("*.*") if path.is_file()}
    paths = sorted((out if folder == "other" else tmp_path / folder).glob("*.h5"))
    assert paths
    target = tmp_path / ("link" if folder == "other" else "out")
    with pytest.raises(DataError, match=r"\.h5 lies in .*that would link to it.*without --link"):
        build_dataset("hdf5", paths, target, split=ALL, options={"link": True}, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.glob("*.*") if path.is_file()} == before


def test_a_linked_file_that_changed_is_found(tmp_path: Path) -> None:
    inputs.make_hdf5(tmp_path / "a.h5")
    out = build_dataset("hdf5", [tmp_path / "a.h5"], tmp_path / "out", split=ALL, options={"link": True})
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["x"][3, 0] = 7
    with pytest.raises(DataError, match=r"a\.h5.*checksum.*changed after the dataset was built.*does not own it"):
        Dataset.open(out).split("train").take(np.arange(3))
    (tmp_path / "a.h5").unlink()
    with pytest.raises(DataError, match=r"missing.*does not own it"):
        Dataset.open(out).split("train")


def test_parquet_columns_become_fields(tmp_path: Path) -> None:
    inputs.make_parquet(tmp_path / "a.parquet")
    inputs.make_parquet(tmp_path / "b.parquet")
    out = build_dataset("parquet", [tmp_path], tmp_path / "out", split=ALL)
    found = rows_of(out)
    y = np.tile(inputs.columns()["y"], 2)
    np.testing.assert_array_equal(found["y"], y)
    np.testing.assert_array_equal(found["x"], np.tile(inputs.columns()["x"], (2, 1)))
    assert texts(found, "text") == [f"row {i}".encode() for i in y]
    assert texts(found, "kind") == [f"kind {i % 3}".encode() for i in y]
    assert texts(found, "image") == [bytes([i % 256]) * (i % 5) for i in y.tolist()]
    np.testing.assert_array_equal(found["scores_length"], y % 4)
    np.testing.assert_array_equal(found["scores"][7], [0, 1, 2])


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_tar_files_become_samples(tmp_path: Path, name: str) -> None:
    inputs.make_tar(tmp_path / name, mode="w:gz" if name.endswith("gz") else "w")
    found = rows_of(build_dataset("webdataset", [tmp_path / name], tmp_path / "out", split=ALL))
    rows = range(inputs.NUM_ROWS)
    np.testing.assert_array_equal(found["label"], rows)
    np.testing.assert_array_equal(found["vector_npy"], inputs.columns()["x"])
    np.testing.assert_array_equal(found["json"], [[i, 2 * i] for i in rows])
    assert texts(found, "txt") == [f"row {i}".encode() for i in rows]
    assert texts(found, "image") == [bytes([i % 251]) * (i % 9) for i in rows]


MAKERS: dict[str, tuple[str, Callable[[Path], object], dict[str, Any]]] = {
    "tokens": ("a.bin", lambda path: inputs.make_tokens(path, 9000), {"sequence_length": 10}),
    "images": ("photos", lambda path: inputs.make_images(path, 200), {"check": "header"}),
    "hdf5": ("a.h5", inputs.make_hdf5, {}),
    "parquet": ("a.parquet", inputs.make_parquet, {}),
    "webdataset": ("a.tar", inputs.make_tar, {}),
    "npz": ("a.npz", lambda path: np.savez_compressed(path, **inputs.columns()), {}),
}


@pytest.mark.parametrize("kind", list(MAKERS))
def test_the_dataset_is_the_same_however_many_parts_build_it(tmp_path: Path, kind: str) -> None:
    name, make, options = MAKERS[kind]
    make(tmp_path / name)
    options = {**options, "shard_nbytes": 1000}
    ids = set()
    for count in (1, 3):
        for part in range(count):
            out = build_dataset(kind, [tmp_path / name], tmp_path / str(count), options=options, part=(part, count))
        ids.add(Dataset.open(out).id)
    assert len(ids) == 1
    assert sum(len(list(out.glob(f"{split}-*.h5"))) for split in Dataset.open(out).splits) > 3


@pytest.mark.parametrize("kind", list(MAKERS))
def test_progress_counts_what_was_written(tmp_path: Path, kind: str) -> None:
    name, make, options = MAKERS[kind]
    make(tmp_path / name)
    told: list[tuple[int, int | None]] = []
    out = build_dataset(
        kind, [tmp_path / name], tmp_path / "out", options=options, progress=lambda *at: told.append(at)
    )
    counts = [count for count, _ in told]
    assert counts == sorted(counts)
    rows = sum(Dataset.open(out).splits.values())
    assert counts[-1] == rows
    assert {expected for _, expected in told} == ({None} if kind == "webdataset" else {rows})


def truncated(make: Callable[[Path], object], name: str, share: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        make(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])
        return folder / name

    return write


def tar_of(*samples: dict[str, bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with tarfile.open(folder / "a.tar", "w") as tar:
            for i, sample in enumerate(samples):
                inputs.add_sample(tar, f"s{i}", sample)
        return folder / "a.tar"

    return write


def cut_between_members(folder: Path) -> Path:
    path = tar_of({"cls": b"1"}, {"cls": b"2"})(folder)
    path.write_bytes(path.read_bytes()[: 2 * tarfile.BLOCKSIZE])
    return path


def parquet_of(**columns: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet")
        return folder / "a.parquet"

    return write


def hdf5_of(settings: dict[str, Any] | None = None, **datasets: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with h5py.File(folder / "a.h5", "w") as file:
            for name, values in datasets.items():
                file.create_dataset(name, data=values, **(settings or {}))
        return folder / "a.h5"

    return write


def photos(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        inputs.make_images(folder / "photos", each=3)
        change(folder / "photos")
        return folder / "photos"

    return write


def cut_picture(folder: Path) -> None:
    file = folder / "dog" / "2.jpg"
    file.write_bytes(file.read_bytes()[:-300])


BAD: list[tuple[str, Callable[[Path], Path], dict[str, Any], str]] = [
    ("tokens", lambda _: Path("/nowhere.bin"), {}, "There is no file /nowhere.bin; expected a file of tokens"),
    ("tokens", truncated(lambda path: inputs.make_tokens(path, 99), "a.bin", 0.996), {}, "197 bytes.*option dtype"),
    ("tokens", truncated(lambda path: inputs.make_tokens(path, 99), "a.bin", 1), {"dtype": "float"}, "or uint16 or"),
    (
        "tokens",
        lambda folder: inputs.make_tokens(folder / "a.bin", 9000) is None or folder / "a.bin",
        {"vocab_size": 1000},
        r"a\.bin: token 0 is \d+, expected less than vocab_size=1000.*dtype",
    ),
    ("images", photos(cut_picture), {}, r"dog/2\.jpg is a broken picture.*take it away"),
    ("images", photos(lambda folder: (folder / "cat" / "x.png").write_bytes(b"no")), {}, r"x\.png is a broken picture"),
    ("images", photos(lambda folder: (folder / "x.png").write_bytes(b"")), {}, r"x\.png has no label"),
    ("images", lambda folder: folder, {}, "There are no pictures"),
    ("images", lambda folder: folder / "none", {}, "There is no folder"),
    ("hdf5", truncated(inputs.make_hdf5, "a.h5", 0.5), {}, r"a\.h5 cannot be read as an HDF5 file: .*truncated"),
    ("hdf5", hdf5_of(x=np.ones(4), y=np.ones(5)), {}, "'x': 4, 'y': 5.*option fields"),
    ("hdf5", hdf5_of(rows=np.ones(4)), {"fields": "row"}, "no dataset 'row'.*Did you mean rows"),
    ("hdf5", hdf5_of(x=["a", "b"]), {}, "row 0: field 'x' has dtype"),
    ("hdf5", hdf5_of({"chunks": True}, x=np.ones(4)), {"link": True}, "'x' cannot be linked: .*in chunks.*without --l"),
    ("hdf5", hdf5_of({"compression": "gzip"}, x=np.ones(4)), {"link": True}, r"compressed \(gzip\)"),
    ("hdf5", hdf5_of(x=np.ones(4, ">f4")), {"link": True}, "big-endian"),
    ("hdf5", hdf5_of(x=np.ones(4)), {"link": "yes"}, "expected true or false"),
    ("parquet", truncated(inputs.make_parquet, "a.parquet", 0.5), {}, "cannot be read as a Parquet file"),
    ("parquet", parquet_of(x=[1, None]), {}, r"a\.parquet, column 'x', row 1: there is no value"),
    ("parquet", parquet_of(x=[1, 2]), {"columns": "z"}, "no column 'z'"),
    ("parquet", parquet_of(x=[1, 2]), {"columns": 3}, "no column '3'"),
    ("hdf5", hdf5_of(x=np.ones(4)), {"fields": 3}, "no dataset '3'"),
    ("parquet", parquet_of(x=[{"a": 1}]), {}, "column 'x' has type struct.*option columns"),
    ("webdataset", truncated(inputs.make_tar, "a.tar", 0.5), {}, r"a\.tar cannot be read as a tar file"),
    ("webdataset", cut_between_members, {}, "it was cut short"),
    ("webdataset", tar_of({"jpg": b"a", "cls": b"1"}, {"jpg": b"b"}), {}, r"sample 's1' has the files \.jpg; .*label"),
    ("webdataset", tar_of({"jpg": b"a", "cls": b"one"}), {}, r"sample 's0': \.cls cannot be read"),
    ("webdataset", tar_of({"jpg": b"a", "cls": b"9" * 30}), {}, r"sample 's0': \.cls cannot be read.*too"),
    ("webdataset", tar_of({"npy": b""}), {}, r"sample 's0': \.npy cannot be read: No data left"),
    ("webdataset", tar_of({"npy": b"PK\x03\x04"}), {}, r"sample 's0': \.npy cannot be read"),
    ("webdataset", tar_of({"jpg": b"a", "png": b"1"}), {}, "two pictures"),
    ("webdataset", tar_of({"npy": b"a"}), {}, r"\.npy cannot be read"),
    ("webdataset", tar_of(), {}, "no samples"),
]


@pytest.mark.parametrize(("kind", "write", "options", "words"), BAD)
def test_bad_input_is_refused_by_name(
    tmp_path: Path, kind: str, write: Callable[[Path], Path], options: dict[str, Any], words: str
) -> None:
    path = write(tmp_path)
    with pytest.raises(HpcvolError, match=f"(?s){words}"):
        build_dataset(kind, [path], tmp_path / "out", options=options)
    with pytest.raises(DataError):
        Dataset.open(tmp_path / "out")


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    inputs.make_parquet(path)
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet, row 0: cannot be read"):
        build_dataset("parquet", [path], tmp_path / "out")


def test_splits_that_have_other_classes_are_refused(tmp_path: Path) -> None:
    inputs.make_images(tmp_path / "train", each=2)
    inputs.make_images(tmp_path / "val", each=2)
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "eel")
    with pytest.raises(DataError, match=r"split val has .*cat, eel.*that of train has .*cat, dog"):
        build_dataset("images", {"train": [tmp_path / "train"], "val": [tmp_path / "val"]}, tmp_path / "out")


def test_shares_and_splits_by_path_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave the shares train=1 out"):
        build_dataset("npz", {"train": ["a.npz"]}, tmp_path / "out", split="train=1")
