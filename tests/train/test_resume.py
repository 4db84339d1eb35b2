"""Runs that were stopped, killed or made longer: they go on with the bits of a run that was never interrupted."""

import os
import shutil
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import psutil
import pytest
from digits_project import Project, first_ranks, what_decides, without_rates
from launched import RunProgram
from numpy.typing import NDArray
from patience import until

from hpcvol import environment
from hpcvol.comm import Group, launch_command
from hpcvol.data import Dataset, Split, order
from hpcvol.errors import ConfigError
from hpcvol.train.stopping import StopRequest
from hpcvol.train.trainer import Trainer

# Signals itself, so that the request comes at a known step: in the middle of the epoch.
HOOK = """
import os, signal
def {name}(step, metrics):
    if step == {step} and "val" not in metrics:
        os.kill(os.getpid(), signal.{signal})
"""

OPTIMIZERS = {
    "adamw-cosine": ("optimizer.name=adamw", "optimizer.schedule=cosine", "optimizer.warmup_steps=2"),
    "momentum-clip": ("optimizer.name=sgd", "optimizer.args={lr=0.1,momentum=0.9}", "optimizer.clip_norm=0.3"),
}


def stopping(project: Project, group: Group | None = None, step: int = 3, by: str = "SIGUSR1") -> str:
    """Return the override of a hook that stops the run after `step`."""
    name = f"stop_{by}_at_{step}"
    if group is None or group.rank == 0:
        project.write(f"{name}.py", HOOK.format(name=name, step=step, signal=by))
    if group is not None:
        group.barrier()
    return f"train.on_metrics={name}.py:{name}"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_stopped_at_two_ranks_and_resumed_at_three_and_at_one(
    group: Group, shared_project: Project, optimizer: str
) -> None:
    project = shared_project
    overrides = (*OPTIMIZERS[optimizer], "train.validate_every_steps=2", "train.steps=8")
    stop = stopping(project, group, by="SIGTERM" if optimizer.startswith("adamw") else "SIGUSR1")
    with first_ranks(group, 2) as two:
        if two is not None:
            assert not project.train("three", *overrides, stop, group=two)
    if group.rank == 0:
        assert not (project.folder / "three" / "summary.json").exists()
        assert project.steps("three") == [2, 3]
        shutil.copytree(project.folder / "three", project.folder / "one", symlinks=True)
    assert project.train("three", *overrides, group=group)
    with first_ranks(group, 1) as one:
        if one is not None:
            assert project.train("one", *overrides, group=one)
            assert project.train("never", *overrides, group=one)
    never = what_decides(project.summary("never"))
    for run in ("three", "one"):
        assert what_decides(project.summary(run)) == never
        assert without_rates(project.metrics(run)) == without_rates(project.metrics("never"))
    assert project.summary("three")["ranks"] == 3


def test_batch_norm_and_map_style_data_resume(project: Project) -> None:
    project.write(
        "other.py",
        "import torch\nfrom torch import nn\nfrom digits import build as plain\n"
        "def build():\n"
        "    model = plain(16, 0.1)\n"
        "    model.layers.insert(1, nn.BatchNorm1d(16))\n"
        "    return model\n"
        "def points(split):\n"
        "    x = torch.randn(90, 64, generator=torch.Generator().manual_seed(len(split)))\n"
        "    return [{'x': row, 'y': int(row.argmax()) % 10} for row in x]\n",
    )
    overrides = (
        "model.build=other.py:build",
        "model.args={}",
        "data.path=other.py:points",
        "train.batch_size=20",
        "train.unit_size=4",
        "train.steps=11",  # two epochs of 5 steps, the last of each ragged, and one step
    )
    assert not project.train("run", *overrides, stopping(project, step=7))
    assert project.train("run", *overrides)
    assert project.train("never", *overrides)
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))
    assert without_rates(project.metrics("run")) == without_rates(project.metrics("never"))


