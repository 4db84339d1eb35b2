"""Checkpoints: what is in them, that a killed or damaged one costs no other, and what of another model is refused."""

import json
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from digits_project import Project, what_decides
from launched import RunProgram

from hpcvol.comm import Group
from hpcvol.data import build_dataset
from hpcvol.errors import CheckpointError, LeftBehindError
from hpcvol.train import checkpoint
from hpcvol.train.checkpoint import Checkpoints, load_weights
from hpcvol.train.checkpoint_files import read_state
from hpcvol.train.describe import describe_run
from hpcvol.train.snapshot import Snapshot
from hpcvol.train.verify import verify_run

PERIODIC = ("checkpoint.every_steps=2",)


def parts(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def snapshot(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Snapshot:
    taken = Snapshot()
    taken.take(model, optimizer, {})
    return taken


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    load_weights(path / "model.safetensors", model)
    checkpoint.load_optimizer(path, checkpoint.read_optimizer(path), optimizer)
    return read_state(path)


def test_others_can_read_its_parts(project: Project) -> None:
    assert project.train("run")
    path = project.checkpoint("run", 6)
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "layers.0.weight": (24, 64),
        "layers.0.bias": (24,),
        "layers.3.weight": (10, 24),
        "layers.3.bias": (10,),
    }
    state = torch.load(path / "optimizer.pt", weights_only=True)
    assert len(state["state"]) == 4
    assert {path.name for path in path.iterdir()} == {"model.safetensors", "optimizer.pt", "state.json"}
    json.loads((path / "state.json").read_text())


def test_everything_comes_back(tmp_path: Path) -> None:
    model, optimizer = parts()
    path = Checkpoints(tmp_path, keep=1).write(7, snapshot(model, optimizer), {"more": [1, None, 0.1]}, best=True)
    other_model, other_optimizer = parts(seed=1)
    assert load(path, other_model, other_optimizer)["more"] == [1, None, 0.1]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other_model.state_dict()[name])
    assert str(other_optimizer.state_dict()) == str(optimizer.state_dict())
    assert (tmp_path / "best").resolve() == path.resolve()


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4, bias=False)
        self.last = torch.nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    path = Checkpoints(tmp_path, keep=1).write(1, snapshot(model, optimizer), {}, best=False)
    assert len(safetensors.torch.load_file(path / "model.safetensors")) == 1
    other = Tied()
    load(path, other, torch.optim.SGD(other.parameters(), momentum=0.9))
    assert other.first.weight is other.last.weight
    assert torch.equal(other.last.weight, model.last.weight)


def test_only_so_many_are_kept_besides_the_best(tmp_path: Path) -> None:
    checkpoints, (model, optimizer) = Checkpoints(tmp_path, keep=2), parts()
    kept = {path.name: path for path in [tmp_path / "step-00000001-mine", tmp_path / "step-notes"]}
    for path in kept.values():
        path.mkdir()  # somebody's own: neither counted nor deleted
    for step in range(1, 7):
        checkpoints.write(step, snapshot(model, optimizer), {}, best=step == 2)
    names = sorted(path.name for path in tmp_path.iterdir() if path.name not in kept)
    assert names == ["best", "step-00000002", "step-00000005", "step-00000006"]
    assert all(path.exists() for path in kept.values())
    assert checkpoints.newest() == tmp_path / "step-00000006"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped model": lambda folder: flip(folder / "model.safetensors"),
    "flipped optimizer": lambda folder: flip(folder / "optimizer.pt"),
    "short model": lambda folder: truncate(folder / "model.safetensors"),
    "empty model": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "short state": lambda folder: truncate(folder / "state.json"),
    "empty state": lambda folder: os.truncate(folder / "state.json", 0),
    "zeros in state": lambda folder: (folder / "state.json").write_bytes(bytes(100)),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "another number in state": lambda folder: rewrite(folder / "state.json", '"format": 6', '"format": 6, "more": 1'),
    "no files in state": lambda folder: rewrite(folder / "state.json", '"files": {', '"files": [], "others": {'),
    "other state": lambda folder: (folder / "state.json").write_text("[]"),
    "nothing": empty,
    "a file": replace_by_file,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_is_skipped_by_name(tmp_path: Path, damage: str) -> None:
    checkpoints, (model, optimizer) = Checkpoints(tmp_path, keep=3), parts()
    for step in (1, 2):
        checkpoints.write(step, snapshot(model, optimizer), {}, best=False)
    DAMAGE[damage](tmp_path / "step-00000002")
    assert checkpoints.newest() == tmp_path / "step-00000001"
    ((path, why),) = checkpoints.skipped.items()
    assert path == tmp_path / "step-00000002"
    assert "step-00000002" in why
    assert checkpoints.write(2, snapshot(model, optimizer), {}, best=True) == tmp_path / "step-00000002"
    assert checkpoints.newest() == tmp_path / "step-00000002"


