"""The Trainer on 1 to 4 ranks: the same bits, the whole summary, and where hooks and transforms are called."""

import json
from pathlib import Path

import pytest
from digits_project import Project, first_ranks, what_decides, without_rates

from hpcvol.comm import Group
from hpcvol.train.completion import SUMMARY_NAME

SUMMARY_TYPES = {
    "completed": bool,
    "steps": int,
    "epochs": float,
    "train_loss": float,
    "val_loss": float,
    "test_loss": float,
    "metrics": dict,
    "weights_sha256": str,
    "ranks": int,
    "samples": int,
    "seconds": float,
    "samples_per_second": float,
    "ledger": dict,
}


def run_alone(project: Project, group: Group, run: str, *overrides: str) -> None:
    """Train on the first rank only, for comparison."""
    with first_ranks(group, 1) as alone:
        if alone is not None:
            assert project.train(run, *overrides, group=alone)


def test_summary_and_metrics_are_those_of_one_rank(group: Group, shared_project: Project) -> None:
    overrides = ("train.validate_every_steps=4", "optimizer.schedule=cosine", "optimizer.clip_norm=0.5")
    assert shared_project.train("run", *overrides, group=group)
    run_alone(shared_project, group, "alone", *overrides)
    summary, alone = shared_project.summary("run"), shared_project.summary("alone")
    assert {key: type(value) for key, value in summary.items()} == SUMMARY_TYPES
    assert summary["completed"] is True
    assert (summary["steps"], summary["samples"], summary["ranks"]) == (6, 6 * 64, group.size)
    assert summary["epochs"] == 6 / 20
    assert len(summary["weights_sha256"]) == 64
    assert summary["metrics"].keys() == {"val", "test"}
    assert summary["metrics"]["test"].keys() == {"accuracy"}
    assert what_decides(summary) == what_decides(alone)
    lines = shared_project.metrics("run")
    assert [(line["step"], "val" in line) for line in lines] == [
        *((step, False) for step in (1, 2, 3, 4)),
        (4, True),
        (5, False),
        (6, False),
        (6, True),
    ]
    assert without_rates(lines) == without_rates(shared_project.metrics("alone"))
    assert lines[0]["learning_rate"] > lines[6]["learning_rate"] == pytest.approx(1e-3)
    assert lines[-1]["val"] == {"loss": summary["val_loss"], **summary["metrics"]["val"]}


def test_ragged_epochs_and_other_units(group: Group, shared_project: Project) -> None:
    overrides = ("train.epochs=2", "train.batch_size=300", "train.unit_size=70")
    assert shared_project.train("run", *overrides, group=group)
    run_alone(shared_project, group, "alone", *overrides)
    summary = shared_project.summary("run")
    samples = summary["samples"]
    assert (summary["steps"], summary["epochs"]) == (10, 2.0)
    assert samples % 2 == 0
    assert 4 * 300 < samples / 2 < 5 * 300  # every sample once an epoch
    assert what_decides(summary) == what_decides(shared_project.summary("alone"))


def test_bf16(group: Group, shared_project: Project) -> None:
    assert shared_project.train("run", "train.precision=bf16", group=group)
    run_alone(shared_project, group, "alone", "train.precision=bf16")
    run_alone(shared_project, group, "float32")
    summary = shared_project.summary("run")
    assert what_decides(summary) == what_decides(shared_project.summary("alone"))
    float32 = shared_project.summary("float32")
    assert summary["weights_sha256"] != float32["weights_sha256"]
    assert summary["train_loss"] == pytest.approx(float32["train_loss"], rel=0.02)


@pytest.mark.parametrize("algorithm", ["ring", "library"])
def test_float_sum_is_close_to_exact(group: Group, shared_project: Project, algorithm: str) -> None:
    overrides = ("model.args.dropout=0.0", f"comm.algorithm={algorithm}")
    assert shared_project.train("float", "train.sum=float", *overrides, group=group)
    run_alone(shared_project, group, "exact", *overrides)
    summary, exact = shared_project.summary("float"), shared_project.summary("exact")
    assert {key: type(value) for key, value in summary.items()} == SUMMARY_TYPES
    assert summary["train_loss"] == pytest.approx(exact["train_loss"], rel=1e-4)
    assert summary["test_loss"] == pytest.approx(exact["test_loss"], rel=1e-3)


def test_batch_norm_has_the_same_bits(group: Group, shared_project: Project) -> None:
    if group.rank == 0:
        shared_project.write(
            "norm.py",
            "from torch import nn\nfrom digits import build as plain\n"
            "def build():\n"
            "    model = plain(16, 0.1)\n"
            "    model.layers.insert(1, nn.BatchNorm1d(16))\n"
            "    return model\n",
        )
    group.barrier()
    overrides = ("model.build=norm.py:build", "model.args={}", "train.validate_every_steps=3")
    assert shared_project.train("run", *overrides, group=group)
    run_alone(shared_project, group, "alone", *overrides)
    assert what_decides(shared_project.summary("run")) == what_decides(shared_project.summary("alone"))


HOOK = """
import pathlib
def hook(step, metrics):
    with pathlib.Path(__file__).with_name("hooked").open("a") as file:
        file.write(f"{step} {'val' in metrics}\\n")
    metrics.clear()
"""