def test_asked_twice_it_stops_once(project: Project) -> None:
    project.write(
        "twice.py",
        "import os, signal\n"
        "def twice(step, metrics):\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n",
    )
    for steps in ([1], [1, 2], [2, 3]):  # two are kept
        assert not project.train("run", "train.on_metrics=twice.py:twice")
        assert project.steps("run") == steps
    assert project.train("run")
    assert project.train("never")
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))


def test_a_second_interrupt_ends_at_once(project: Project) -> None:
    before = signal.getsignal(signal.SIGINT)
    project.write(
        "twice.py",
        "import os, signal\n"
        "def twice(step, metrics):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n",
    )
    with pytest.raises(KeyboardInterrupt):
        project.train("run", "train.on_metrics=twice.py:twice")
    assert project.steps("run") == []
    assert signal.getsignal(signal.SIGINT) is before


def test_stopped_after_the_last_step_it_only_has_to_finish(project: Project) -> None:
    assert not project.train("run", stopping(project, step=6))
    assert not (project.folder / "run" / "summary.json").exists()
    assert project.train("run")
    assert project.train("never")
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))
    assert without_rates(project.metrics("run")) == without_rates(project.metrics("never"))


def test_a_complete_run_is_left_alone(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.train("run")
    files = {
        path: path.stat().st_mtime_ns for path in (project.folder / "run").rglob("*") if path.name != "config.toml"
    }
    capsys.readouterr()
    assert project.train("run")
    said = capsys.readouterr().out
    assert said == f"{project.folder / 'run'} is complete: see summary.json; --fresh starts over\n"
    same = {path: path.stat().st_mtime_ns for path in (project.folder / "run").rglob("*") if path.name != "config.toml"}
    assert same.keys() - {project.folder / "run"} == files.keys() - {project.folder / "run"}
    assert all(same[path] == files[path] for path in files if path != project.folder / "run")


def test_fresh_starts_over(project: Project) -> None:
    assert project.train("run", "train.seed=1", "train.steps=9")
    with pytest.raises(ConfigError, match=r"train\.seed: 1 -> 0"):
        project.train("run")
    assert project.train("run", fresh=True)
    assert project.train("never")
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))
    assert project.steps("run") == [6]
    assert without_rates(project.metrics("run")) == without_rates(project.metrics("never"))


def test_another_configuration_is_refused_and_changes_nothing(project: Project) -> None:
    assert not project.train("run", stopping(project))
    with pytest.raises(ConfigError) as caught:
        project.train("run", "optimizer.args.lr=0.5", "train.batch_size=32", "train.log_every_steps=7")
    assert caught.value.everywhere
    lines = str(caught.value).splitlines()
    assert "is a run of another configuration; what differs (there -> now):" in lines[0]
    assert [line.strip() for line in lines[1:-1]] == [
        "optimizer.args.lr: 0.01 -> 0.5",
        "train.batch_size: 64 -> 32",
        "train.unit_size: 8 -> 4",
    ]
    assert "--fresh" in lines[-1]
    assert project.train("run")
    assert project.train("never")
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))


def test_more_steps_go_on_under_a_constant_schedule(project: Project) -> None:
    assert project.train("run", "train.steps=4")
    assert project.train("run", "train.steps=6")
    assert project.train("never", "train.steps=6")
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))
    assert project.summary("run")["steps"] == 6


def test_fewer_steps_than_were_made_are_refused(project: Project) -> None:
    assert project.train("run", "train.steps=6")
    with pytest.raises(ConfigError, match=r"step-00000006 is past the 4 steps .* ask for 6 or more") as caught:
        project.train("run", "train.steps=4")
    assert caught.value.everywhere


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_more_steps_are_refused_where_the_schedule_depends_on_them(project: Project, schedule: str) -> None:
    overrides = (f"optimizer.schedule={schedule}",)
    assert project.train("run", "train.steps=3", *overrides)
    with pytest.raises(ConfigError, match=r"train\.steps: 3 -> 6"):
        project.train("run", "train.steps=6", *overrides)
    assert project.summary("run")["steps"] == 3


# A validation loss that first falls and then rises; it goes by the step, which the model counts in a buffer.
VALLEY = """
import torch
from digits import Digits
class Valley(Digits):
    def __init__(self):
        super().__init__(8, 0.1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    def forward(self, x, y):
        output = super().forward(x, y)
        if self.training:
            self.steps += 1
            return output
        return {"loss": ((self.steps - 4) ** 2).float()}
def build():
    return Valley()
"""


