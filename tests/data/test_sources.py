from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from hpcvol.data import Dataset, build_dataset
from hpcvol.errors import ConfigError, DataError, HpcvolError

pytestmark = pytest.mark.without_mpi

Columns = dict[str, NDArray[Any]]


def everything(path: Path) -> dict[str, Columns]:
    """All samples of all splits that have any."""
    dataset = Dataset.open(path)
    return {name: dataset.split(name).take(np.arange(rows)) for name, rows in dataset.splits.items() if rows}


def module(tmp_path: Path, body: str) -> str:
    path = tmp_path / "source.py"
    path.write_text("import numpy as np\n" + body)
    return f"{path}:samples"


def test_text_of_many_documents_keeps_each_whole(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for i in range(200):
        folder = corpus / f"d{i % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_bytes(bytes([i]) * 50)
    (corpus / "other.bin").write_bytes(b"\xff" * 5000)
    (corpus / ".git").mkdir()
    (corpus / ".git" / "hidden.txt").write_bytes(b"\xff" * 5000)
    out = build_dataset("text", [corpus], tmp_path / "out", options={"sequence_length": 10, "pattern": "*.txt"})
    found = everything(out)
    documents = {split: set(columns["tokens"].reshape(-1).tolist()) for split, columns in found.items()}
    assert set(documents) == {"train", "val", "test"}
    assert not documents["train"] & documents["val"]
    assert not documents["train"] & documents["test"]
    assert set.union(*documents.values()) == set(range(200))
    assert sum(len(columns["tokens"]) for columns in found.values()) == 200 * 5


def test_text_of_one_document_is_cut_by_position(tmp_path: Path) -> None:
    text = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    (tmp_path / "a.txt").write_bytes(text.tobytes())
    found = everything(build_dataset("text", [tmp_path / "a.txt"], tmp_path / "out", options={"shard_nbytes": 9999}))
    assert found["train"]["tokens"].shape == (90_000 // 257, 257)
    np.testing.assert_array_equal(found["train"]["tokens"].reshape(-1), text[: 90_000 // 257 * 257])
    np.testing.assert_array_equal(found["val"]["tokens"].reshape(-1), text[90_000 : 90_000 + 5000 // 257 * 257])
    np.testing.assert_array_equal(found["test"]["tokens"].reshape(-1), text[95_000 : 95_000 + 5000 // 257 * 257])


def test_text_from_a_function_that_lists_paths(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 1000)
    spec = module(tmp_path, f"def samples(): return [{str(tmp_path / 'a.txt')!r}]\n")
    found = everything(build_dataset("text", [spec], tmp_path / "out", split="train=1"))
    assert len(found["train"]["tokens"]) == 3


def check_rows(found: Mapping[str, Columns], **expected: NDArray[Any]) -> None:
    """Every row of the input is in one split, and only there; fields belong together."""
    names = list(expected)
    rows = sorted(
        tuple(columns[name][i].tobytes() for name in names)
        for columns in found.values()
        for i in range(len(columns[names[0]]))
    )
    assert rows == sorted(tuple(expected[name][i].tobytes() for name in names) for i in range(len(expected[names[0]])))


def test_npz_files_become_fields(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1234, 3, 4)).astype(np.float32)
    y = np.arange(1234, dtype=np.int16)
    mask = y % 3 == 0
    np.savez(tmp_path / "a.npz", x=x[:1001], y=y[:1001], mask=mask[:1001])
    np.savez_compressed(tmp_path / "b.npz", x=x[1001:], y=y[1001:], mask=mask[1001:])
    out = build_dataset(
        "npz", [tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "out", options={"shard_nbytes": 20_000}
    )
    found = everything(out)
    check_rows(found, x=x, y=y, mask=mask)
    assert {name: column.dtype for name, column in found["train"].items()} == {
        "x": x.dtype,
        "y": y.dtype,
        "mask": mask.dtype,
    }
    assert Dataset.open(out).splits == {"train": 1110, "val": 62, "test": 62}
    assert len(list(out.glob("train-*.h5"))) > 2


def test_shards_are_plain_hdf5(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(30.0).reshape(10, 3))
    out = build_dataset("npz", [tmp_path / "a.npz"], tmp_path / "out", split="train=1")
    (shard,) = out.glob("*.h5")
    with h5py.File(shard, locking=False) as file:
        assert file["x"].chunks is None
        np.testing.assert_array_equal(file["x"][()], np.arange(30.0).reshape(10, 3))


def test_csv(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(-50, 50, (450, 4))
    body = "".join(",".join(map(str, row)) + "\n" for row in rows.tolist())
    (tmp_path / "a.csv").write_text("a,b,kind,c\n" + body)
    found = everything(build_dataset("csv", [tmp_path / "a.csv"], tmp_path / "out", options={"label": "kind"}))
    check_rows(found, x=rows[:, [0, 1, 3]].astype(np.float32), y=rows[:, 2])
    found = everything(build_dataset("csv", [tmp_path / "a.csv"], tmp_path / "out2"))
    check_rows(found, x=rows.astype(np.float32))


def test_csv_labels_are_exact(tmp_path: Path) -> None:
    labels = [0, -(2**63), 2**63 - 1, 2**53 + 1, -(2**53) - 1]
    (tmp_path / "a.csv").write_text("a,y\n" + "".join(f"1,{label}\n" for label in labels) + f"1,{2**53 + 1}.0\n1,1e3\n")
    out = build_dataset("csv", [tmp_path / "a.csv"], tmp_path / "out", options={"label": "y"}, split="train=1")
    assert everything(out)["train"]["y"].tolist() == [*labels, 2**53 + 1, 1000]


def test_python_map_style_and_iterable_are_the_same(tmp_path: Path) -> None:
    file = module(
        tmp_path,
        "class Squares:\n"
        "    def __len__(self): return 523\n"
        "    def __getitem__(self, i): return {'x': np.full((2, 2), i, np.float32), 'y': i * i}\n"
        "def samples(): return Squares()\n"
        "def stream(): return (Squares()[i] for i in range(523))\n",
    )
    options = {"shard_nbytes": 5000}
    mapped = build_dataset("python", [file], tmp_path / "mapped", options=options)
    streamed = build_dataset("python", [file.replace("samples", "stream")], tmp_path / "streamed", options=options)
    i = np.arange(523)
    x = np.broadcast_to(i[:, None, None], (523, 2, 2)).astype(np.float32)
    check_rows(everything(mapped), x=x, y=i * i)
    check_rows(everything(streamed), x=x, y=i * i)
    assert Dataset.open(mapped).id == Dataset.open(streamed).id


@pytest.mark.parametrize(
    ("sample", "fields"),
    [("(np.ones(3), 4)", {"x": (3,), "y": ()}), ("np.ones((2, 3))", {"x": (2, 3)}), ("True", {"x": ()})],
)
def test_python_samples_that_are_no_mapping(tmp_path: Path, sample: str, fields: dict[str, tuple[int, ...]]) -> None:
    spec = module(tmp_path, f"def samples():\n    for _ in range(5): yield {sample}\n")
    dataset = Dataset.open(build_dataset("python", [spec], tmp_path / "out", split="train=1"))
    assert {name: field.shape for name, field in dataset.fields.items()} == fields


@pytest.mark.parametrize("shape", [(), (3,)])
def test_ragged_rows_are_padded_and_counted(tmp_path: Path, shape: tuple[int, ...]) -> None:
    spec = module(
        tmp_path,
        f"def row(i): return (np.arange(i % 7 * {int(np.prod(shape))}).reshape(i % 7, *{shape}) + i).astype('i4')\n"
        "def samples():\n    for i in range(700): yield {'tokens': row(i), 'i': i}\n",
    )
    out = build_dataset("python", [spec], tmp_path / "out", options={"shard_nbytes": 4000})
    split = Dataset.open(out).split("train")
    assert split.fields["tokens"].ragged
    assert len(list(out.glob("train-*.h5"))) > 1
    batch = split.take(np.random.default_rng(0).integers(0, len(split), 50))
    assert batch["tokens"].shape == (50, batch["tokens_length"].max(), *shape)
    for i, length, tokens in zip(batch["i"], batch["tokens_length"], batch["tokens"], strict=True):
        assert length == i % 7
        expected = np.arange(i % 7 * int(np.prod(shape))).reshape(i % 7, *shape) + i
        np.testing.assert_array_equal(tokens[:length], expected)
        assert not tokens[length:].any()
    empty = split.take(np.flatnonzero(split.take(np.arange(len(split)))["tokens_length"] == 0))
    assert empty["tokens"].shape[1] == 0


def test_ragged_by_option_where_the_first_rows_do_not_show_it(tmp_path: Path) -> None:
    spec = module(tmp_path, "def samples():\n    for i in range(300): yield np.ones(3 if i < 250 else 5)\n")
    with pytest.raises(DataError, match=r"sample 250: field 'x' has shape \(5,\).*ragged=x"):
        build_dataset("python", [spec], tmp_path / "out")
    out = build_dataset("python", [spec], tmp_path / "out", options={"ragged": "x"}, split="train=1")
    assert Dataset.open(out).split("train").take(np.array([0, 299]))["x_length"].tolist() == [3, 5]


def npz(**arrays: NDArray[Any]) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        np.savez(folder / "a.npz", **arrays)  # type: ignore[arg-type]
        return [str(folder / "a.npz")]

    return write


def csv(text: str) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        (folder / "a.csv").write_text(text)
        return [str(folder / "a.csv")]

    return write


def latin(path: Path, text: str) -> list[str]:
    path.write_text(text, encoding="latin-1")
    return [str(path)]


def code(body: str) -> Callable[[Path], list[str]]:
    return lambda folder: [module(folder, body)]


BAD: list[tuple[str, Callable[[Path], list[str]], dict[str, Any], str]] = [
    ("npz", npz(x=np.ones(3), y=np.ones(4)), {}, "'x': 3, 'y': 4"),
    ("npz", npz(x=np.ones((0, 3))), {}, "no samples"),
    ("npz", npz(x=np.array(["a", "b"])), {}, "field 'x' has dtype <U1"),
    ("npz", npz(x=np.array([1 + 2j])), {}, "dtype complex128"),
    ("npz", npz(x=np.array([None, 1])), {}, "cannot be read"),
    ("npz", npz(x=np.array([1.0, np.nan])), {}, "row 1: field 'x' has NaN.*non_finite=keep"),
    ("npz", npz(), {}, "holds no arrays"),
    ("npz", npz(x=np.ones(3)), {"shard_nbytez": 3}, "no option 'shard_nbytez'.*Did you mean shard_nbytes"),
    *(
        ("npz", npz(x=np.ones(3)), {"shard_nbytes": value}, "shard_nbytes.*expected an integer")
        for value in ("big", "1.5", 1.5, True, "inf", [3])
    ),
    ("csv", csv("a,b\n1,2\n"), {"label": 1.5}, "label of kind csv is 1.5, expected a text"),
    ("npz", lambda _folder: ["/nowhere.npz"], {}, "There is no file /nowhere.npz"),
    ("npz", csv("not a zip"), {}, "cannot be read as a .npz"),
    ("npzz", npz(x=np.ones(3)), {}, "Did you mean npz"),
    ("csv", csv("a,b\n1,2\n3,x\n"), {}, "line 3: column 'b' is 'x'"),
    ("csv", csv("a,b\n1,2\n3\n"), {}, "line 3: 1 values, expected 2"),
    ("csv", csv("a,b\n1,2\n\n3,\n"), {}, "line 4: column 'b' is ''"),
    ("csv", csv("a,b\n1,nan\n"), {}, "line 2: field 'x' has NaN"),
    ("csv", csv("a,b\n"), {}, "no samples"),
    ("csv", csv(""), {}, "is empty"),
    ("csv", csv("a,label\n1,2\n"), {"label": "lable"}, "no column 'lable'.*Did you mean label"),
    ("csv", csv("a,y\n" + "1,2\n" * 200 + "1,2.5\n"), {"label": "y"}, "line 202: the label is 2.5"),
    (
        "csv",
        csv("a,y\n1,2\n1,9223372036854775808\n"),
        {"label": "y"},
        r"line 3: the label is 9223372036854775808 \(column 'y'\), expected an integer of at most 64 bits",
    ),
    ("csv", csv("a,y\n1,2\n1,1e300\n"), {"label": "y"}, r"line 3: the label is 1e300 \(column 'y'\), expected an int"),
    ("csv", csv("a,y\n1,1e999999999\n"), {"label": "y"}, "line 2: the label is 1e999999999"),
    ("csv", lambda folder: latin(folder / "a.csv", "größe,b\n1,2\n"), {}, r"a\.csv, after line 0: 'utf-8'.*to UTF-8"),
    ("csv", lambda folder: latin(folder / "a.csv", "a\n" + "1\n" * 9000 + "ü\n"), {}, r"after line \d{4}: 'utf-8'"),
    ("csv", csv(f"a,b\n1,{'2' * 200_000}\n"), {}, "after line 1: field larger than field limit.*option delimiter"),
    ("csv", csv("a;b\n1;2\n"), {"delimiter": ";;"}, "delimiter of kind csv is ';;', expected one character"),
    ("csv", csv("a;b\n1;2\n"), {"delimiter": ""}, "delimiter of kind csv is '', expected one character"),
    ("csv", csv("a,b\n1,2\n"), {"ragged": 3}, "ragged names '3'; the fields are x"),
    ("csv", csv("a,b\n1,2\n"), {"ragged": True}, "ragged of kind csv is True, expected names"),
    ("csv", csv("a,b\n1,2\n"), {"ragged": {"x": 1}}, "ragged of kind csv is {'x': 1}, expected names"),
    ("text", lambda _folder: ["/nowhere"], {}, "no file or folder /nowhere"),
    ("text", csv("short"), {}, "makes no samples"),
    ("text", lambda folder: [str(folder)], {"pattern": "*.none"}, "No files match"),
    ("python", code("def samples(): return 3\n"), {}, "returned a int"),
    ("python", code("def samples(): 1 / 0\n"), {}, "raised ZeroDivisionError"),
    ("python", code("def samples(): return []\n"), {}, "no samples"),
    ("python", code("def samples():\n    yield 1\n    raise OSError('gone')\n"), {}, "sample 1: raised OSError: gone"),
    ("python", code("def samples(): return [(1, 2, 3)]\n"), {}, "sample 0 is a tuple of 3"),
    ("python", code("def samples(): return [{'a': 1}, {'b': 1}]\n"), {}, "sample 1 has the fields b"),
    ("python", code("def samples(): return [{'a b': 1}]\n"), {}, "'a b' has no usable name"),
    ("python", code("def samples(): return [1, 2.5]\n"), {}, "sample 1: field 'x' has dtype float64"),
    ("python", code("def sampels(): return [1]\n"), {}, "Did you mean sampels"),
    ("python", code("def samples(): return ['text']\n"), {}, "has dtype <U4"),
    (
        "python",
        code("def samples(): return [{'x': np.ones(2), 'x_length': 1}, {'x': np.ones(3), 'x_length': 1}]\n"),
        {},
        "x_length",
    ),
]


@pytest.mark.parametrize(("kind", "write", "options", "words"), BAD)
def test_bad_input_is_refused_by_name(
    tmp_path: Path, kind: str, write: Callable[[Path], list[str]], options: dict[str, Any], words: str
) -> None:
    paths = write(tmp_path)
    with pytest.raises(HpcvolError, match=f"(?s){words}"):
        build_dataset(kind, paths, tmp_path / "out", options=options)
    with pytest.raises(DataError):
        Dataset.open(tmp_path / "out")


def test_non_finite_values_are_kept_when_asked(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([1.0, np.nan, np.inf]))
    out = build_dataset("npz", [tmp_path / "a.npz"], tmp_path / "out", options={"non_finite": "keep"}, split="train=1")
    np.testing.assert_array_equal(everything(out)["train"]["x"], [1.0, np.nan, np.inf])


def test_bad_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Part 2 of 2"):
        build_dataset("npz", ["a.npz"], tmp_path / "out", part=(2, 2))
