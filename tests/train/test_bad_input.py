"""Bad input: one clear error, the same on all members where all can know it, and everything ends in seconds."""

import re
import sys

import pytest
import torch
from digits_project import Project
from launched import RunProgram

from hpcvol.comm import Group
from hpcvol.errors import ConfigError, DataError, HpcvolError, MemberError, ModelError

USER = """
import torch
from torch import nn
from digits import Digits, build as plain

def raising(): raise ZeroDivisionError("the builder's own words")
def inner_type_error(): return len(5)
def no_module(): return "a model"
def frozen(): return plain().requires_grad_(False)
def failing_source():
    yield {"x": 1.0}
    raise ZeroDivisionError("the source's own words")
def no_samples(split): return []
def odd_samples(split): return [1.0, 2.0, 3.0]
def stream(split): return iter([])
def no_batch(batch, rng): return 5

class Gives(Digits):
    def __init__(self, what):
        super().__init__(8, 0.0)
        self.what = what
    def forward(self, x, y):
        loss = super().forward(x, y)["loss"]
        return {
            "text": "rubbish", "none": None, "vector": self.layers(x), "no loss": {"logits": loss},
            "number": {"loss": 1.0}, "half": {"loss": loss, "weight": 1.5}, "detached": loss.detach(),
            "nan": loss * float("nan"), "inf": loss / 0.0, "negative": {"loss": loss, "weight": -1},
        }[self.what]
def gives(what): return Gives(what)
"""


@pytest.fixture
def user_project(group: Group, shared_project: Project) -> Project:
    if group.rank == 0:
        shared_project.write("user.py", USER)
    group.barrier()
    return shared_project


