"""How much of the communication between two hosts hides behind the last backward pass of a step.

Two virtual hosts of one rank each, joined at 200 Mbit/s with 1 ms (needs root, as the tests that use them). Float and
exact sum, 1 and 4 units a rank (the float sum computes a rank's units in one pass). Four things are timed:

- overlapped: a step as it is; buckets leave while the pass computes further ones.
- after_backward: a step whose buckets all leave when the pass is over. Made here, by keeping buckets back.
- backward: the last backward pass of each step of after_backward, while nothing travels.
- communication: all buckets of a step, while nobody computes.

At best a step saves the shorter of the last two, so `hidden` is, of medians,

    (after_backward - overlapped) / min(communication, backward).

Then, at 1 Gbit/s, steps of both sums in turn; `of_float` is how long a step takes beside one of the float sum.

The ranks share the machine's processors with the program that is the network. On two cores each frame is carried at the
cost of somebody's computing, which a network of its own would not do.

    python benchmarks/overlap.py [--json FILE] [--quick] [--part overlap|sums] [--bucket-nbytes N]
"""

import argparse
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import torch
from report import Row, arguments, publish
from torch import nn
from torch.utils.data import TensorDataset

from hpcvol.comm import Group
from hpcvol.comm import start as start_mpi
from hpcvol.strategies.reducer import BUCKET_NBYTES
from hpcvol.torch.readiness import Readiness
from hpcvol.torch.run import Run
from hpcvol.torch.samples import open_samples
from hpcvol.torch.settings import Settings

LAB = Path(__file__).resolve().parent.parent / "tests" / "lab"
SLOW, FAST, DELAY = 200e6, 1e9, 0.001  # bit/s, bit/s, s
LAYERS, QUICK_LAYERS, WIDTH, TOKENS, UNIT_SIZE = 16, 6, 512, 128, 8
LIMIT_SECONDS = 1500.0

Seconds = dict[str, list[float]]


