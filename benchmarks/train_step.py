"""A training step of the example GPT: hpcvol's float and exact sums beside one rank alone and DDP over gloo.

Every contender trains the same model on batches of the same size, AdamW and clipping included, one thread a rank:

- one_rank: plain torch; one rank computes a whole local batch, the other ranks sleep.
- no_sync: the same on all ranks at once, which share memory and caches but exchange nothing: what the machine can do.
- hpcvol_float, hpcvol_exact: `hpcvol.start` and its loop; float computes a rank's share in one pass, exact by units.
- ddp_gloo: DistributedDataParallel over gloo, gradient_as_bucket_view and static_graph, the usual best settings; whole
  local batches, taken from memory.

Contenders take turns, a few steps each; the slowest rank of a step counts. In the case `wide` the same with a large
model that computes a tenth as much for each of its parameters, so that what is done with gradients counts ten times as
much. Then, with that model, how much memory each takes a parameter: the peak of the process above what it had before
the model was made, memory that ranks share counted once.

    mpiexec -n 2 python benchmarks/train_step.py [--json FILE] [--quick]
"""

import ctypes
import gc
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from report import Row, arguments, publish
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import hpcvol
from hpcvol.callables import load_callable
from hpcvol.comm import Group
from hpcvol.comm import start as start_mpi
from hpcvol.train.config import Config

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "gpt.toml"
NUM_SEQUENCES = 4096
WIDE_WIDTH, QUICK_WIDTH = 2048, 512
LESS_WORK = 10
CONTENDERS = ("one_rank", "no_sync", "hpcvol_float", "hpcvol_exact", "ddp_gloo")

Stepper = Callable[[], None]


class Tokens(TensorDataset):
    """Sequences of random bytes, as a map-style dataset of mappings: the time of a step does not depend on the text."""

    def __init__(self, length: int) -> None:
        tokens = np.random.default_rng(0).integers(0, 256, (NUM_SEQUENCES, length), np.uint8)
        super().__init__(torch.from_numpy(tokens))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"tokens": self.tensors[0][index]}


class Wide(nn.Module):
    """Many parameters, each used for the first so many positions of a sequence."""

    def __init__(self, width: int, positions: int) -> None:
        super().__init__()
        self.width = width
        self.positions = positions
        self.layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(8)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return some loss."""
        x = tokens[:, : self.positions].reshape(-1, 1).float() / 256
        return self.layers(x.expand(-1, self.width)).square().mean()  # type: ignore[no-any-return]


def optimizer_of(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **config.optimizer.args)


def plain_stepper(config: Config, model: nn.Module, trained: nn.Module, local_batch: int, rank: int) -> Stepper:
    """Return a plain torch training step over batches in memory."""
    optimizer = optimizer_of(config, trained)
    tokens = Tokens(config.model.args["context"] + 1).tensors[0]
    clip_norm = config.optimizer.clip_norm
    position = rank * local_batch

    def step() -> None:
        nonlocal position
        rows = torch.arange(position, position + local_batch) % NUM_SEQUENCES
        position += 2 * local_batch
        optimizer.zero_grad()
        output = model(tokens=tokens[rows])
        (output["loss"] if isinstance(output, dict) else output).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(trained.parameters(), clip_norm)
        optimizer.step()

    return step


def hpcvol_stepper(config: Config, model: nn.Module, kind: str) -> Stepper:
    """Return a step of hpcvol's own loop."""
    run = hpcvol.start(
        model,
        optimizer_of(config, model),
        data=Tokens(config.model.args["context"] + 1),
        batch_size=config.train.batch_size,
        unit_size=config.train.unit_size,
        sum=kind,
        clip_norm=config.optimizer.clip_norm,
        threads=1,
    )
    steps = run.steps(1 << 30)

    def one_step() -> None:
        step = next(steps)
        for unit in step:
            output = model(**unit)
            if isinstance(output, dict):
                step.backward(output["loss"], output["weight"])
            else:
                step.backward(output)

    return one_step


def stepper(contender: str, config: Config, build: Callable[[], nn.Module], group: Group) -> Stepper:
    torch.manual_seed(0)
    model = build()
    local_batch = config.train.batch_size // group.size
    if contender.startswith("hpcvol"):
        return hpcvol_stepper(config, model, contender.removeprefix("hpcvol_"))
    if contender == "ddp_gloo":
        replicated = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
        return plain_stepper(config, replicated, model, local_batch, group.rank)
    return plain_stepper(config, model, model, local_batch, group.rank)


