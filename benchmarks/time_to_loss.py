"""How long a GPT takes to a validation loss over slow links: torch's DDP and hooks beside hpcvol and its codecs.

Two virtual hosts of one rank each (as root): unlimited, 1 Gbit/s with 1 ms, 100 Mbit/s with 20 ms one way. The model
has many parameters for what it computes, so that its gradient takes at least 2 s at 100 Mbit/s.

What a contender learns does not depend on the link, and how long a step takes does not depend on the seed. So there are
two parts, and `seconds` is their product:

- curves: each contender trains with three seeds, as two ranks of this machine, on the same batches, and is validated
  every twenty steps; between two validations the loss is taken to fall evenly. `steps` is how many it takes to the
  target: the loss that plain DDP has come to near the end, the worst of its seeds. Who does not get there has no
  seconds. They take some minutes a contender.
- links: on each link all contenders take steps in turn, two at a time; the slower rank counts.

"auto" learns what the codec that it chose on that link does.

`floor` is what no synchronous training can beat there: computing (`no_sync`: the same steps without any exchange) and
one latency each. `sent` is bytes that a host sends a step, headers and all.

DDP has gradient_as_bucket_view and static_graph; bucket sizes, and ranks of its PowerSGD, are contenders of their own:
the best of them is what there is to beat.

`--keep FILE` keeps what was found of each link and contender; what is there already is not measured again.

    python benchmarks/time_to_loss.py [--json FILE] [--quick] [--only NAME,...] [--keep FILE]    Open MPI; no mpiexec
"""

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from report import Row, arguments, publish
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

import hpcvol
from hpcvol import environment
from hpcvol.callables import load_callable
from hpcvol.comm import Group, launch_command
from hpcvol.comm import start as start_mpi
from hpcvol.kernels.permutation import permute

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "lab"), str(ROOT / "examples")]

MODEL = {"width": 256, "num_layers": 8, "num_heads": 4, "context": 64, "num_past": 1}
BATCH, VALIDATION = 4, 64  # sequences
RATE, WARM_UP_STEPS = 1e-3, 20
STEPS, EVERY, SEEDS = 400, 20, 3
TARGET_STEPS = 340
TEXT_NBYTES = 4 << 20
LINKS = {"unlimited": (0.0, 0.0), "1 Gbit/s": (1e9, 0.001), "100 Mbit/s": (1e8, 0.02)}
ROUNDS, AT_ONCE = 6, 2
AUTO_SETTLES = 80  # steps
LIMIT_SECONDS = 7200.0
THREADS = {"OMP_NUM_THREADS": "1"}
PORT = "29411"

CODECS = ["none", "auto", "bf16", "powersgd:8+bf16", "powersgd:4+bf16", "int8", "int4", "powersgd:4", "powersgd:2"]
CODECS += ["sign", "topk:0.01+int8", "randomk:0.1", "fp16", "fp8", "ternary", "qsgd:16", "topk:0.01", "threshold:0.001"]
HOOKS = [
    f"{hook} {cap} MB" for hook in ("plain", "fp16", "powersgd:2", "powersgd:4", "powersgd:8") for cap in (25, 100)
]

Stepper = Callable[[], None]