class Layers(nn.Module):
    """Layers of 1 MiB each; the number of tokens decides how long each computes."""

    def __init__(self, number: int) -> None:
        super().__init__()
        layers = [part for _ in range(number) for part in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return some loss."""
        return self.layers(x).square().mean()  # type: ignore[no-any-return]


class Case:
    """A run with one sum and number of units a rank. Made collectively.

    Args:
        kind: "float" or "exact".
        units: how many a rank computes in a step.
        options: of the command line.
        group: all ranks.
    """

    def __init__(self, kind: str, units: int, options: argparse.Namespace, group: Group) -> None:
        torch.manual_seed(0)
        model = Layers(QUICK_LAYERS if options.quick else LAYERS)
        batch = units * UNIT_SIZE * group.size
        data = TensorDataset(torch.randn(2 * batch, TOKENS, WIDTH), torch.zeros(2 * batch))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        settings = Settings(batch, UNIT_SIZE, sum=kind, bucket_nbytes=options.bucket_nbytes)
        self.name = f"{kind}, {units} unit{'s'[: units > 1]}"
        self.numel = sum(parameter.numel() for parameter in model.parameters())
        self.backward_seconds = 0.0
        self._group = group
        self._run = Run(model, optimizer, open_samples(data), settings, group, torch.device("cpu"))
        self._steps = self._run.steps(1 << 30)

    def step(self) -> float:
        """Take one step; return its seconds, and keep those of its last backward pass."""
        self._group.barrier()
        began = time.perf_counter()
        step = next(self._steps)
        for unit in step:
            loss = self._run.model(unit["x"])
            computed = time.perf_counter()
            step.backward(loss)
            self.backward_seconds = time.perf_counter() - computed
        return time.perf_counter() - began

    def communicate(self) -> float:
        """Send all buckets of a step; return the seconds."""
        self._run.gradients.reset()
        self._group.barrier()
        began = time.perf_counter()
        self._run.gradients.drop()
        return time.perf_counter() - began

    def close(self) -> None:
        """End the run's threads."""
        self._run.close()


@contextmanager
def buckets_kept_back() -> Iterator[None]:
    """Let no bucket leave before the backward pass is over: no pass is taken for a step's last."""
    begin_pass = Readiness.begin_pass

    def begin_any_pass(readiness: Readiness, **_: bool) -> None:
        begin_pass(readiness, last=False)

    with patch.object(Readiness, "begin_pass", begin_any_pass):
        yield


def slowest(group: Group, seconds: list[float]) -> list[float]:
    """Return of each repetition what the slowest rank took."""
    return [max(times) for times in zip(*group.gather_objects(seconds), strict=True)]


def sent_nbytes(group: Group) -> int:
    """Return what this host has put on its network so far. Collective: all of it has arrived."""
    group.barrier()
    return int(psutil.net_io_counters(pernic=True)["eth0"].bytes_sent)


def measure(case: Case, rounds: int, count: int, group: Group) -> list[Row]:
    """Return the rows of one case: its contenders take turns."""
    seconds: Seconds = {name: [] for name in ("overlapped", "after_backward", "backward", "communication")}
    sent = dict.fromkeys(seconds, 0)
    for turn in range(rounds + 1):
        times: Seconds = {name: [] for name in seconds}
        for name in ("overlapped", "communication", "after_backward"):
            before = sent_nbytes(group)
            for _ in range(count):
                if name == "overlapped":
                    times[name].append(case.step())
                elif name == "communication":
                    times[name].append(case.communicate())
                else:
                    with buckets_kept_back():
                        times[name].append(case.step())
                    times["backward"].append(case.backward_seconds)
            sent[name] += (sent_nbytes(group) - before) * bool(turn)
        if turn:  # the first round warms up, and probes
            seconds = {name: seconds[name] + slowest(group, times[name]) for name in seconds}
    median = {name: float(np.median(of_name)) for name, of_name in seconds.items()}
    saved = median["after_backward"] - median["overlapped"]
    hidden = saved / min(median["communication"], median["backward"])
    return [
        Row(
            name,
            case.name,
            4 * case.numel,
            group.size,
            of_name,
            {
                "sent/parameter": sent[name] / len(of_name) / case.numel if sent[name] else None,
                "hidden": hidden if name == "overlapped" else None,
            },
        )
        for name, of_name in seconds.items()
    ]


def overlap(options: argparse.Namespace, group: Group) -> list[Row]:
    """Measure what is hidden on the slow network."""
    rows = []
    for kind in ("float", "exact"):
        for units in (1, 4):
            case = Case(kind, units, options, group)
            rows += measure(case, *((1, 2) if options.quick else (8, 3)), group)
            case.close()
    return rows


def sums(options: argparse.Namespace, group: Group) -> list[Row]:
    """Measure steps of both sums in turn on the fast network."""
    rows = []
    for units in (1, 4):
        cases = {kind: Case(kind, units, options, group) for kind in ("float", "exact")}
        seconds: Seconds = {kind: [] for kind in cases}
        for turn in range(3 if options.quick else 16):
            for kind, case in cases.items():
                times = slowest(group, [case.step() for _ in range(2)])
                if turn > 1:
                    seconds[kind] += times
        for kind, case in cases.items():
            of_float = float(np.median(seconds[kind]) / np.median(seconds["float"]))
            name, extra = f"1 Gbit/s, {case.name}", {"of_float": of_float}
            rows.append(Row("overlapped", name, 4 * case.numel, group.size, seconds[kind], extra))
            case.close()
    return rows


def on_hosts(part: str, rate: float, argv: Sequence[str]) -> list[Row]:
    """Return the rows of one part, measured by ranks on two virtual hosts."""
    sys.path.insert(0, str(LAB))
    from virtual_hosts import virtual_hosts

    with tempfile.TemporaryDirectory() as folder, virtual_hosts(2, rate=rate, delay=DELAY) as hosts:
        rows = Path(folder) / "rows"
        program = [sys.executable, __file__, *argv, "--part", part, "--rows", str(rows)]
        launch = hosts.launch_command({"h0": 1, "h1": 1}, program)
        done = hosts.run("h0", launch.argv, variables=launch.environment, seconds=LIMIT_SECONDS)
        if done.returncode:
            raise RuntimeError(f"the ranks failed\n{done.stdout}{done.stderr}")
        found: list[Row] = pickle.loads(rows.read_bytes())
        return found


def main() -> None:
    """Start hosts and publish what ranks on them measured; or be such a rank."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--bucket-nbytes", type=int, default=BUCKET_NBYTES, help="as comm.bucket_nbytes")
    parser.add_argument("--part", choices=PARTS, help="only this")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows is None:
        parts = PARTS if options.part is None else {options.part: PARTS[options.part]}
        rows = [row for part, (rate, _) in parts.items() for row in on_hosts(part, rate, sys.argv[1:])]
        publish("overlap", rows, options.json)
        return
    group = start_mpi()
    torch.set_num_threads(1)
    measured = PARTS[options.part][1](options, group)
    if group.rank == 0:
        options.rows.write_bytes(pickle.dumps(measured))


PARTS: dict[str, tuple[float, Callable[[argparse.Namespace, Group], list[Row]]]] = {
    "overlap": (SLOW, overlap),
    "sums": (FAST, sums),
}


if __name__ == "__main__":
    main()