CASES: dict[str, tuple[list[str], type[HpcvolError], str]] = {
    "missing data": (["data.path=nowhere"], DataError, r"nowhere"),
    "source fails": (
        ["data.path=new", "data.source={kind='python',paths=['user.py:failing_source']}"],
        HpcvolError,
        r"the source's own words",
    ),
    "source missing": (
        ["data.path=new", "data.source={kind='npz',paths=['nothing.npz']}"],
        DataError,
        r"nothing\.npz",
    ),
    "no split": (["data.train_split=trian"], ConfigError, r"data\.train_split = 'trian'.* has the splits train"),
    "no model file": (["model.build=modle.py:build"], ConfigError, r"there is no file .*modle\.py"),
    "no function": (["model.build=digits.py:bild"], ConfigError, r"no function bild .*Did you mean build\?"),
    "wrong arguments": (["model.args.depth=3"], ConfigError, r"model\.args = .*do not fit .*digits\.py:build\(width"),
    "builder raises": (
        ["model.build=user.py:raising", "model.args={}"],
        MemberError,
        r"building the model: ZeroDivisionError: the builder's own words\n(.|\n)*in raising",
    ),
    "type error in the builder": (
        ["model.build=user.py:inner_type_error", "model.args={}"],
        MemberError,
        r"TypeError: object of type 'int' has no len\(\)\n(.|\n)*in inner_type_error",
    ),
    "no module": (["model.build=user.py:no_module", "model.args={}"], ModelError, r"returned a str: expected a torch"),
    "frozen": (["model.build=user.py:frozen", "model.args={}"], ModelError, r"no parameter that requires a gradient"),
    "optimizer": (["optimizer.name=adanw"], ConfigError, r"did you mean AdamW\?"),
    "no samples": (["data.path=user.py:no_samples"], ConfigError, r"found 0 samples"),
    "no map style": (["data.path=user.py:stream"], DataError, r"is not a map-style dataset"),
    "no transform": (["data.transform=user.py:nothing"], ConfigError, r"there is no function nothing"),
    "no hook": (["train.on_metrics=user.py:nothing"], ConfigError, r"there is no function nothing"),
    "no weights": (["model.weights=nowhere.safetensors"], HpcvolError, r"no weights at .*nowhere\.safetensors"),
    "no GPU": (["train.device=cuda"], ConfigError, r'device = "cuda": .* no GPU that torch can use; .*"cpu"'),
    "nan": (
        ["model.build=user.py:gives", "model.args={what='nan'}"],
        ModelError,
        r"step 0: the loss of unit 0, .* nan",
    ),
    "inf": (
        ["model.build=user.py:gives", "model.args={what='inf'}"],
        ModelError,
        r"step 0: the loss of unit 0, .* inf",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", [1, 3], indirect=True, ids=["1rank", "3ranks"])
def test_all_members_raise_the_same(group: Group, user_project: Project, case: str) -> None:
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    overrides, kind, words = CASES[case]
    with pytest.raises(kind) as caught:
        user_project.train("run", *overrides, group=group)
    assert caught.value.everywhere
    assert re.search(words, str(caught.value)), str(caught.value)
    texts = group.gather_objects(str(caught.value))
    assert set(texts) == {texts[0]}
    group.barrier()
    assert not (user_project.folder / "run" / "summary.json").exists()
    assert not (user_project.folder / "new" / "dataset.json").exists()


GIVEN = {
    "text": r"the model returned a str: expected a scalar loss, or a mapping",
    "none": r"the model returned a NoneType",
    "vector": r"the loss is a tensor of shape \[\d+, 10\]",
    "no loss": r"the model returned a dict: expected",
    "number": r"the model returned a dict: expected",
    "half": r"a unit's weight is 1\.5",
    "negative": r"a unit's weight is -1",
    "detached": r"require",
}


@pytest.mark.parametrize("what", GIVEN)
@pytest.mark.parametrize("group", [1, 3], indirect=True, ids=["1rank", "3ranks"])
@pytest.mark.parametrize("kind", ["exact", "float"])
def test_rubbish_from_the_model_is_one_error(group: Group, user_project: Project, what: str, kind: str) -> None:
    overrides = ("model.build=user.py:gives", f"model.args={{what='{what}'}}", f"train.sum={kind}")
    with pytest.raises((ModelError, MemberError), match=GIVEN[what]) as caught:
        user_project.train("run", *overrides, group=group)
    assert caught.value.everywhere


@pytest.mark.parametrize("group", [1, 3], indirect=True, ids=["1rank", "3ranks"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.path=user.py:odd_samples", r"a sample of list is a float: expected a mapping"),
        ("data.transform=user.py:no_batch", r"data\.transform returned a int: expected the batch"),
    ],
)
def test_rubbish_from_the_data_is_one_error(group: Group, user_project: Project, override: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        user_project.train("run", override, group=group)
    assert caught.value.everywhere


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_members_with_other_model_files_are_refused(group: Group, shared_project: Project) -> None:
    folder = shared_project.folder / f"node{group.rank}"
    folder.mkdir()
    (folder / "model.py").write_text(f"from digits import build\n# {group.rank}\n")
    with pytest.raises(ConfigError, match=r"members disagree: the file model\.py is .* on member 0") as caught:
        shared_project.train("run", f"model.build={folder.name}/model.py:build", group=group)
    assert caught.value.everywhere
    group.barrier()
    (folder / "model.py").unlink()
    group.barrier()
    if group.rank == 0:
        (folder / "model.py").write_text("")
    with pytest.raises(ConfigError, match=r"the file model\.py is .* on member 0 .* and missing on member 1"):
        shared_project.train("run2", f"model.build={folder.name}/model.py:build", group=group)


@pytest.mark.parametrize("group", [4], indirect=True, ids=["4ranks"])
def test_fewer_units_than_workers_is_one_warning(
    group: Group, shared_project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ("train.batch_size=16", "train.unit_size=8")
    assert shared_project.train("run", *overrides, group=group)
    assert shared_project.summary("run")["steps"] == 6
    warnings = [record.getMessage() for record in caplog.records]
    everywhere = [text for texts in group.gather_objects(warnings) for text in texts]
    assert len(everywhere) == 1
    assert everywhere[0].startswith("a step has 2 units and there are 4 workers: 2 of them idle; lower train.unit_size")


ONE_MEMBER = """
import torch
from digits import Digits
from hpcvol.comm import start

class Fails(Digits):
    calls = 0
    def forward(self, x, y):
        self.calls += 1
        if self.calls > 13 and start().rank == 1:
            raise {error}
        return super().forward(x, y)
def build(): return Fails(8, 0.0)
def hook(step, metrics):
    if step == 2:
        raise ValueError("the hook's own words")
"""

ONE_MEMBER_FAILS = {
    "memory": ("MemoryError()", "MemoryError"),
    "GPU memory": ('torch.OutOfMemoryError("CUDA out of memory")', "OutOfMemoryError: CUDA out of memory"),
}


# Seconds on a machine with nothing else to do.
PATIENCE_SECONDS = 150.0
patiently = pytest.mark.limit_seconds(PATIENCE_SECONDS)


def hpcvol_train(run_program: RunProgram, project: Project, *overrides: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "hpcvol.cli", "train", str(project.job), "-n", "2"]
    pairs = [part for override in overrides for part in ("--set", override)]
    done = run_program([*command, "--run-dir", str(project.folder / "run"), *pairs], seconds=PATIENCE_SECONDS - 20)
    return done.returncode, done.stdout, done.stderr


@patiently
@pytest.mark.parametrize("case", ONE_MEMBER_FAILS)
def test_one_member_fails_and_all_stop(project: Project, run_program: RunProgram, case: str) -> None:
    error, words = ONE_MEMBER_FAILS[case]
    project.write("fails.py", ONE_MEMBER.replace("{error}", error))
    status, stdout, stderr = hpcvol_train(
        run_program, project, "model.build=fails.py:build", "model.args={}", "checkpoint.every_steps=1"
    )
    assert status not in (0, 130)
    assert stderr.count("Traceback (most recent call last)") == 1, stderr
    assert 'fails.py", line 11, in forward' in stderr
    assert words in stderr
    assert len(re.findall(r"hpcvol: error: member 1 \(.*\) failed while computing step 2: ", stderr)) == 1
    assert stderr.count("hpcvol: error:") == 1
    assert "the run is not complete" in stdout + stderr
    assert project.steps("run") == [1, 2]
    assert not (project.folder / "run" / "summary.json").exists()


@patiently
def test_a_hook_that_raises_stops_the_run(project: Project, run_program: RunProgram) -> None:
    project.write("fails.py", ONE_MEMBER.replace("{error}", "ValueError"))
    status, _, stderr = hpcvol_train(run_program, project, "train.on_metrics=fails.py:hook")
    assert status not in (0, 130)
    assert "the hook's own words" in stderr
    assert len(re.findall(r"hpcvol: error: member 0 \(.*\) raised the exception above", stderr)) == 1


@patiently
def test_a_shared_error_is_printed_once_without_a_traceback(project: Project, run_program: RunProgram) -> None:
    status, _, stderr = hpcvol_train(run_program, project, "model.build=modle.py:build")
    assert status == 1
    assert stderr.count("hpcvol: error:") == 1
    assert "there is no file" in stderr
    assert "Traceback" not in stderr
    assert "MPI_ABORT" not in stderr
