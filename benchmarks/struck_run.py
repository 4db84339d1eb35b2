"""A run of `hpcvol train` whose members are killed from outside, and what its ledger tells of it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from hpcvol import environment

# Each process notes when it was started and when it came to the model, by the clock that all processes share. Linux
# cuts the start down to whole ticks; a tick later it is not in the step before, and members wait longer than that.
MODEL = """
import json, os, time
from pathlib import Path
import torch
from torch import nn
from hpcvol.comm.processes import Process

SECONDS = float(os.environ.get("UNIT_SECONDS", "0"))

me, now = Process.current(), time.monotonic()
age = time.clock_gettime(time.CLOCK_BOOTTIME) - (me.started + 1) / os.sysconf("SC_CLK_TCK")
with Path(__file__).with_name("births.jsonl").open("a") as file:
    file.write(json.dumps({"process": me.pid, "at": now - age, "imported": now}) + "\\n")

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
"""
# As long as members may be missing before a run counts as hung; one needs some seconds to prepare.
HUNG_SECONDS = 120.0
_LOOK_SECONDS = 0.001
_END_SECONDS = 60.0


@dataclass(frozen=True)
class Seen:
    """A line of the ledger, and when it was seen."""

    line: dict[str, Any]
    at: float

    @property
    def members(self) -> dict[int, dict[str, Any]]:
        """What each member did for a version."""
        return {int(member): did for member, did in self.line["members"].items()}


@dataclass(frozen=True)
class Pause:
    """What lies between two versions.

    Attributes:
        before: the earlier one.
        after: the later one.
        events: of the ledger, between the two.
    """

    before: Seen
    after: Seen
    events: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.after.at - self.before.at

    @property
    def is_usual(self) -> bool:
        """Whether the same members made both versions, and nothing happened."""
        return not self.events and set(self.before.members) == set(self.after.members)


@dataclass(frozen=True)
class Moment:
    """Something that happened to the run, or that it said, and when."""

    at: float
    text: str


class StruckRun:
    """A run that goes on while the body of `with` strikes it.

    Args:
        folder: for its project and its run directory; empty.
        members: how many.
        unit_seconds: how long a unit sleeps, so that members do not contend for cores.
        steps: how long it is at most.
        settings: of its configuration, as for `--set`.
        prefix: words before its command.
        variables: of the environment, on top.

    Attributes:
        seen: the ledger so far.
        moments: events of the ledger, what hpcvol said, starts of processes, and what `note` was given, so far.
        output: what the run said so far.
        births: when each process was started that has come to the model, by its id.
    """

    def __init__(
        self,
        folder: Path,
        members: int,
        unit_seconds: float,
        *,
        steps: int = 10**6,
        settings: Sequence[str] = ("elastic.refill=true",),
        prefix: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(MODEL)
        (folder / "job.toml").write_text(JOB.format(steps=steps))
        self.run_dir = folder / "run"
        self.seen: list[Seen] = []
        self.moments: list[Moment] = []
        self.births: dict[int, float] = {}
        self.output = ""
        self._folder = folder
        self._ended = threading.Event()
        self._log = (folder / "output.txt").open("w")
        argv = [sys.executable, "-m", "hpcvol.cli", "train", str(folder / "job.toml"), "-n", str(members)]
        self._process = subprocess.Popen(
            [*prefix, *argv, "--run-dir", str(self.run_dir), *(word for one in settings for word in ("--set", one))],
            env={**environment.snapshot(), "UNIT_SECONDS": str(unit_seconds), **(variables or {})},
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
            with suppress(psutil.NoSuchProcess):
                ours = psutil.Process(self._process.pid).children(recursive=True)
                for process in [self._process, *ours]:
                    kill(process)
        self._process.wait()
        self._ended.set()
        self._reader.join()
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

    def wait_for(self, members: int) -> bool:
        """Return whether so many members compute together before `HUNG_SECONDS` have passed."""
        until = time.monotonic() + HUNG_SECONDS
        while self.running and time.monotonic() < until:
            if len(self.members()) == members:
                return True
            time.sleep(_LOOK_SECONDS)
        return False

    def stop(self) -> None:
        """Ask it to stop with a checkpoint, and wait until it has ended."""
        self._process.send_signal(signal.SIGUSR1)
        self._process.wait(_END_SECONDS)

    def note(self, text: str) -> None:
        """Add to the moments what was done to the run just now."""
        self.moments.append(Moment(time.monotonic(), text))

    @property
    def pauses(self) -> list[Pause]:
        """What lies between one version and the next, for all so far."""
        found, before, events = [], None, []
        for one in list(self.seen):
            if "event" in one.line:
                events.append(str(one.line["event"]))
                continue
            if before is not None:
                found.append(Pause(before, one, tuple(events)))
            before, events = one, []
        return found

    def started_in(self, pause: Pause) -> bool:
        """Whether a process was started in `pause` that has come to the model."""
        return any(pause.before.at <= at < pause.after.at for at in self.births.values())

    def _follow(self) -> None:
        """Note each line when it comes; a torn one of the ledger is taken back by who takes the ledger over."""
        ledger, births = _Tail(self.run_dir / "ledger.jsonl"), _Tail(self._folder / "births.jsonl")
        output = _Tail(self._folder / "output.txt")
        ended = False
        while not ended:
            ended = self._ended.is_set()
            for line in ledger.lines():
                with suppress(ValueError):
                    self._enter(json.loads(line))
            for line in births.lines():
                birth = json.loads(line)
                self.births[birth["process"]] = birth["at"]
                self.moments.append(Moment(birth["at"], f"process {birth['process']} is started"))
                self.moments.append(Moment(birth["imported"], f"process {birth['process']} has come to the model"))
            for line in output.lines():
                text = line.decode(errors="replace")
                self.output += f"{text}\n"
                if text.startswith("hpcvol: "):
                    self.note(text)
            time.sleep(_LOOK_SECONDS)

    def _enter(self, line: dict[str, Any]) -> None:
        self.seen.append(Seen(line, time.monotonic()))
        if "event" in line:
            self.note(f"ledger: {line['event']} {', '.join(line.get('who', []))}")


class _Tail:
    """A file that others write, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> list[bytes]:
        """Return the whole lines that have come since the last call."""
        with suppress(FileNotFoundError):
            if self._path.stat().st_size > self._offset:
                with self._path.open("rb") as file:
                    file.seek(self._offset)
                    *whole, _ = file.read().split(b"\n")
                self._offset += sum(len(line) + 1 for line in whole)
                return whole
        return []


def kill(process: "psutil.Process | subprocess.Popen[bytes]") -> None:
    """End a process as a crash or a lack of memory does."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
