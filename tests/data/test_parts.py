"""Builds in many processes, and builds that are killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hpcvol.data import Dataset, build_dataset
from hpcvol.errors import DataError

pytestmark = pytest.mark.without_mpi

OPTIONS = {"shard_nbytes": 20_000}

BUILD = """
import os, signal, sys
from pathlib import Path
from hpcvol import durable
from hpcvol.data import build_dataset, parts, shard_writer

kind, path, out, index, count, point = sys.argv[1:]
calls = 0


def die_at(module, name, target, nth):
    # The process kills itself just before the nth call of `name` whose target is called `target`.
    function = getattr(module, name)

    def wrapped(*arguments):
        global calls
        calls += target in str(arguments[-1] if name == "replace" else arguments[0])
        if calls == nth:
            Path(out).with_name("reached").write_text(point)
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    setattr(module, name, wrapped)


points = {
    "shard_write": lambda: die_at(shard_writer, "block_checksums", "aside", 2),
    "shard_rename": lambda: die_at(durable.os, "replace", ".h5", 3),
    "part_description": lambda: die_at(durable.os, "replace", "part-", 1),
    "commit_begin": lambda: die_at(parts, "_merge", "", 1),
    "commit_move": lambda: die_at(parts, "sync", "", 1),
    "manifest_rename": lambda: die_at(durable.os, "replace", "dataset.json", 1),
    "after_commit": lambda: die_at(parts, "_remove_unlisted", "", 1),
    "never": lambda: None,
}
points[point]()
build_dataset(kind, [path], out, options={"shard_nbytes": 20_000}, part=(int(index), int(count)))
"""


def start(path: Path, out: Path, part: tuple[int, int] = (0, 1), point: str = "never") -> subprocess.Popen[str]:
    arguments = ["npz", str(path), str(out), str(part[0]), str(part[1]), point]
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outcome(processes: Sequence[subprocess.Popen[str]]) -> list[int]:
    codes = []
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), errors
        codes.append(process.returncode)
    return codes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).standard_normal((3210, 8)), y=np.arange(3210))
    return tmp_path / "a.npz"


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> Path:
    return build_dataset("npz", [source], tmp_path / "whole", options=OPTIONS)


def assert_same(one: Path, other: Path) -> None:
    first, second = Dataset.open(one), Dataset.open(other)
    assert first.id == second.id
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for name, rows in first.splits.items():
        a, b = (dataset.split(name).take(np.arange(rows)) for dataset in (first, second))
        np.testing.assert_array_equal(a["x"], b["x"])
        np.testing.assert_array_equal(a["y"], b["y"])


@pytest.mark.parametrize("count", [2, 4])
def test_many_processes_build_what_one_builds(source: Path, whole: Path, tmp_path: Path, count: int) -> None:
    out = tmp_path / "out"
    assert outcome([start(source, out, (index, count)) for index in range(count)]) == [0] * count
    assert_same(whole, out)


def test_parts_one_after_the_other_and_more_parts_than_sections(source: Path, whole: Path, tmp_path: Path) -> None:
    for index in reversed(range(50)):
        with pytest.raises(DataError, match="not complete" if index < 49 else "no such folder"):
            Dataset.open(tmp_path / "out")
        build_dataset("npz", [source], tmp_path / "out", options=OPTIONS, part=(index, 50))
    assert_same(whole, tmp_path / "out")


@pytest.mark.parametrize(
    "point", ["shard_write", "shard_rename", "part_description", "commit_begin", "commit_move", "manifest_rename"]
)
def test_a_killed_build_leaves_nothing_that_opens_and_can_be_repeated(
    source: Path, whole: Path, tmp_path: Path, point: str
) -> None:
    out = tmp_path / "out"
    assert outcome([start(source, out, point=point)]) == [-signal.SIGKILL]
    assert (tmp_path / "reached").read_text() == point
    with pytest.raises(DataError, match="not complete"):
        Dataset.open(out)
    build_dataset("npz", [source], out, options=OPTIONS)
    assert_same(whole, out)


def test_a_build_killed_after_its_commit_is_complete(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert outcome([start(source, out, point="after_commit")]) == [-signal.SIGKILL]
    assert (tmp_path / "reached").exists()
    assert Dataset.open(out).id == Dataset.open(whole).id


def test_a_killed_build_does_not_mix_with_one_of_other_input(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_dataset("npz", [source], out, options=OPTIONS, part=(1, 2))  # complete, and never to be joined
    assert outcome([start(source, out, (0, 2), point="commit_move")]) == [-signal.SIGKILL]
    assert any(out.glob("*.h5"))
    changed = np.load(source)["x"] + 1
    np.savez(source, x=changed, y=np.arange(3210))
    build_dataset("npz", [source], tmp_path / "fresh", options=OPTIONS)
    for index in range(2):
        build_dataset("npz", [source], out, options=OPTIONS, part=(index, 2))
    assert_same(tmp_path / "fresh", out)


def test_a_build_id_keeps_builds_of_the_same_input_apart(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_dataset("npz", [source], out, options=OPTIONS, part=(1, 2), build_id="job 1")
    build_dataset("npz", [source], out, options=OPTIONS, part=(0, 2), build_id="job 2")
    with pytest.raises(DataError, match="not complete"):
        Dataset.open(out)
    build_dataset("npz", [source], out, options=OPTIONS, part=(1, 2), build_id="job 2")
    build_dataset("npz", [source], out, options=OPTIONS, part=(1, 2), build_id="job 2")  # late: nothing to do
    assert Dataset.open(out).splits["train"] > 0


def test_a_dataset_is_replaced_only_when_asked(source: Path, tmp_path: Path) -> None:
    out = build_dataset("npz", [source], tmp_path / "out", options=OPTIONS)
    reader = Dataset.open(out).split("train")
    before = reader.take(np.arange(len(reader)))["x"].copy()
    with pytest.raises(DataError, match=r"holds a dataset already.*--overwrite"):
        build_dataset("npz", [source], out, options=OPTIONS)
    np.savez(source, x=np.zeros((70, 8)), y=np.arange(70))
    build_dataset("npz", [source], out, options=OPTIONS, overwrite=True)
    assert Dataset.open(out).splits == {"train": 63, "val": 4, "test": 3}
    assert len(list(out.iterdir())) == 4
    # Who had it open goes on with the old one.
    np.testing.assert_array_equal(reader.take(np.arange(len(reader)))["x"], before)


def test_a_failed_replacement_leaves_the_old_dataset(source: Path, tmp_path: Path) -> None:
    out = build_dataset("npz", [source], tmp_path / "out", options=OPTIONS)
    old = Dataset.open(out)
    np.savez(source, x=np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="NaN"):
        build_dataset("npz", [source], out, options=OPTIONS, overwrite=True)
    assert Dataset.open(out).id == old.id
    old.split("train").take(np.arange(old.splits["train"]))


def test_a_folder_of_other_things_is_left_alone(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an empty folder"):
        build_dataset("npz", [source], tmp_path, options=OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz"]


@pytest.mark.parametrize("text", ['{"mine": 1}', "not JSON", ""])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_the_manifests_name_that_is_not_ours_is_left_alone(
    source: Path, tmp_path: Path, text: str, overwrite: bool
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json is not hpcvol's.*Choose another folder"):
        build_dataset("npz", [source], tmp_path / "out", options=OPTIONS, overwrite=overwrite)
    assert (tmp_path / "out" / "dataset.json").read_text() == text
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_damaged_dataset_can_be_replaced(source: Path, whole: Path, tmp_path: Path) -> None:
    out = build_dataset("npz", [source], tmp_path / "out", options=OPTIONS)
    os.truncate(out / "dataset.json", 500)
    with pytest.raises(DataError, match=r"holds a dataset already.*--overwrite"):
        build_dataset("npz", [source], out, options=OPTIONS)
    build_dataset("npz", [source], out, options=OPTIONS, overwrite=True)
    assert_same(whole, out)


def test_two_processes_cannot_build_the_same_part(source: Path, tmp_path: Path) -> None:
    """The input itself starts the second build while the first is at work."""
    spec = f"{tmp_path / 'code.py'}:samples"
    (tmp_path / "other.py").write_text(
        "from hpcvol.data import build_dataset\n"
        "def samples():\n"
        "    for i in range(500):\n"
        "        if i == 400:\n"
        f"            build_dataset('npz', ['{source}'], '{tmp_path}/out2')\n"
        "        yield float(i)\n"
    )
    with pytest.raises(DataError, match="Another build"):
        build_dataset("python", [f"{tmp_path / 'other.py'}:samples"], tmp_path / "out2")
    (tmp_path / "code.py").write_text(
        "from hpcvol.data import build_dataset\n"
        "nested = [0]\n"
        "def samples():\n"
        "    for i in range(500):\n"
        "        if i == 400 and not nested[0]:\n"
        "            nested[0] = 1\n"
        f"            build_dataset('python', ['{spec}'], '{tmp_path}/out', split='train=1')\n"
        "        yield float(i)\n"
    )
    with pytest.raises(DataError, match="Another process is building part 0 of 1"):
        build_dataset("python", [spec], tmp_path / "out", split="train=1")


def test_parts_that_saw_different_input_are_refused(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        f"from pathlib import Path\ndef samples(): return [0.0] * int(Path('{tmp_path}/size').read_text())\n"
    )
    for index, size in enumerate((500, 700)):
        (tmp_path / "size").write_text(str(size))
        if index == 0:
            build_dataset("python", [f"{tmp_path}/code.py:samples"], tmp_path / "out", part=(0, 2))
    with pytest.raises(DataError, match="saw different input"):
        build_dataset("python", [f"{tmp_path}/code.py:samples"], tmp_path / "out", part=(1, 2))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_says_so(source: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(DataError, match="Permission denied"):
        build_dataset("npz", [source], tmp_path / "closed" / "out")
