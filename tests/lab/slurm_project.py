"""A run whose steps take as long as a test wants, so that a fault can strike in the middle of it."""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throwaway_slurm import Slurm

from hpcvol.train.config import load_config
from hpcvol.train.trainer import Trainer

SCRIPT = Path(__file__).parents[2] / "jobscripts" / "train.sbatch"
STEPS = 24

MODEL = """
import time
from pathlib import Path
import torch
from torch import nn

def points(split):
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(len(split)))
    return [{"x": row, "y": row.sum(0, keepdim=True).sin()} for row in x]

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    def forward(self, x, y):
        if self.training:
            time.sleep(float(Path(__file__).with_name("pace").read_text()))
        return nn.functional.mse_loss(self.layers(x), y)

def build(broken=False):
    if broken:
        raise ValueError("this model cannot be built")
    return Slow()
"""

CONFIG = f"""
[model]
build = "model.py:build"
[data]
path = "model.py:points"
[train]
steps = {STEPS}
batch_size = 8
unit_size = 4
threads = 1
log_every_steps = 1
[checkpoint]
every_steps = 4
"""


@dataclass(frozen=True)
class SlurmProject:
    """A folder with `job.toml`, `model.py` and `train.sbatch`.

    Attributes:
        folder: where.
        node: the node of Slurm that its jobs run on, None where any will do.
        undisturbed: gives the weights of a run that was left alone, by seed.
    """

    folder: Path
    given_slurm: Slurm | None
    given_node: str | None
    undisturbed: Callable[[int], str]

    @property
    def slurm(self) -> Slurm:
        assert self.given_slurm is not None
        return self.given_slurm

    @property
    def node(self) -> str:
        assert self.given_node is not None
        return self.given_node

    def submit(self, *options: str, arguments: tuple[str, ...] = ()) -> str:
        """Submit `train.sbatch job.toml` with sbatch's `options` and hpcvol's `arguments`; return the job's id."""
        place = ["-w", self.given_node] if self.given_node else []
        return self.slurm.submit([*place, *options, "train.sbatch", "job.toml", *arguments], self.folder)

    def train(self, name: str, *overrides: str) -> None:
        """Train in this process."""
        assert Trainer(load_config(self.folder / "job.toml", overrides), self.run_dir(name)).fit()

    def run_dir(self, name: str = "job") -> Path:
        return self.folder / "runs" / name

    def pace(self, seconds: float) -> None:
        """From now on let a unit, of which a step has two, take that long."""
        new = self.folder / "pace.new"
        new.write_text(str(seconds))
        new.rename(self.folder / "pace")

    def step(self, name: str = "job") -> int:
        """Return the last step that the run has logged, 0 before the first."""
        with suppress(OSError, ValueError, IndexError):
            lines = (self.run_dir(name) / "metrics.jsonl").read_text().splitlines()
            return max(int(json.loads(line)["step"]) for line in lines)
        return 0

    def summary(self, name: str = "job") -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run_dir(name) / "summary.json").read_text())
        return content

    def output(self, job: str) -> str:
        """Return what a job has written."""
        return self.slurm.output(job)

    def until_output(self, job: str, text: str) -> None:
        self.slurm.until(job, lambda: text in self.output(job))

    def until_step(self, job: str, step: int, name: str = "job") -> None:
        self.slurm.until(job, lambda: self.step(name) >= step)

    def until_complete(self, job: str, name: str = "job") -> dict[str, Any]:
        """Wait for the end of a run; return its summary."""
        self.slurm.until(job, (self.run_dir(name) / "summary.json").exists)
        return self.summary(name)

    def until_state(self, job: str, *states: str) -> None:
        self.slurm.until(job, lambda: self.slurm.show(job)["JobState"] in states)


def make_project(
    folder: Path,
    slurm: Slurm | None = None,
    node: str | None = None,
    undisturbed: Callable[[int], str] = str,
) -> SlurmProject:
    """Write a project into `folder`, with a site.sh that finds this environment's hpcvol."""
    folder.mkdir(exist_ok=True)
    shutil.copy(SCRIPT, folder)
    (folder / "model.py").write_text(MODEL)
    (folder / "job.toml").write_text(CONFIG)
    (folder / "site.sh").write_text(f'hpcvol=("{sys.executable}" -m hpcvol.cli)\n')
    project = SlurmProject(folder, slurm, node, undisturbed)
    project.pace(0)
    return project
