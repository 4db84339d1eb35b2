"""Going on in another numerics class, and trees of tensors given to all ranks."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_project import Project, first_ranks, what_decides
from launched import RunProgram

from hpcvol.comm import Group
from hpcvol.errors import CheckpointError, ConfigError
from hpcvol.torch.numerics import numerics_class
from hpcvol.train.resuming import spread
from hpcvol.train.same_numerics import check_numerics

HERE = {"torch": "2.13.0", "threads": "1", "instruction set": "AVX512", "processor": "one"}
OTHER = {**HERE, "instruction set": "AVX2"}
THIRD = {**HERE, "processor": "another", "threads": "2"}


def test_one_member_of_a_known_class_is_enough() -> None:
    check_numerics("it", [HERE], [HERE])
    check_numerics("it", [HERE, OTHER], [OTHER])
    check_numerics("it", [HERE], [THIRD, HERE])


def test_no_member_of_a_known_class_is_refused_with_what_to_do() -> None:
    with pytest.raises(CheckpointError) as caught:
        check_numerics("step-00000003", [OTHER], [THIRD])
    text = str(caught.value)
    for words in (
        "step-00000003 was computed by another numerics class",
        "threads: 1, now 2; instruction set: AVX2, now AVX512; processor: one, now another",
        "set train.threads = 1, set the environment variable ATEN_CPU_CAPABILITY=avx2",
        "--fresh",
        '--set train.sum="float"',
    ):
        assert words in text


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_another_class_is_refused_on_all_members(
    group: Group, shared_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = shared_project
    other = {**numerics_class(), "instruction set": "another"}
    with monkeypatch.context() as patch:
        patch.setattr("hpcvol.train.trainer.numerics_class", lambda: other)
        assert project.train("run", "train.steps=2", group=group)
    group.barrier()
    with pytest.raises(CheckpointError, match="another numerics class") as caught:
        project.train("run", group=group)
    assert caught.value.everywhere
    assert project.steps("run") == [2]
    # Knowingly without the promise; but not back to it.
    assert project.train("run", "train.sum=float", "train.steps=4", group=group)
    with pytest.raises(ConfigError, match=r'train\.sum: "float" -> "exact"'):
        project.train("run", "train.steps=6", group=group)


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_classes_that_agreed_once_are_one(
    group: Group, shared_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe had them compare their bits: either of them may go on alone."""
    project = shared_project
    monkeypatch.setattr("hpcvol.train.trainer.numerics_class", lambda: (HERE, OTHER)[group.rank])
    assert project.train("run", "train.steps=2", group=group)
    with first_ranks(group, 1) as one:
        if one is not None:
            monkeypatch.setattr("hpcvol.train.trainer.numerics_class", lambda: OTHER)
            assert project.train("run", group=one)
            assert project.train("never", group=one)
            assert what_decides(project.summary("run")) == what_decides(project.summary("never"))


@pytest.mark.limit_seconds(240)
def test_another_instruction_set_is_refused(project: Project, run_program: RunProgram) -> None:
    """As on a node with another processor."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has one instruction set only")
    assert project.train("run", "train.steps=3")
    command = [sys.executable, "-m", "hpcvol.cli", "train", str(project.job), "--run-dir", str(project.folder / "run")]
    variables = {"ATEN_CPU_CAPABILITY": "default"}
    done = run_program(command, variables=variables, seconds=100)
    assert done.returncode == 1
    capability = torch.backends.cpu.get_cpu_capability()
    assert f"instruction set: {capability}, now DEFAULT" in done.stderr
    assert f"set the environment variable ATEN_CPU_CAPABILITY={capability.lower()}" in done.stderr
    assert done.stderr.count("another numerics class") == 1
    done = run_program([*command, "--set", "train.sum=float"], variables=variables, seconds=100)
    assert done.returncode == 0, done.stderr


def test_everything_arrives(group: Group, tmp_path: Path) -> None:
    del tmp_path
    root = group.size - 1
    tree: dict[Any, Any] = {
        "state": {0: {"step": torch.tensor(3.0), "average": torch.arange(7, dtype=torch.bfloat16)}, 1: {}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, torch.tensor(0.99, dtype=torch.float64)), "none": None}],
        "odd": [torch.zeros(0, 3), torch.ones(2, 3).t(), torch.tensor([True, False, True]), torch.randn(5) * 1j],
    }
    received = spread(group, tree if group.rank == root else None, root)
    texts = group.gather_objects(str(received))
    assert texts == [str(received)] * group.size
    if group.rank == root:
        assert str(received) == str(tree)
        assert received["odd"][1].dtype == torch.float32
    assert isinstance(received["param_groups"][0]["betas"], tuple)