def start_gloo(group: Group) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = group.broadcast_object(free.getsockname()[1])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=group.rank, world_size=group.size)


def timed(contender: str, step: Stepper, count: int, group: Group) -> list[float]:
    """Return the seconds of `count` steps, the slowest rank's of each; of rank 0 alone for one_rank."""
    torch.set_num_threads(1)
    group.barrier()
    seconds = []
    if contender != "one_rank" or group.rank == 0:
        for _ in range(count):
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
    if contender == "one_rank":
        dist.barrier()  # gloo's waits asleep, MPI's would spin beside the rank that computes
        return group.broadcast_object(seconds)  # type: ignore[no-any-return]
    return [max(times) for times in zip(*group.gather_objects(seconds), strict=True)]


def peak_nbytes() -> Iterator[int]:
    """Yield the resident size now, and after that the peak since; pages that n processes map count 1/n in each."""

    def field(file: str, name: str) -> int:
        lines = Path("/proc/self", file).read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def counted_elsewhere() -> int:
        return field("status", "RssShmem:") - field("smaps_rollup", "Pss_Shmem:")

    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    yield field("status", "VmRSS:") - counted_elsewhere()
    yield field("status", "VmHWM:") - counted_elsewhere()


def memory_a_parameter(contender: str, config: Config, width: int, group: Group) -> float:
    """Return the peak of the process above its size before, in bytes a parameter, over three steps."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that an earlier contender freed must not be used again unseen
    sizes = peak_nbytes()
    before = next(sizes)
    step = stepper(contender, config, lambda: Wide(width, 1), group)
    for _ in range(3):
        step()
    after = next(sizes)
    return max(group.gather_objects((after - before) / (8 * width**2)))


def main() -> None:
    """Measure, and publish from rank 0."""
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    group = start_mpi()
    start_gloo(group)
    torch.set_num_threads(1)
    config = hpcvol.load_config(EXAMPLE)
    build = load_callable(config.model.build, config.folder)
    less = config.model.args["context"] // LESS_WORK
    width = QUICK_WIDTH if options.quick else WIDE_WIDTH
    gpt = steps_of(config, lambda: build(**config.model.args), (1, 3) if options.quick else (20, 5), group)
    wide = steps_of(config, lambda: Wide(width, less), (1, 2) if options.quick else (8, 3), group)
    # After the timing: by now everybody's libraries are loaded, which is no cost a parameter.
    memory = {name: memory_a_parameter(name, config, width, group) for name in CONTENDERS}
    if group.rank == 0:
        found = [*rows("gpt", config, group.size, gpt, memory), *rows("wide", config, group.size, wide, {})]
        publish("train_step", found, options.json)
    dist.destroy_process_group()


def steps_of(
    config: Config, build: Callable[[], nn.Module], rounds_and_steps: tuple[int, int], group: Group
) -> dict[str, list[float]]:
    """Return the seconds of each contender's steps of one model; the first round warms up."""
    rounds, count = rounds_and_steps
    steppers = {name: stepper(name, config, build, group) for name in CONTENDERS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(rounds + 1):
        for name, step in steppers.items():
            times = timed(name, step, count, group)
            if turn:
                seconds[name] += times
    return seconds


def rows(
    case: str, config: Config, ranks: int, seconds: dict[str, list[Any]], memory: dict[str, float]
) -> Iterator[Row]:
    """Yield one row a contender, with rates, and ratios to twice one rank, to no exchange, to DDP and to float."""
    batch = config.train.batch_size
    rate = {name: batch / np.percentile(times, 25) for name, times in seconds.items()}
    rate["one_rank"] /= ranks
    for name, times in seconds.items():
        extra: dict[str, Any] = {
            "samples_per_second": rate[name],
            "of_ideal": rate[name] / (ranks * rate["one_rank"]),
            "of_no_sync": rate[name] / rate["no_sync"],
            "of_ddp": rate[name] / rate["ddp_gloo"],
            "of_float": rate[name] / rate["hpcvol_float"],
        }
        if memory:
            extra |= {"bytes/parameter": memory[name], "beside_ddp": memory[name] - memory["ddp_gloo"]}
        yield Row(name, case, 0, 1 if name == "one_rank" else ranks, times, extra)


if __name__ == "__main__":
    main()