@pytest.mark.parametrize("stop", [3, 4, 5, 6, 7])
def test_early_stopping_counts_on_and_the_best_is_kept(project: Project, stop: int) -> None:
    project.write("valley.py", VALLEY)
    overrides = (
        "model.build=valley.py:build",
        "model.args={}",
        "train.steps=50",
        "train.validate_every_steps=1",
        "train.patience=3",
        "checkpoint.keep=1",
    )
    assert not project.train("run", *overrides, stopping(project, step=stop))
    assert project.steps("run") == sorted({min(stop, 4), stop})
    assert project.train("run", *overrides)
    summary = project.summary("run")
    assert (summary["steps"], summary["val_loss"]) == (7, 9.0)
    assert project.steps("run") == [4, 7]
    best = project.folder / "run" / "checkpoints" / "best"
    assert os.readlink(best) == "step-00000004"


def test_the_best_link_is_repaired_after_a_kill_before_it_was_made(project: Project) -> None:
    project.write("valley.py", VALLEY)
    overrides = ("model.build=valley.py:build", "model.args={}", "train.validate_every_steps=1", "checkpoint.keep=1")
    assert not project.train("run", *overrides, stopping(project, step=4))
    best = project.folder / "run" / "checkpoints" / "best"
    best.unlink()  # as if it had been killed between the checkpoint and the link
    assert project.train("run", *overrides)
    assert os.readlink(best) == "step-00000004"
    assert project.steps("run") == [4, 6]


@pytest.mark.limit_seconds(150)
def test_a_killed_job_goes_on_from_its_periodic_checkpoint(project: Project) -> None:
    """`kill -9` of the launcher and all ranks at once, as when a node loses power."""
    overrides = ["--set", "checkpoint.every_steps=5", "--set", "checkpoint.keep=2"]
    command = ["-m", "hpcvol.cli", "train", str(project.job), "--run-dir", str(project.folder / "run"), *overrides]
    launch = launch_command(2, [sys.executable, *command, "--set", "train.steps=1000000"])
    with subprocess.Popen(
        launch.argv,
        env={**environment.snapshot(), **launch.environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        job = psutil.Process(process.pid)
        assert process.stdout is not None
        reached = any(line.startswith("step 13/") for line in process.stdout)
        until(lambda: max(project.steps("run"), default=0) >= 10)  # written behind training
        ranks = [child for child in job.children(recursive=True) if "hpcvol.cli" in child.cmdline()]
        for one in (job, *job.children(recursive=True)):
            one.kill()
    assert reached
    assert len(ranks) == 2
    psutil.wait_procs(ranks, timeout=10)
    made = project.steps("run")
    assert len(made) in (2, 3)  # three where it was killed between writing one and deleting the oldest
    assert made[-1] == made[-2] + 5 >= 10
    more = made[-1] + 3
    settings = (f"train.steps={more}", "checkpoint.every_steps=5")
    assert project.train("run", *settings)
    assert project.train("never", *settings)
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))
    assert without_rates(project.metrics("run")) == without_rates(project.metrics("never"))


IN_STEP = """
import os, signal
from digits import Digits
class Stops(Digits):
    units = 0
    def forward(self, x, y):
        Stops.units += self.training
        if Stops.units == 3 + 3 * 8 + 5:  # the probe, three steps of eight units, and within the fourth
            os.kill(os.getpid(), signal.{signal})
        return super().forward(x, y)
def build(): return Stops(8, 0.1)
"""


@pytest.mark.parametrize("by", ["SIGUSR1", "SIGTERM"])
def test_a_signal_within_a_step_loses_nothing(project: Project, by: str) -> None:
    project.write("stops.py", IN_STEP.format(signal=by))
    project.write("plain.py", "from digits import build as plain\ndef build(): return plain(8, 0.1)\n")
    overrides = ("model.args={}", "checkpoint.every_steps=0")
    assert not project.train("run", "model.build=stops.py:build", *overrides)
    assert project.steps("run") == [4]
    assert project.metrics("run")[-1]["step"] == 4
    assert project.train("never", "model.build=plain.py:build", *overrides)
    config = project.folder / "run" / "config.toml"
    config.write_text(config.read_text().replace("stops.py", "plain.py"))
    assert project.train("run", "model.build=plain.py:build", *overrides)
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))


