"""Checkpoints written behind training: what they hold, who waits for whom, and what happens when writing fails."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_project import Project, what_decides
from patience import LIMIT_SECONDS, until

from hpcvol.errors import CheckpointError
from hpcvol.train import cadence, checkpoint
from hpcvol.train.background import Background
from hpcvol.train.snapshot import Snapshot
from hpcvol.train.stopping import StopRequest
from hpcvol.train.trainer import Trainer


def last_step(project: Project, run: str) -> int:
    path = project.folder / run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


@contextmanager
def writing_waits(monkeypatch: pytest.MonkeyPatch, condition: Callable[[int], bool]) -> Iterator[list[bool]]:
    """Let each write of a checkpoint begin when `condition(number of the write)` holds; yield whether it came to."""
    real, came = checkpoint._write_parts, []

    def write(folder: Path, content: Snapshot, state: Any) -> None:
        came.append(until(lambda: condition(len(came))))
        real(folder, content, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_parts", write)
        yield came


def test_training_goes_on_and_the_checkpoint_is_of_its_own_step(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write waits until two more steps were made."""
    settings = ("checkpoint.every_steps=3", "checkpoint.keep=9")
    with writing_waits(monkeypatch, lambda number: number > 0 or last_step(project, "run") >= 5) as came:
        assert project.train("run", *settings)
    assert came == [True, True]
    assert project.train("never", *settings)
    for step in (3, 6):
        for name in ("model.safetensors", "optimizer.pt"):
            one, other = (project.checkpoint(run, step) / name for run in ("run", "never"))
            assert one.read_bytes() == other.read_bytes()
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))