def test_none_whole_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "none yet", keep=1)
    assert checkpoints.newest() is None
    path = checkpoints.write(1, snapshot(*parts()), {}, best=False)
    flip(path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"whole and of this run: step-00000001/optimizer\.pt .*--fresh"):
        checkpoints.newest()


def test_damaged_ones_do_not_push_out_whole_ones(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    """With one kept, the first checkpoint after going on is older than the damaged one."""
    settings = ("checkpoint.every_steps=2", "checkpoint.keep=1")
    assert project.train("run", "train.steps=6", *settings)
    shutil.copytree(project.checkpoint("run", 6), project.folder / "six")
    shutil.rmtree(project.folder / "run")
    assert project.train("run", "train.steps=2", *settings)
    shutil.copytree(project.folder / "six", project.checkpoint("run", 6))
    flip(project.checkpoint("run", 6) / "optimizer.pt")
    assert project.train("run", "train.steps=4", *settings)
    assert "step-00000006/optimizer.pt has another digest" in caplog.text
    assert 4 in project.steps("run")
    assert project.train("run", "train.steps=6", *settings)
    assert project.train("never", "train.steps=6", *settings)
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))
    assert project.checkpoint("run", 6) == Checkpoints(project.folder / "run" / "checkpoints", keep=1).newest()


@pytest.mark.parametrize("gone_on_before", ["anything", "it counts", "older ones are deleted"])
def test_who_was_left_behind_touches_nothing_of_the_others(tmp_path: Path, gone_on_before: str) -> None:
    """The others write the checkpoint of the same step in the same folder meanwhile."""
    looks = ["anything", "it counts", "older ones are deleted"]
    content, nth = snapshot(*parts()), looks.index(gone_on_before)
    earlier, theirs = tmp_path / "step-00000001", tmp_path / ".step-00000002.theirs.partial"
    looked: list[str] = []

    def check() -> None:
        looked.append(looks[len(looked)])
        if len(looked) == nth + 1:
            theirs.mkdir()  # no sooner: what is there before is cleared, and rightly
        if len(looked) > nth:
            raise LeftBehindError("the others have gone on")

    Checkpoints(tmp_path, keep=1).write(1, content, {}, best=False)
    with pytest.raises(LeftBehindError):
        Checkpoints(tmp_path, keep=1, check=check).write(2, content, {}, best=True)
    assert looked == looks[: nth + 1]
    left = {theirs, earlier} | ({tmp_path / "step-00000002"} if nth == 2 else set())
    assert set(tmp_path.iterdir()) == left


def test_who_was_left_behind_says_so_where_the_others_cleared_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest_view = True

    def check() -> None:
        if not newest_view:
            raise LeftBehindError("the others have gone on")

    def cleared(folder: Path, *_: object) -> None:
        nonlocal newest_view
        newest_view = False
        Checkpoints(tmp_path, keep=1)._drop_partial()
        (folder / "state.json").write_text("")

    monkeypatch.setattr(checkpoint, "_write_parts", cleared)
    with pytest.raises(LeftBehindError):
        Checkpoints(tmp_path, keep=1, check=check).write(2, snapshot(*parts()), {}, best=False)
    assert not newest_view
    assert not list(tmp_path.iterdir())


KILLER = """
import os, signal, sys
from pathlib import Path
import safetensors.torch, torch, torch._dynamo  # imported once, for all children
from hpcvol import Trainer, load_config

def strike(real, moment):
    def patched(*args, **kwargs):
        if "step-00000004" not in str(args):
            return real(*args, **kwargs)
        if moment != "before":
            real(*args, **kwargs)
        if moment == "half":
            path = args[1] if isinstance(args[1], (str, Path)) else args[1].name
            os.truncate(path, os.path.getsize(path) // 2)
        os.write(1, b"reached")
        os.kill(os.getpid(), signal.SIGKILL)
    return patched

POINTS = [
    (safetensors.torch, "save_file", "half"),
    (torch, "save", "half"),
    (Path, "rename", "before"),
    (Path, "rename", "after"),
]
job, folder = map(Path, sys.argv[1:])
for owner, name, moment in POINTS:
    child = os.fork()  # before MPI starts; saves four imports of torch
    if child == 0:
        setattr(owner, name, strike(getattr(owner, name), moment))
        Trainer(load_config(job, ["checkpoint.every_steps=2"]), folder / f"{name} {moment}").fit()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(f"\\nstruck {name} {moment}:", os.WTERMSIG(status) if os.WIFSIGNALED(status) else "no signal", flush=True)
"""