class Sequences(Dataset[dict[str, torch.Tensor]]):
    """Sequences of bytes of the standard library's sources, in an order of their own: a map-style dataset."""

    def __init__(self) -> None:
        import gpt

        text = b"".join(path.read_bytes() for path in gpt.standard_library())[:TEXT_NBYTES]
        length = int(MODEL["context"]) + 1
        rows = np.frombuffer(text[: len(text) // length * length], np.uint8).reshape(-1, length)
        self.tokens = torch.from_numpy(np.random.default_rng(0).permutation(rows))

    def __len__(self) -> int:
        return len(self.tokens) - VALIDATION

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"tokens": self.tokens[VALIDATION + index]}


class Contender:
    """A model, and who trains it. Made collectively.

    Args:
        name: "ddp " and one of HOOKS, "hpcvol " and one of CODECS, or "no_sync".
        seed: of weights and batches.
        data: what it learns from.
        group: all ranks.
    """

    def __init__(self, name: str, seed: int, data: Sequences, group: Group) -> None:
        self.name = name
        self._data = data
        self._group = group
        torch.manual_seed(seed)
        self.model = load_callable(f"{ROOT}/examples/gpt.py:build", ROOT)(**MODEL)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        self._taken = 0
        who, _, how = name.partition(" ")
        self.step: Stepper
        if who == "hpcvol":
            self._run = hpcvol.start(
                self.model, self._optimizer, data, BATCH, 1, sum="float", codec=how, seed=seed, clip_norm=1.0, threads=1
            )
            self._steps = self._run.steps(1 << 30)
            self.step = self._hpcvol_step
        else:
            model = self.model if who == "no_sync" else _distributed(self.model, how)
            self.step = functools.partial(self._torch_step, model, seed, group)

    @torch.no_grad()
    def validate(self) -> float:
        """Return the loss on what is not trained on; each rank computes its share. Collective."""
        group = self._group
        mine = self._data.tokens[:VALIDATION].view(group.size, VALIDATION // group.size, -1)[group.rank]
        return float(np.mean(group.gather_objects(float(self.model(mine)["loss"]))))

    @property
    def chosen(self) -> str:
        """The codec that was chosen last, where that is left to hpcvol."""
        return self._run.strategy.automatic[0].chosen if self.name == "hpcvol auto" else ""

    def close(self) -> None:
        """End its threads."""
        if hasattr(self, "_run"):
            self._run.close()

    def _warm_up(self) -> None:
        self._taken += 1
        self._optimizer.param_groups[0]["lr"] = RATE * min(1.0, self._taken / WARM_UP_STEPS)

    def _hpcvol_step(self) -> None:
        self._warm_up()
        step = next(self._steps)
        for unit in step:
            step.backward(self.model(**unit)["loss"])

    def _torch_step(self, model: nn.Module, seed: int, group: Group) -> None:
        places = np.empty(BATCH, np.int64)
        permute(len(self._data), seed, 0, self._taken * BATCH, places)
        self._warm_up()
        share = BATCH // group.size
        mine = places[group.rank * share :][:share]
        self._optimizer.zero_grad()
        model(self._data.tokens[VALIDATION + mine])["loss"].backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()


def _distributed(model: nn.Module, how: str) -> nn.Module:
    hook, _, size = how.partition(" ")
    cap = int(size.removesuffix(" MB")) if size else 25
    replicated = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True, bucket_cap_mb=cap)
    if hook == "fp16":
        replicated.register_comm_hook(None, default_hooks.fp16_compress_hook)  # type: ignore[arg-type]
    elif hook.startswith("powersgd"):
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=int(hook[9:]), start_powerSGD_iter=2, min_compression_rate=2
        )
        replicated.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return replicated


def curves(name: str, options: argparse.Namespace, group: Group) -> list[list[float]]:
    """Return a contender's validation losses, for each seed. A rank's part."""
    data = Sequences()
    return [_curve(Contender(name, seed, data, group), options) for seed in range(options.seeds)]


def _curve(contender: Contender, options: argparse.Namespace) -> list[float]:
    losses = []
    for step in range(1, options.steps + 1):
        contender.step()
        if step % EVERY == 0:
            losses.append(contender.validate())
    contender.close()
    return losses


def links(names: list[str], options: argparse.Namespace, group: Group) -> dict[str, Any]:
    """Return by contender the seconds of steps, and the bytes that one sends. A rank's part."""
    data = Sequences()
    contenders = [Contender(name, 0, data, group) for name in names]
    found: dict[str, Any] = {name: {"seconds": [], "sent": 0, "learns_as": curve_of(name)} for name in names}
    for contender in contenders:
        for _ in range(AUTO_SETTLES if contender.name == "hpcvol auto" else 0):
            contender.step()
    for turn in range(options.rounds + 2):  # DDP's hooks settle in the first ones
        for contender in contenders:
            group.barrier()
            before, seconds = _sent_nbytes(), []
            for _ in range(AT_ONCE):
                began = time.perf_counter()
                contender.step()
                seconds.append(time.perf_counter() - began)
            group.barrier()
            if turn > 1:
                slower = [max(both) for both in zip(*group.gather_objects(seconds), strict=True)]
                found[contender.name]["seconds"] += slower
                found[contender.name]["sent"] += (_sent_nbytes() - before) / AT_ONCE / options.rounds
    for contender in contenders:
        if contender.chosen:
            found[contender.name]["learns_as"] = f"hpcvol {contender.chosen}"
        contender.close()
    return found


def _sent_nbytes() -> int:
    return int(psutil.net_io_counters(pernic=True)["eth0"].bytes_sent)


def on_hosts(link: str, argv: list[str]) -> Any:
    """Return what ranks on two hosts found on a link."""
    from virtual_hosts import virtual_hosts

    rate, delay = LINKS[link]
    with tempfile.TemporaryDirectory() as folder, virtual_hosts(2, rate=rate, delay=delay) as hosts:
        found = Path(folder) / "found"
        program = [sys.executable, __file__, *argv, "--part", "links", "--found", str(found)]
        launch = hosts.launch_command({"h0": 1, "h1": 1}, program)
        variables = {**launch.environment, "GLOO_SOCKET_IFNAME": "eth0", "MASTER_ADDR": "10.77.0.1", **THREADS}
        done = hosts.run("h0", launch.argv, variables=variables, seconds=LIMIT_SECONDS)
        if done.returncode:
            raise RuntimeError(f"the ranks failed\n{done.stdout}{done.stderr}")
        return json.loads(found.read_text())


