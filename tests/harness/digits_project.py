"""A user's project for tests of the Trainer: the example digits, a few steps long, with hooks and models of its own."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcvol.comm import Group
from hpcvol.train.config import Config, load_config
from hpcvol.train.trainer import Trainer

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 6

CONFIG = f"""\
[model]
build = "digits.py:build"
args = {{ width = 24, dropout = 0.2 }}
[data]
path = "DATA"
[optimizer]
args = {{ lr = 1e-2 }}
[train]
steps = {STEPS}
threads = 1
log_every_steps = 1
"""


@dataclass(frozen=True)
class Project:
    """A folder with `digits.py`, `job.toml` and what a test adds; the same on all ranks."""

    folder: Path

    @property
    def job(self) -> Path:
        return self.folder / "job.toml"

    def config(self, *overrides: str) -> Config:
        return load_config(self.job, overrides)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def trainer(self, run: str, *overrides: str, fresh: bool = False, group: Group | None = None) -> Trainer:
        return Trainer(self.config(*overrides), self.folder / run, fresh=fresh, group=group)

    def train(self, run: str, *overrides: str, fresh: bool = False, group: Group | None = None) -> bool:
        return self.trainer(run, *overrides, fresh=fresh, group=group).fit()

    def summary(self, run: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / run / "summary.json").read_text())
        return content

    def metrics(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text().splitlines()]

    def steps(self, run: str) -> list[int]:
        """Steps of the checkpoints that are there."""
        return sorted(int(path.name[5:]) for path in (self.folder / run / "checkpoints").glob("step-*"))

    def checkpoint(self, run: str, step: int) -> Path:
        return self.folder / run / "checkpoints" / f"step-{step:08d}"


def make_project(folder: Path, data: Path) -> Project:
    """Write the project's files into `folder`, trained on the dataset `data`."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(EXAMPLES / "digits.py", folder)
    (folder / "job.toml").write_text(CONFIG.replace("DATA", str(data)), encoding="utf-8")
    return Project(folder)


# What of a summary clocks and the number of members decide.
PASSING = ("ranks", "seconds", "samples_per_second", "ledger")


def what_decides(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what of a summary must have the same bits however a run was stopped, resumed and dealt."""
    return {key: value for key, value in summary.items() if key not in PASSING}


def without_rates(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return lines of metrics without the entries that clocks decide."""
    return [
        {key: value for key, value in line.items() if key not in ("samples_per_second", "members")} for line in metrics
    ]


@contextmanager
def first_ranks(group: Group, size: int) -> Iterator[Group | None]:
    """Give the first `size` ranks of `group` a group of their own, the others None, and wait for all at the end."""
    part = group.split(int(group.rank >= size))
    yield part if group.rank < size else None
    part.close()
    group.barrier()
