"""`hpcvol show` and `hpcvol verify`: of datasets, checkpoints and runs; whole, damaged, and neither."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from digits_project import EXAMPLES, make_project
from launched import RunProgram
from typer.testing import CliRunner

from hpcvol.cli.main import app
from hpcvol.data import build_dataset
from hpcvol.train import ledger_account, verify
from hpcvol.train.checkpoint_files import digest_of, read_state, seal
from hpcvol.train.config import load_config
from hpcvol.train.ledger_account import Account
from hpcvol.train.run_directory import RunDirectory

HPCVOL = [sys.executable, "-m", "hpcvol.cli"]
pytestmark = pytest.mark.any_mpi


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a dataset `data` and a complete run `run` of two checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    split = {"train": 0.7, "val": 0.1, "test": 0.2}
    data = build_dataset("python", [f"{EXAMPLES / 'digits.py'}:samples"], folder / "data", split=split)
    project = make_project(folder / "project", data)
    settings = ["--set", "checkpoint.every_steps=3", "--run-dir", str(project.folder / "run")]
    subprocess.run([*HPCVOL, "train", str(project.job), *settings], check=True, capture_output=True)
    data.rename(project.folder / "data")
    return project.folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "project", symlinks=True))


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.stdout + result.stderr


def shown(path: Path) -> dict[str, Any]:
    status, output = run("show", path, "--json")
    assert status == 0, output
    content: dict[str, Any] = json.loads(output)
    return content


def test_show_a_dataset(project: Path) -> None:
    described = shown(project / "data")
    assert described["kind"] == "dataset"
    assert described["rows"] == 1797
    assert described["splits"]["train"]["rows"] == 1258
    assert described["fields"]["x"] == {"dtype": "<f4", "shape": [64], "ragged": False}
    assert described["built"]["kind"] == "python"
    _, text = run("show", project / "data")
    assert described["id"] in text
    assert "float32 [64]" in text
    assert "1258 samples" in text


def test_show_a_run(project: Path) -> None:
    described = shown(project / "run")
    assert described["kind"] == "run"
    assert described["complete"] is True
    assert described["at_work"] is False
    assert described["step"] == 6
    assert [one["name"] for one in described["checkpoints"]] == ["step-00000003", "step-00000006"]
    assert all(one["trouble"] is None for one in described["checkpoints"])
    summary = json.loads((project / "run" / "summary.json").read_text())
    assert described["last_validation"]["loss"] == summary["val_loss"]
    ((member, credit),) = described["credit"].items()
    assert member.startswith("member 0 (")
    assert (credit["units"], credit["samples"]) == (6 * 8, 6 * 64)
    assert credit["seconds"] > 0
    _, text = run("show", project / "run")
    assert "complete: 6 steps" in text
    assert f"{member}: 48 units, 384 samples, {credit['seconds']:.1f} s" in text
    assert summary["weights_sha256"] in text


def test_show_a_run_that_is_under_way(project: Path) -> None:
    (project / "run" / "summary.json").unlink()
    with (project / "run" / "checkpoints" / "step-00000006" / "optimizer.pt").open("ab") as file:
        file.write(b"torn")
    held = RunDirectory(project / "run", load_config(project / "run" / "config.toml"), fresh=False)
    try:
        described = shown(project / "run")
        assert described["at_work"] is True
        assert described["complete"] is False
        assert "optimizer.pt has" in described["checkpoints"][1]["trouble"]
        assert "not complete, at step 6; a job is at work in it" in run("show", project / "run")[1]
    finally:
        held.release()
    assert shown(project / "run")["at_work"] is False


def test_show_a_checkpoint(project: Path) -> None:
    described = shown(project / "run" / "checkpoints" / "step-00000006")
    assert described["kind"] == "checkpoint"
    assert described["step"] == 6
    assert described["trouble"] is None
    assert described["tensors"]["values"] == 64 * 24 + 24 + 24 * 10 + 10
    assert "instruction set" in described["numerics"][0]
    assert "model.safetensors" in run("show", project / "run" / "checkpoints" / "step-00000006")[1]


@pytest.mark.parametrize("name", ["data", "run", "run/checkpoints/step-00000003"])
def test_show_loads_neither_torch_nor_mpi(project: Path, name: str, run_program: RunProgram) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('loaded', {'torch', 'mpi4py.MPI'} & set(sys.modules)))\n"
        "from hpcvol.cli.main import main; main()"
    )
    done = run_program([sys.executable, "-c", code, "show", str(project / name)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded set()\n")


@pytest.mark.parametrize("name", ["data", "run", "run/checkpoints/step-00000003", "run/checkpoints/best"])
def test_what_is_whole_is_said_to_be(project: Path, name: str) -> None:
    status, output = run("verify", project / name)
    assert (status, "whole" in output) == (0, True), output


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    assert change(before) != before
    path.write_text(change(before))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def spoil_weights(checkpoint: Path, value: float) -> None:
    """Change one weight of a checkpoint, and let its description vouch for it."""
    path = checkpoint / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    next(iter(weights.values())).view(-1)[0] = value
    safetensors.torch.save_file(weights, path)
    state = read_state(checkpoint)
    state["files"][path.name] = [path.stat().st_size, digest_of(path)]
    (checkpoint / "state.json").write_text(seal(state))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit in the weights": (
        lambda run: flip_last_byte(run / "checkpoints/step-00000003/model.safetensors"),
        "step-00000003/model.safetensors: has another digest",
    ),
    "a truncated optimizer": (
        lambda run: (run / "checkpoints/step-00000003/optimizer.pt").write_bytes(b"short"),
        "step-00000003/optimizer.pt: has 5 bytes, expected",
    ),
    "missing weights": (
        lambda run: (run / "checkpoints/step-00000006/model.safetensors").unlink(),
        "step-00000006/model.safetensors: is missing",
    ),
    "no description": (
        lambda run: (run / "checkpoints/step-00000003/state.json").write_text("{"),
        "step-00000003/state.json: is not the description",
    ),
    "weights that are not finite": (
        lambda run: spoil_weights(run / "checkpoints/step-00000003", torch.inf),
        "holds 1 values that are not finite",
    ),
    "other weights than the summary's": (
        lambda run: spoil_weights(run / "checkpoints/step-00000006", 0.125),
        "step-00000006 holds weights of ",
    ),
    "a configuration that is none": (
        lambda run: rewrite(run / "config.toml", lambda text: text.replace("[train]", "[trian]")),
        "config.toml: ",
    ),
    "a torn line of metrics": (
        lambda run: rewrite(run / "metrics.jsonl", lambda text: text[:-9]),
        "metrics.jsonl: line 7 is not a JSON object with a step",
    ),
    "metrics out of order": (
        lambda run: rewrite(run / "metrics.jsonl", lambda text: '{"step": 9}\n' + text),
        "metrics.jsonl: line 2 is of step 1, after one of step 9",
    ),
    "a share that was changed in the ledger": (
        lambda run: rewrite(run / "ledger.jsonl", lambda text: text.replace('"samples": 64', '"samples": 65', 1)),
        "ledger.jsonl: line 3 does not follow from the one before",
    ),
    "a ledger without its last line": (
        lambda run: rewrite(run / "ledger.jsonl", lambda text: "".join(text.splitlines(keepends=True)[:-1])),
        "ledger.jsonl: line 7 is not what ",
    ),
    "no ledger": (lambda run: (run / "ledger.jsonl").unlink(), "ledger.jsonl: is missing"),
    "a ledger with a line too many": (
        lambda run: rewrite(run / "ledger.jsonl", lambda text: text + "{}\n"),
        "ledger.jsonl: does not end as ",
    ),
    "a checkpoint of other weights than the ledger tells": (
        lambda run: spoil_weights(run / "checkpoints/step-00000003", 0.125),
        "step-00000003: holds other weights than version 3 had by ledger.jsonl",
    ),
    "a summary of another step": (
        lambda run: rewrite(run / "summary.json", lambda text: text.replace('"steps": 6', '"steps": 5')),
        "summary.json: is of step 5, and the last checkpoint",
    ),
    "a summary that is none": (lambda run: (run / "summary.json").write_text("[]"), "summary.json: is not a summary"),
    "best points nowhere": (
        lambda run: shutil.rmtree(run / "checkpoints/step-00000006"),
        "best: points to step-00000006, which is not there",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_to_a_run_is_named(project: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    damage(project / "run")
    status, output = run("verify", project / "run")
    assert status == 1
    assert words in output, output


def test_a_checkpoint_that_was_not_completed_is_a_note(project: Path) -> None:
    (project / "run/checkpoints/.step-00000009.partial").mkdir()
    status, output = run("verify", project / "run")
    assert status == 0
    assert "never completed" in output


def test_a_checkpoint_that_a_job_deletes_meanwhile_is_no_damage(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = min((project / "run/checkpoints").glob("step-*"))

    def read_account(run_dir: Path) -> Account | None:
        shutil.rmtree(first)
        return ledger_account.read_account(run_dir)

    monkeypatch.setattr(verify, "read_account", read_account)
    assert verify.verify_run(project / "run").damaged == []
    assert not first.exists()


def test_a_model_that_cannot_be_built_is_a_note(project: Path) -> None:
    rewrite(project / "run/config.toml", lambda text: text.replace("digits.py:build", "gone.py:build"))
    status, output = run("verify", project / "run")
    assert status == 0
    assert "weights_sha256 was not compared" in output


def test_a_damaged_dataset_is_named_with_its_samples(project: Path) -> None:
    (shard,) = (project / "data").glob("val-*.h5")
    flip_last_byte(shard)
    status, output = run("verify", project / "data")
    assert status == 1
    assert f"damaged: {shard}: block 0 " in output
    assert "of split val" in output
    assert "1 thing is damaged" in output


@pytest.mark.parametrize("command", ["show", "verify"])
def test_what_is_none_of_them_is_one_clear_error(project: Path, command: str) -> None:
    (project / "empty").mkdir()
    for path, words in [
        (project / "empty", "neither a dataset (it has no dataset.json)"),
        (project / "absent", "there is nothing at"),
        (project / "job.toml", "is a file"),
        (project, f"below it there are {project}/data (dataset), {project}/run (run)"),
    ]:
        status, output = run(command, path)
        assert status == 1
        assert words in output
        assert output.count("\n") == 1
