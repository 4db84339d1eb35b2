"""Four members, one of them five times slower: how long each way of sharing the work takes to the same validation loss.

A unit sleeps, so that four members need no four cores: 3 ms (the GPT: 15), five times as long on the slow member; what
is computed beside that is less. Contenders: all-reduce with equal, static and dynamic shares; supernodes, two of two
members and four of one, which average every 8 steps; a parameter server on all members, synchronous, stale-synchronous
(at most 2 or 8 steps ahead), asynchronous, and that with rates divided by staleness, with compensation, of two
supernodes, with a push every 4 steps, or by elastic averaging each step or every 4. Each step is of the same batch;
where members do not wait for each other it is computed by one, elsewhere by all. Stale steps have a lower rate, at
which more of them reach the loss: a fifth for digits, a third for the GPT.

The time is to `loss`, that synchronous training has reached after five sixths of its steps, with the median of three
seeds; between two validations, which do not count as time, loss is taken to fall evenly. `of_speeds` is the part of the
throughput that the members' speeds allow, if all computed all the time: 1 is out of reach.

    mpiexec -n 4 python benchmarks/stragglers.py [--json FILE] [--quick] [--plot FILE.png]
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from report import Row, arguments, publish
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import hpcvol
from hpcvol.comm import Group
from hpcvol.comm import start as start_mpi

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

TIMES_SLOWER = 5
PERIOD = 8
UNITS, UNIT_SIZE = 16, 4
SEEDS = 3
TARGET = 4  # place of the validation whose loss is to be reached: the fifth of six
COMPENSATION = 0.04  # a constant, as in the paper's DC-ASGD-c
CONTENDERS: dict[str, dict[str, Any]] = {
    "all-reduce, equal": {"dealing": "equal"},
    "all-reduce, static": {"dealing": "static"},
    "all-reduce, dynamic (exact sum)": {"dealing": "dynamic", "sum": "exact"},
    "server, synchronous": {"servers": hpcvol.ParameterServer()},
    "server, at most 2 ahead": {"servers": hpcvol.ParameterServer(max_staleness=2)},
    "server, at most 8 ahead": {"servers": hpcvol.ParameterServer(max_staleness=8)},
    "server, asynchronous": {"servers": hpcvol.ParameterServer(max_staleness=math.inf)},
    "server, asynchronous, rate by staleness": {
        "servers": hpcvol.ParameterServer(max_staleness=math.inf, rate_by_staleness=True)
    },
    "server, asynchronous, compensated": {
        "servers": hpcvol.ParameterServer(max_staleness=math.inf, compensation=COMPENSATION)
    },
    "server, asynchronous, 2 supernodes": {
        "dealing": "static",
        "servers": hpcvol.ParameterServer(max_staleness=math.inf),
        "supernodes": hpcvol.Supernodes(2),
    },
    "server, asynchronous, pushes every 4": {
        "servers": hpcvol.ParameterServer(max_staleness=math.inf),
        "supernodes": hpcvol.Supernodes(4, 4),
    },
    "server, elastic averaging": {"servers": hpcvol.ParameterServer(max_staleness=math.inf, elastic_averaging=0.9 / 4)},
    "server, elastic averaging every 4": {
        "servers": hpcvol.ParameterServer(max_staleness=math.inf, elastic_averaging=0.9 / 4),
        "supernodes": hpcvol.Supernodes(4, 4),
    },
    "2 supernodes": {"dealing": "static", "supernodes": hpcvol.Supernodes(2, PERIOD)},
    "4 supernodes": {"dealing": "static", "supernodes": hpcvol.Supernodes(4, PERIOD)},
}
REFERENCE = "server, synchronous"

Loss = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class Task:
    """What is learnt.

    Attributes:
        name: of it.
        build: makes the model.
        train: samples.
        val: samples.
        loss: mean of a unit.
        optimizer: of the model's parameters.
        unit_seconds: that a unit sleeps.
        stale_rate: by which rates of stale steps are multiplied.
        steps: trained.
        every: steps between validations.
    """

    name: str
    build: Callable[[], nn.Module]
    train: Dataset[Any]
    val: Dataset[Any]
    loss: Loss
    optimizer: Callable[[Any], torch.optim.Optimizer]
    unit_seconds: float
    stale_rate: float
    steps: int
    every: int


@dataclass
class Course:
    """How a training went.

    Attributes:
        seconds: until each validation, those of validations left out.
        losses: of each validation.
        steps: done by then.
    """

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def seconds_to(self, target: float) -> float:
        """Return when the loss first was `target`, infinity where it never was."""
        before_seconds, before_loss = 0.0, math.inf
        for seconds, loss in zip(self.seconds, self.losses, strict=True):
            if loss <= target:
                if math.isinf(before_loss):
                    return seconds
                return before_seconds + (seconds - before_seconds) * (before_loss - target) / (before_loss - loss)
            before_seconds, before_loss = seconds, loss
        return math.inf


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Return what is usual for small networks."""
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Return what is usual for GPTs."""
    return torch.optim.AdamW(parameters, 3e-3)


def digits(quick: bool) -> Task:
    """Return the handwritten digits, read by a small network."""
    from digits import build, samples

    rows = list(samples())
    x = torch.from_numpy(np.stack([row["x"] for row in rows]))
    y = torch.tensor([int(row["y"]) for row in rows])
    split = 1500

    def loss(model: nn.Module, unit: Any) -> torch.Tensor:
        found: torch.Tensor = model(unit["x"], unit["y"])["loss"]
        return found

    train, val = TensorDataset(x[:split], y[:split]), TensorDataset(x[split:], y[split:])
    steps = 12 if quick else 300
    return Task("digits", lambda: build(64, 0.0), train, val, loss, sgd, 0.003, 1 / 5, steps, steps // 6)


def gpt(quick: bool) -> Task:
    """Return a small GPT on the sources of Python's standard library."""
    from gpt import build, standard_library

    context, rows = 48, 1700
    text = b"".join(file.read_bytes() for file in standard_library()[:60])[: rows * (context + 1)]
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).view(rows, context + 1)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    train, val = tokens[order[:1500]], tokens[order[1500:]]

    def loss(model: nn.Module, unit: Any) -> torch.Tensor:
        found: torch.Tensor = model(unit["x"])["loss"]
        return found

    steps = 12 if quick else 120
    pairs = [TensorDataset(part, torch.zeros(len(part))) for part in (train, val)]
    return Task("gpt", lambda: build(64, 2, 2, context, 1), *pairs, loss, adamw, 0.015, 1 / 3, steps, steps // 6)


class Members:
    """What is measured of all members.

    Args:
        group: of them.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.times_slower = TIMES_SLOWER if group.rank == group.size - 1 > 0 else 1

    def course(self, task: Task, seed: int, named: dict[str, Any]) -> tuple[Course, float]:
        """Train once. Collective.

        Returns:
            How it went, and which part of the members' time they would have needed at their own speeds.
        """
        torch.manual_seed(seed)
        model = task.build()
        optimizer = task.optimizer(model.parameters())
        servers = named.get("servers")
        if servers is not None and servers.is_asynchronous and not servers.elastic_averaging:
            for parameters in optimizer.param_groups:
                parameters["lr"] *= task.stale_rate
        batch = UNITS * UNIT_SIZE
        run = hpcvol.start(
            model, optimizer, task.train, batch, UNIT_SIZE, **{"sum": "float", "seed": seed, "threads": 1, **named}
        )
        course = Course()
        busy, units, spent = 0.0, 0.0, 0.0
        while run.step < task.steps:
            self.group.barrier()
            began = time.perf_counter()
            for step in run.steps(run.step + task.every):
                for unit in step:
                    begun = time.perf_counter()
                    time.sleep(task.unit_seconds * self.times_slower * unit.num_samples / UNIT_SIZE)
                    step.backward(task.loss(model, unit))
                    busy += time.perf_counter() - begun
                    units += unit.num_samples / UNIT_SIZE
            self.group.barrier()
            spent += time.perf_counter() - began
            course.seconds.append(spent)
            course.losses.append(run.evaluate(lambda unit: task.loss(model, unit), task.val).loss)
            course.steps.append(run.step)
        run.close()
        told = self.group.gather_objects((units, busy))
        # A member that computed nothing tells no speed.
        speed = sum(units / busy for units, busy in told if busy)
        return course, task.steps * UNITS / speed / spent


def measure(options: argparse.Namespace, members: Members) -> tuple[list[Row], dict[str, dict[str, Course]]]:
    """Train all contenders in turn, seed after seed. Collective."""
    rows = []
    first: dict[str, dict[str, Course]] = {}
    for task in [digits(options.quick)] if options.quick else [digits(False), gpt(False)]:
        found: dict[str, list[tuple[Course, float]]] = {name: [] for name in CONTENDERS}
        for seed in range(1 if options.quick else SEEDS):
            for name, named in CONTENDERS.items():
                found[name].append(members.course(task, seed, named))
        first[task.name] = {name: courses[0][0] for name, courses in found.items()}
        target = median(course.losses[TARGET] for course, _ in found[REFERENCE])
        wanted = median(course.seconds_to(target) for course, _ in found[REFERENCE])
        for name, courses in found.items():
            seconds = [course.seconds_to(target) for course, _ in courses]
            reached = median(seconds)
            extra = {
                "loss": target,
                "times_faster": wanted / reached if math.isfinite(reached) else None,
                "of_speeds": median(share for _, share in courses),
                "final_loss": median(course.losses[-1] for course, _ in courses),
            }
            kept = [one for one in seconds if math.isfinite(one)] if math.isfinite(reached) else [math.nan]
            rows.append(Row(f"hpcvol {name}", task.name, 0, members.group.size, kept, extra))
    return rows, first


def plot(courses: dict[str, dict[str, Course]], file: Path) -> None:
    """Draw validation loss over seconds, of the first seed."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(courses), figsize=(6 * len(courses), 4.5))
    for (task, of_task), axis in zip(courses.items(), np.atleast_1d(axes), strict=True):
        axis.set_prop_cycle(color=plt.colormaps["tab20"].colors)
        for name, course in of_task.items():
            axis.plot(course.seconds, course.losses, label=name, linewidth=1)
        axis.set(title=task, xlabel="seconds", ylabel="validation loss", yscale="log")
    np.atleast_1d(axes)[-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and publish from rank 0."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the courses there (needs matplotlib)")
    options = parser.parse_args(argv)
    group = start_mpi()
    rows, courses = measure(options, Members(group))
    if group.rank == 0:
        publish("stragglers", rows, options.json)
        if options.plot:
            plot(courses, options.plot)


if __name__ == "__main__":
    main()
