"""A run of `hpcvol train` whose members are killed from outside, and what its ledger tells of it."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from hpcvol import environment

MODEL = """
import os, time
import torch
from torch import nn

SECONDS = float(os.environ.get("UNIT_SECONDS", "0"))

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 960
    def __getitem__(self, i):
        x = torch.randn(16, generator=torch.Generator().manual_seed(i))
        return {"x": x, "y": (x.sum() > 0).long()}

def data(split):
    return Rows() if split == "train" else None

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 2))
    def forward(self, x, y):
        if self.training:
            time.sleep(SECONDS)
        return nn.functional.cross_entropy(self.layers(x), y)
"""
JOB = """
[model]
build = "model.py:Model"

[data]
path = "model.py:data"

[train]
steps = {steps}
batch_size = 64
unit_size = 4
log_every_steps = 100

[elastic]
refill = true
"""
_LOOK_SECONDS = 0.001
_END_SECONDS = 60.0


@dataclass(frozen=True)
class Seen:
    """A line of the ledger, and when it was seen."""

    line: dict[str, Any]
    at: float


class StruckRun:
    """A run that goes on while the body of `with` strikes it.

    Args:
        folder: for its project and its run directory; empty.
        members: how many.
        unit_seconds: how long a unit sleeps, so that members do not contend for cores.
        steps: how long it is at most.
        seed: of the initial weights and the order of samples.

    Attributes:
        seen: the ledger so far.
        output: what the run said; once it has ended.
        status: its exit status; once it has ended.
    """

    def __init__(self, folder: Path, members: int, unit_seconds: float, steps: int = 10**6) -> None:
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(MODEL)
        (folder / "job.toml").write_text(JOB.format(steps=steps))
        self.run_dir = folder / "run"
        self.seen: list[Seen] = []
        self.output = ""
        self.status = 0
        self._members = members
        self._ended = threading.Event()
        self._log = (folder / "output.txt").open("w+")
        argv = [sys.executable, "-m", "hpcvol.cli", "train", str(folder / "job.toml"), "-n", str(members)]
        self._process = subprocess.Popen(
            [*argv, "--run-dir", str(self.run_dir)],
            env={**environment.snapshot(), "UNIT_SECONDS": str(unit_seconds)},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is not None:
            ours = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            for process in ours:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._ended.set()
        self._reader.join()
        self._log.seek(0)
        self.output, self.status = self._log.read(), self._process.returncode
        self._log.close()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def versions(self) -> list[Seen]:
        """The versions in the ledger so far."""
        return [one for one in list(self.seen) if "version" in one.line and "event" not in one.line]

    def members(self) -> list[int]:
        """Return the ids of those that computed the last version."""
        for one in reversed(self.seen):
            if "version" in one.line and "event" not in one.line:
                return [int(member) for member in one.line["members"]]
        return []

    def processes(self) -> list[psutil.Process]:
        """Return the processes that train, or prepare to."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if str(self.run_dir) in process.cmdline() and process.parent().name().startswith("prte"):
                        found.append(process)
        return found

    def wait_for(self, members: int, seconds: float) -> bool:
        """Return whether so many members compute together before `seconds` have passed."""
        until = time.monotonic() + seconds
        while self.running and time.monotonic() < until:
            if len(self.members()) == members:
                return True
            time.sleep(_LOOK_SECONDS)
        return False

    def stop(self) -> None:
        """Ask it to stop with a checkpoint, and wait until it has ended."""
        self._process.send_signal(signal.SIGUSR1)
        self._process.wait(_END_SECONDS)

    def pauses(self, event: str) -> list[float]:
        """Return how long it took from the version before each `event` to the one after, in seconds."""
        found, last, open_ = [], None, False
        for one in self.seen:
            if "event" in one.line:
                open_ |= one.line["event"] == event
                continue
            if open_ and last is not None:
                found.append(one.at - last)
            last, open_ = one.at, False
        return found

    def gaps(self) -> list[float]:
        """Return how long each version took, in seconds."""
        times = [one.at for one in self.versions]
        return [after - before for before, after in itertools.pairwise(times)]

    def _follow(self) -> None:
        """Note each line of the ledger when it comes; a torn one is taken back by who takes the ledger over."""
        for line in self._lines():
            with suppress(ValueError):
                self.seen.append(Seen(json.loads(line), time.monotonic()))

    def _lines(self) -> Iterator[bytes]:
        path, offset = self.run_dir / "ledger.jsonl", 0
        while True:
            ended = self._ended.is_set()
            with suppress(FileNotFoundError):
                if path.stat().st_size > offset:
                    with path.open("rb") as file:
                        file.seek(offset)
                        data = file.read()
                    *whole, _ = data.split(b"\n")
                    offset += sum(len(line) + 1 for line in whole)
                    yield from whole
            if ended:
                return
            time.sleep(_LOOK_SECONDS)


def kill(process: psutil.Process) -> None:
    """End a process as a crash or a lack of memory does."""
    with suppress(psutil.NoSuchProcess):
        os.kill(process.pid, signal.SIGKILL)