KILLED = """
import os, pathlib, signal, sys, time
from hpcvol import Trainer, load_config
job, run = map(pathlib.Path, sys.argv[1:])
def lost():
    # After step 7, once the checkpoint that was begun after step 6 is there.
    until = time.monotonic() + 20
    while not (run / "checkpoints" / "step-00000006").exists() and time.monotonic() < until:
        time.sleep(0.001)
    os.write(1, b"lost power")
    os.kill(os.getpid(), signal.SIGKILL)
import hpcvol.train.report as report
real = report.Report.metrics
def metrics(self, step, values):
    real(self, step, values)
    if step == 7:
        lost()
report.Report.metrics = metrics
Trainer(load_config(job, ["checkpoint.every_steps=3", "train.steps=9"]), run).fit()
"""


@pytest.mark.limit_seconds(150)
def test_without_a_signal_at_most_the_interval_is_lost(project: Project, run_program: RunProgram) -> None:
    done = run_program([sys.executable, "-c", KILLED, str(project.job), str(project.folder / "run")], seconds=100)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.endswith("lost power")
    assert project.metrics("run")[-1]["step"] == 7
    assert project.steps("run")[-1] == 6
    settings = ("checkpoint.every_steps=3", "train.steps=9")
    assert project.train("run", *settings)
    assert project.train("never", *settings)
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))
    assert without_rates(project.metrics("run")) == without_rates(project.metrics("never"))


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_going_on_at_another_rank_count_reads_only_what_its_steps_need(
    group: Group, shared_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = shared_project
    with first_ranks(group, 2) as two:
        if two is not None:
            assert project.train("run", "train.steps=3", group=two)
    read: list[int] = []
    take = Split.take

    def spy(split: Split, indices: NDArray[np.int64], **more: Any) -> Any:
        if len(split) == rows:
            read.extend(map(int, indices))
        return take(split, indices, **more)

    rows = len(Dataset.open(project.config().data.path).split("train"))
    monkeypatch.setattr(Split, "take", spy)
    # Units that move to another member, as speeds are measured, are read twice.
    assert project.train("run", "train.steps=6", "elastic.dealing=equal", group=group)
    needed = order(rows, seed=0, epoch=0, position=3 * 64, count=4 * 64)  # step 6 is read ahead
    everybody = group.gather_objects(read)
    assert {index for one in everybody for index in one} <= set(map(int, needed))
    assert all(everybody)
    # Each sample by one rank, but for the probe's two units, which each computes, one of them twice.
    assert sum(map(len, everybody)) <= needed.size + group.size * 3 * 8


def test_another_unit_size_is_refused(project: Project) -> None:
    assert project.train("run", "train.steps=2")
    with pytest.raises(ConfigError, match=r"train\.unit_size: 8 -> 16") as caught:
        project.train("run", "train.unit_size=16")
    assert caught.value.everywhere


def test_what_cannot_change_a_bit_may_change(project: Project) -> None:
    assert project.train("run", "train.steps=3")
    changed = (
        "comm.algorithm=ring",
        "checkpoint.every_steps=1",
        "checkpoint.keep=1",
        "checkpoint.copies=2",
        "checkpoint.mtbf_hours=3.0",
        "train.log_every_steps=2",
    )
    assert project.train("run", *changed)
    assert project.train("never")
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))


def test_a_stop_that_was_asked_for_before_training_began_comes_after_one_step(project: Project) -> None:
    """As under `hpcvol train`, which listens from its first moment: loading torch and the data takes seconds."""
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not Trainer(project.config(), project.folder / "run", stop=stop).fit()
    assert project.steps("run") == [1]
    assert project.train("run")
    assert project.train("never")
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))