@pytest.mark.limit_seconds(150)
def test_a_kill_at_any_point_of_writing_costs_nothing_but_that_checkpoint(
    project: Project, run_program: RunProgram
) -> None:
    done = run_program([sys.executable, "-c", KILLER, str(project.job), str(project.folder)], seconds=130)
    assert done.returncode == 0, done.stderr
    # Not line by line: the thread that computes may be killed within a line of its own.
    struck = re.findall(r"^struck ([\w ]+): (.*)$", done.stdout, re.MULTILINE)
    assert done.stdout.count("reached") == 4
    assert [ending for _, ending in struck] == [str(signal.SIGKILL.value)] * 4, done.stdout
    runs = [name for name, _ in struck]
    assert project.train("never", *PERIODIC)
    for run in runs:
        left = {path.name for path in (project.folder / run / "checkpoints").iterdir()}
        newer = "step-00000004" if run == "rename after" else ".step-00000004.RANDOM.partial"
        assert {re.sub(r"\.[0-9a-f]{8}\.partial", ".RANDOM.partial", name) for name in left} == {"step-00000002", newer}
        assert project.train(run, *PERIODIC)
        assert what_decides(project.summary(run)) == what_decides(project.summary("never"))
        assert project.steps(run) == [4, 6]
        assert not list((project.folder / run / "checkpoints").glob(".*"))


# Files may not grow beyond this from step 3 on, when the checkpoint of step 2 is whole; what a full disk does.
LIMIT = """
import resource, signal, time
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def limit(step, metrics):
    if step == 3:
        while not Path({earlier!r}).exists():
            time.sleep(0.005)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({nbytes}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


# The model takes 7.6 kB and the optimizer's state 20.
@pytest.mark.parametrize("nbytes", [4096, 9000], ids=["in the model", "in the optimizer"])
def test_a_full_disk_is_one_error_and_earlier_checkpoints_stay(
    group: Group, shared_project: Project, nbytes: int
) -> None:
    project, path = shared_project, shared_project.checkpoint("run", 4)
    if group.rank == 0:
        project.write("limit.py", LIMIT.format(nbytes=nbytes, earlier=str(shared_project.checkpoint("run", 2))))
    group.barrier()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(CheckpointError) as caught:
            project.train("run", *PERIODIC, "train.on_metrics=limit.py:limit", group=group)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.everywhere
    assert f"checkpoint {path} could not be written" in str(caught.value)
    assert "MiB free there" in str(caught.value)
    assert "File too large" in str(caught.value)  # the system's own reason: here a limit stands for a full disk
    assert "Make room" in str(caught.value)
    group.barrier()
    if group.rank == 0:
        assert [path.name for path in (project.folder / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    group.barrier()
    assert project.train("run", *PERIODIC, group=group)
    assert project.train("never", *PERIODIC, group=group)
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))


def test_a_checkpoint_of_another_model_is_refused(group: Group, shared_project: Project) -> None:
    project = shared_project
    assert project.train("run", "train.steps=2", group=group)
    if group.rank == 0:
        (project.folder / "job.toml").write_text(project.job.read_text().replace("digits.py:build", "wide.py:build"))
        for path in (project.folder / "run").glob("config.toml"):
            path.write_text(path.read_text().replace("digits.py:build", "wide.py:build"))
        project.write("wide.py", "from digits import Digits\ndef build(**_): return Digits(25, 0.2)\n")
    group.barrier()
    with pytest.raises(CheckpointError) as caught:
        project.train("run", "train.steps=4", group=group)
    assert caught.value.everywhere
    for words in (
        "step-00000002 is of another model",
        "'layers.0.bias' is float32 [24] there and float32 [25] here",
    ):
        assert words in str(caught.value)


FOREIGN = {
    "another model": (
        "model.args.width=25",
        "step-00000099 is of another run: model.args.width is 25 there and 24 here",
    ),
    "another seed": ("train.seed=7", "step-00000099 is of another run: train.seed is 7 there and 0 here"),
    "another optimizer": ("optimizer.name=sgd", 'optimizer.name is "sgd" there and "adamw" here'),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_checkpoint_is_skipped_by_name(project: Project, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whole, valid, newer than all others, and not of this run."""
    override, words = FOREIGN[kind]
    assert project.train("other", "train.steps=2", override)
    assert project.train("run", "train.steps=2", *PERIODIC)
    foreign = project.checkpoint("run", 99)
    shutil.copytree(project.checkpoint("other", 2), foreign)
    assert words in describe_run(project.folder / "run")["checkpoints"][-1]["trouble"]
    findings = verify_run(project.folder / "run")
    assert findings.damaged == []
    assert any(words in note for note in findings.notes)
    assert project.train("run", "checkpoint.keep=1", *PERIODIC)
    assert sum(words in record.getMessage() for record in caplog.records) == 1
    assert project.train("never", *PERIODIC)
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))
    assert project.steps("run") == [6, 99]