def test_the_next_one_waits_so_that_at_most_two_intervals_can_be_lost(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def reached_and_stays(number: int) -> bool:
        if number > 0:
            return True
        if last_step(project, "run") < 4:
            return False
        time.sleep(0.1)  # time enough for a step, if it did not wait
        seen.append(last_step(project, "run"))
        return True

    with writing_waits(monkeypatch, reached_and_stays) as came:
        assert project.train("run", "checkpoint.every_steps=2", "checkpoint.keep=9")
    assert seen == [4]
    assert came == [True] * 3
    assert project.steps("run") == [2, 4, 6]


def test_auto_does_not_wait(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint is due after each step, as none was measured yet; the first is written until step 5."""
    monkeypatch.setattr(cadence, "FIRST_SECONDS", 0.0)
    with writing_waits(monkeypatch, lambda number: number > 0 or last_step(project, "run") >= 5) as came:
        assert project.train("run", "checkpoint.keep=9", "train.steps=30")
    assert all(came)
    made = project.steps("run")
    assert made[0] == 1
    assert made[1] > 5
    said = capsys.readouterr().out
    assert said.count("a checkpoint every ") >= 1
    assert "one interruption in 24 h expected" in said


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Make write `number` (from 0) fail; return a list that counts writes."""
    real, writes = checkpoint._write_parts, []

    def write(folder: Path, content: Snapshot, state: Any) -> None:
        writes.append(len(writes))
        if writes[-1] == number:
            raise OSError(28, os.strerror(28))
        real(folder, content, state)

    monkeypatch.setattr(checkpoint, "_write_parts", write)
    return writes


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_error_is_told_in_the_next_steps_or_at_the_end(
    project: Project, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        writes = fail_at(patch, number)
        with pytest.raises(CheckpointError, match=r"could not be written: .*No space left") as caught:
            project.train("run", "checkpoint.every_steps=2", "checkpoint.keep=9")
    assert caught.value.everywhere
    assert len(writes) == number + 1
    assert last_step(project, "run") <= min(6, 2 * (number + 1) + 2)
    assert project.steps("run") == [2, 4, 6][:number]
    assert not (project.folder / "run" / "summary.json").exists()
    assert project.train("run")
    assert project.train("never")
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))


def test_an_error_of_writing_is_told_beside_one_of_training(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The model raises while the checkpoint is being written, which then fails: neither is lost."""
    project.write(
        "fails.py",
        "from digits import Digits\n"
        "class Fails(Digits):\n"
        "    calls = 0\n"
        "    def forward(self, x, y):\n"
        "        Fails.calls += self.training\n"
        "        assert Fails.calls < 30, 'the model fails'\n"
        "        return super().forward(x, y)\n"
        "def build(): return Fails(8, 0.0)\n",
    )
    failing = threading.Event()

    def write(*_: object) -> None:
        assert failing.wait(LIMIT_SECONDS)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoint, "_write_parts", write)
    close = Background.wait

    def wait(self: Background, seconds: float | None = None) -> None:
        failing.set()
        close(self, seconds)

    monkeypatch.setattr(Background, "wait", wait)
    overrides = ("model.build=fails.py:build", "model.args={}", "checkpoint.every_steps=3", "train.log_every_steps=9")
    trainer = project.trainer("run", *overrides)
    failing.clear()
    with pytest.raises(Exception, match="the model fails"):
        trainer.fit()
    assert "could not be written: [Errno 28]" in caplog.text


def test_no_memory_for_the_copy_is_one_error(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Snapshot, "take", take)
    with pytest.raises(CheckpointError, match=r"no memory for the copy .* step 2 .*can't allocate") as caught:
        project.train("run", "checkpoint.every_steps=2")
    assert caught.value.everywhere


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_stop_while_one_is_being_written_waits_for_both(
    project: Project, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    asked = []

    def ask(count: int) -> bool:
        if count == 0 and not asked and last_step(project, "run") >= 3:
            asked.append(last_step(project, "run"))
            os.kill(os.getpid(), number)
        return count > 0 or bool(asked)

    with writing_waits(monkeypatch, ask) as came:
        assert not project.train("run", "checkpoint.every_steps=2", "train.steps=1000000")
    assert came[0]
    first, *_, last = project.steps("run")
    assert first >= 2
    assert last <= asked[0] + 3  # where it stopped: the step at hand, and no other was begun
    assert checkpoint.Checkpoints(project.folder / "run" / "checkpoints", 2).newest() == project.checkpoint("run", last)


def test_a_second_interrupt_while_one_is_being_written_leaves_those_before(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    asked: list[bool] = []

    def ask(count: int) -> bool:
        if count == 1 and len(asked) < 2 and stop.requested == bool(asked):  # two at once would be one
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return count == 0 or released.is_set()

    monkeypatch.setattr("hpcvol.train.trainer._AT_ONCE_SECONDS", 0.0)
    config = project.config("checkpoint.every_steps=2", "train.steps=1000000")
    with writing_waits(monkeypatch, ask), StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        Trainer(config, project.folder / "run", stop=stop).fit()
    assert asked == [True, True]
    assert project.steps("run") == [2]
    assert checkpoint.Checkpoints(project.folder / "run" / "checkpoints", 2).newest() == project.checkpoint("run", 2)
    released.set()
    assert until(lambda: not any(thread.name == "hpcvol-checkpoint" for thread in threading.enumerate()))


def test_a_snapshot_is_a_copy_and_its_memory_is_used_again() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    snapshot = Snapshot()
    snapshot.take(model, optimizer, {})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {tensor.data_ptr() for tensor in snapshot.model.values()}
    optimizer.step()
    assert all(torch.equal(snapshot.model[name], before[name]) for name in before)
    assert snapshot.optimizer["state"][0]["step"] == 1
    assert snapshot.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]
    snapshot.take(model, optimizer, {})
    assert {tensor.data_ptr() for tensor in snapshot.model.values()} == places
    assert all(torch.equal(snapshot.model[name], tensor) for name, tensor in model.state_dict().items())
    assert snapshot.optimizer["state"][0]["step"] == 2