def test_the_hook_is_called_on_the_first_member_for_each_line(group: Group, shared_project: Project) -> None:
    if group.rank == 0:
        shared_project.write("hook.py", HOOK)
    group.barrier()
    overrides = ("train.on_metrics=hook.py:hook", "train.validate_every_steps=3", "train.log_every_steps=2")
    assert shared_project.train("run", *overrides, group=group)
    lines = (shared_project.folder / "hooked").read_text().splitlines()
    assert lines == ["2 False", "3 True", "4 False", "6 False", "6 True"]
    assert [len(line) > 1 for line in shared_project.metrics("run")] == [True] * 5


TRANSFORM = """
import torch
def noisy(batch, rng):
    return {"x": batch["x"] + torch.from_numpy(rng.normal(size=batch["x"].shape).astype("float32")), "y": batch["y"]}
def zeros(batch, rng):
    return {**batch, "x": torch.zeros_like(batch["x"])}
"""


def test_the_transform_is_random_by_unit_and_the_same_for_all(group: Group, shared_project: Project) -> None:
    if group.rank == 0:
        shared_project.write("augment.py", TRANSFORM)
    group.barrier()
    assert shared_project.train("run", "data.transform=augment.py:noisy", group=group)
    run_alone(shared_project, group, "alone", "data.transform=augment.py:noisy")
    run_alone(shared_project, group, "plain")
    run, plain = shared_project.summary("run"), shared_project.summary("plain")
    assert what_decides(run) == what_decides(shared_project.summary("alone"))
    assert run["weights_sha256"] != plain["weights_sha256"]


def test_the_transform_is_for_training_only(project: Project) -> None:
    project.write("augment.py", TRANSFORM)
    # Without inputs the training loss is log 10 and the first layer's weights have no gradient.
    assert project.train("run", "data.transform=augment.py:zeros", "optimizer.args.lr=1e-12")
    assert project.train("plain", "optimizer.args.lr=1e-12")
    blind, plain = project.summary("run"), project.summary("plain")
    assert blind["train_loss"] != pytest.approx(plain["train_loss"], abs=1e-4)
    for split in ("val_loss", "test_loss"):
        assert blind[split] == pytest.approx(plain[split], abs=1e-6)


MAP_STYLE = """
import torch
from torch.utils.data import Dataset
class Points(Dataset):
    def __init__(self, num, seed):
        self.x = torch.randn(num, 64, generator=torch.Generator().manual_seed(seed))
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        noise = torch.randn(64) * 0.01   # from the global generator: must be seeded by unit
        return {"x": self.x[i] + noise, "y": int(self.x[i].argmax()) % 10}
def points(split):
    sizes = {"train": 100, "val": 20, "test": 0}
    return Points(sizes[split], len(split)) if split != "test" else EMPTY
EMPTY = None
class Pairs(Points):
    def __getitem__(self, i):
        return tuple(super().__getitem__(i).values())
def pairs(split):
    return Pairs(100, 5) if split == "train" else None
def odd(split):
    return [1.0, 2.0, 3.0]
def nothing(split):
    return Points(0, 1)
def empty_held_out(split):
    return Points(100 if split == "train" else 0, 5)
def iterable(split):
    return iter([])
"""


@pytest.mark.parametrize("function", ["points", "pairs", "empty_held_out"])
def test_a_map_style_dataset_is_used_as_it_is(group: Group, shared_project: Project, function: str) -> None:
    if group.rank == 0:
        shared_project.write("points.py", MAP_STYLE)
    group.barrier()
    overrides = (f"data.path=points.py:{function}", "train.epochs=2", "train.batch_size=16")
    assert shared_project.train("run", *overrides, group=group)
    run_alone(shared_project, group, "alone", *overrides)
    summary = shared_project.summary("run")
    assert what_decides(summary) == what_decides(shared_project.summary("alone"))
    assert (summary["samples"], summary["test_loss"], summary["metrics"]["test"]) == (200, None, {})
    assert (summary["val_loss"] is None) == (function != "points")


def test_the_summary_is_written_last(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = project.trainer("run")
    seen: list[bool] = []
    evaluate = trainer.run.evaluate

    def spy(*args: object) -> object:
        seen.append((project.folder / "run" / SUMMARY_NAME).exists())
        return evaluate(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.run, "evaluate", spy)
    assert trainer.fit()
    assert seen == [False, False]  # validation, test
    summary = project.folder / "run" / SUMMARY_NAME
    newest = max(path.stat().st_mtime_ns for path in (project.folder / "run").rglob("*") if path.is_file())
    assert summary.stat().st_mtime_ns == newest


def test_strict_json_whatever_the_metrics_are(project: Project) -> None:
    """NaN is no JSON; tools other than Python's refuse the whole file."""
    project.write(
        "nan.py",
        "import torch\nfrom digits import Digits\n"
        "class Odd(Digits):\n"
        "    def forward(self, x, y):\n"
        "        return {**super().forward(x, y), 'odd': float('nan'), 'step': 99.0, 'epoch': 7.0}\n"
        "def build(): return Odd(8, 0.0)\n",
    )
    assert project.train("run", "model.build=nan.py:build", "model.args={}")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for name in ("summary.json", "metrics.jsonl"):
        for line in (
            Path(project.folder / "run" / name).read_text().replace("\n ", " ").replace("\n}", "}").splitlines()
        ):
            json.loads(line, parse_constant=refuse)
    assert [line["step"] for line in project.metrics("run")] == [1, 2, 3, 4, 5, 6, 6]
    assert project.metrics("run")[0]["epoch"] == 0
    assert project.summary("run")["metrics"]["test"]["odd"] is None