def learned_by(name: str, argv: list[str]) -> Any:
    """Return the curves of a contender, found by two ranks of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found"
        program = [sys.executable, __file__, *argv, "--part", name, "--found", str(found)]
        launch = launch_command(2, program)
        variables = {**launch.environment, "MASTER_ADDR": "127.0.0.1", **THREADS}
        subprocess.run(launch.argv, env={**environment.snapshot(), **variables}, check=True)
        return json.loads(found.read_text())


class Kept:
    """What was found before, in a file, where there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def get(self, *names: Any, find: Callable[[], Any]) -> Any:
        """Return what is known by all that decides it, or find it."""
        name = " ".join(map(str, names))
        if name not in self._found:
            self._found[name] = find()
            if self._path is not None:
                aside = self._path.with_suffix(".aside")
                aside.write_text(json.dumps(self._found))
                aside.replace(self._path)
        return self._found[name]


def curve_of(name: str) -> str:
    """Return what decides what a contender learns: not the size of DDP's buckets."""
    return " ".join(name.split(" ")[:2])


def steps_to(losses: list[float], target: float) -> float | None:
    """Return how many steps it takes to a loss; None where it is not reached."""
    for place, loss in enumerate(losses):
        if loss <= target:
            before = losses[place - 1] if place else loss
            return EVERY * (place + 1 - ((target - loss) / (before - loss) if before > loss else 0.0))
    return None


def table(learned: Mapping[str, Any], timed: Mapping[str, Any], options: argparse.Namespace) -> list[Row]:
    """Put both parts together."""
    near_end = options.steps * TARGET_STEPS // STEPS // EVERY - 1
    target = max(losses[near_end] for losses in learned["ddp plain"])
    rows = []
    for link, found in timed.items():
        step = {name: float(np.median(one["seconds"])) for name, one in found.items()}
        needed = {name: [steps_to(losses, target) for losses in one] for name, one in learned.items()}
        medians = {
            name: float(np.median([math.inf if count is None else count for count in one]))
            for name, one in needed.items()
        }
        steps = {name: None if math.isinf(count) else count for name, count in medians.items()}
        plain = (steps["ddp plain"] or 0) * min(step[name] for name in step if curve_of(name) == "ddp plain")
        for name, one in found.items():
            if name == "no_sync":
                floor = [seconds + LINKS[link][1] for seconds in one["seconds"]]
                rows.append(Row("floor", link, 0, 2, floor, {"sent": 0}))
                continue
            count = steps[one["learns_as"]]
            total = None if count is None else count * step[name]
            extra = {
                "learns_as": one["learns_as"] if name == "hpcvol auto" else "",
                "sent": round(one["sent"]),
                "last_loss": float(np.median([losses[-1] for losses in learned[one["learns_as"]]])),
                "steps": count,
                "to_loss_seconds": total,
                "times_ddp": None if total is None else plain / total,
            }
            rows.append(Row(name, link, 0, 2, one["seconds"], extra))
    return rows


def main() -> None:
    """Start hosts and publish what ranks on them found; or be such a rank."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--only", help="these contenders besides plain DDP, after commas")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep what was found there")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps, options.seeds, options.rounds = (40, 1, 2) if options.quick else (STEPS, options.seeds, ROUNDS)
    names = [*(f"ddp {hook}" for hook in HOOKS), *(f"hpcvol {codec}" for codec in CODECS)]
    if options.only:
        chosen = options.only.split(",")
        names = [name for name in names if curve_of(name) in ("ddp plain", *chosen)]
    if options.part is None:
        argv = sys.argv[1:]
        learns = list(dict.fromkeys(curve_of(name) for name in names if name != "hpcvol auto"))
        kept = Kept(options.keep)
        timed, learned = {}, {}
        for link in LINKS:
            find = functools.partial(on_hosts, link, argv)
            timed[link] = kept.get(link, options.rounds, *names, find=find)
        for name in learns:
            find = functools.partial(learned_by, name, argv)
            learned[name] = kept.get(name, options.steps, EVERY, options.seeds, find=find)
        publish("time_to_loss", table(learned, timed, options), options.json)
        return
    group = start_mpi()
    torch.set_num_threads(1)
    os.environ["MASTER_PORT"] = PORT
    dist.init_process_group("gloo", rank=group.rank, world_size=group.size)
    found = (
        links([*names, "no_sync"], options, group) if options.part == "links" else curves(options.part, options, group)
    )
    if group.rank == 0:
        options.found.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