def test_a_foreign_checkpoint_in_the_way_is_put_aside(project: Project) -> None:
    assert project.train("other", "train.steps=4", "train.seed=7")
    assert project.train("run", "train.steps=2", *PERIODIC)
    shutil.copytree(project.checkpoint("other", 4), project.checkpoint("run", 4))
    theirs = read_state(project.checkpoint("other", 4))
    assert project.train("run", "train.steps=4", *PERIODIC)
    assert project.train("never", "train.steps=4", *PERIODIC)
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))
    assert read_state(project.checkpoint("run", 4)) != theirs
    assert read_state(project.folder / "run" / "checkpoints" / "step-00000004-foreign") == theirs


def test_only_foreign_ones_are_an_error(project: Project) -> None:
    assert project.train("run", "train.steps=2")
    assert project.train("other", "train.steps=2", "train.seed=7")
    shutil.rmtree(project.checkpoint("run", 2))
    shutil.copytree(project.checkpoint("other", 2), project.checkpoint("run", 2))
    with pytest.raises(
        CheckpointError, match=r"whole and of this run: step-00000002 is of another run: train\.seed is 7"
    ):
        project.train("run", "train.steps=4")


def test_another_dataset_is_refused(project: Project, tmp_path: Path) -> None:
    assert project.train("run", "train.steps=2")
    rows = [[float(i), *[0.0] * 63] for i in range(100)]
    np.savez(tmp_path / "rows.npz", x=np.array(rows, np.float32), y=np.arange(100) % 10)
    other = tmp_path / "other"
    build_dataset("npz", [str(tmp_path / "rows.npz")], other, split={"train": 1.0}, options={})
    # The same path, so that the configuration has not changed, and other content there.
    path = Path(project.config().data.path)
    for file in (project.job, project.folder / "run" / "config.toml"):
        file.write_text(file.read_text().replace(str(path), str(other)))
    with pytest.raises(CheckpointError, match=r"was trained on dataset [0-9a-f]{32}, and .*other is [0-9a-f]{32}"):
        project.train("run", "train.steps=4")


STORED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "shape": ({"0.weight": torch.zeros(4, 2)}, "'0.weight' is float32 [4, 2] there and float32 [4, 3] here"),
    "missing": ({"0.weight": torch.zeros(4, 3)}, "it lacks '0.bias', which this model has"),
    "unknown": ({"2.other": torch.zeros(1)}, "it holds '2.other', which this model does not have"),
    "dtype": (
        {"0.weight": torch.zeros(4, 3, dtype=torch.float64)},
        "'0.weight' is float64 [4, 3] there and float32 [4, 3] here",
    ),
}


@pytest.mark.parametrize("case", STORED)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    tensors, words = STORED[case]
    model, _ = parts()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load_weights(path, model)
    assert f"{path} is of another model: {words}" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("content", [None, b"", b"rubbish" * 10])
def test_weights_that_are_none_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        load_weights(path, parts()[0])


def test_a_run_starts_from_given_weights(project: Project) -> None:
    assert project.train("first")
    weights = project.checkpoint("first", 6) / "model.safetensors"
    assert project.train("second", f"model.weights={weights}", "optimizer.args.lr=1e-30", "train.steps=1")
    first, second = project.summary("first"), project.summary("second")
    assert second["weights_sha256"] == first["weights_sha256"]
    assert second["test_loss"] == first["test_loss"]
