"""What it costs to have a tenth of the units computed by two members, and how many wrong units a member gets away with.

- Steps with `elastic.verify_share` of 0 and of 0.1 take turns, of the example digits and the example GPT; the slowest
  rank of a step counts. `of_plain` is how long the median step takes beside that without, `of_mean` the mean one:
  units are checked in some steps and not in others.
- A member whose gradients are all off by a millionth, from the second step on: units that it has computed when it is
  named. Members do not outlive each other here, so that the run ends where it would be expelled, and begins again.
- A member that is wrong in 1 % of its units would take too long. It is simulated: which units are wrong is drawn by a
  generator, which are checked by the product's own draw, of eight units a step on three members.

`over` is the share of trials with more units than `most`, which is to be at most 1 %.

    mpiexec -n 3 python benchmarks/trust.py [--json FILE] [--quick]
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import Row, arguments, publish
from torch.utils.data import Dataset, TensorDataset
from train_step import Tokens, optimizer_of

import hpcvol
from hpcvol.callables import load_callable
from hpcvol.comm import Group
from hpcvol.comm import start as start_mpi
from hpcvol.elastic.checks import draw, seed_of
from hpcvol.errors import MemberError
from hpcvol.torch.outputs import read_output
from hpcvol.train.config import Config

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SHARE = 0.1
WARM_UP = 3
WRONG_SHARE = 0.01
MOST_OF_ALWAYS, MOST_OF_SELDOM = 100, 4700
# Ranks, and of the simulation; units of a step of it.
MEMBERS, UNITS = (0, 1, 2), 8


def digits() -> tuple[Config, Dataset[Any]]:
    """Return the example, and numbers of the size of its images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1797, 64, generator=generator)
    return hpcvol.load_config(EXAMPLES / "digits.toml"), TensorDataset(images, images[:, :10].argmax(dim=1))


def gpt() -> tuple[Config, Dataset[Any]]:
    """Return the example, and random tokens."""
    config = hpcvol.load_config(EXAMPLES / "gpt.toml")
    return config, Tokens(config.model.args["context"] + 1)


def start(config: Config, samples: Dataset[Any], share: float) -> hpcvol.Run:
    """Return a run that has that share of its units verified."""
    torch.manual_seed(0)
    model = load_callable(config.model.build, config.folder)(**config.model.args)
    return hpcvol.start(
        model,
        optimizer_of(config, model),
        samples,
        config.train.batch_size,
        config.train.unit_size,
        clip_norm=config.optimizer.clip_norm,
        threads=1,
        verify_share=share,
    )


def compute(run: hpcvol.Run, step: hpcvol.Step) -> None:
    """Compute this rank's units of a step."""
    for unit in step:
        output = read_output(run.model(**unit))
        step.backward(output.loss, output.weight)


def cost(case: str, config: Config, samples: Dataset[Any], count: int, group: Group) -> list[Row]:
    """Return the rows of steps with and without checks."""
    runs = {share: start(config, samples, share) for share in (0.0, SHARE)}
    steps = {share: run.steps(1 << 30) for share, run in runs.items()}
    seconds: dict[float, list[float]] = {share: [] for share in runs}
    for turn, (share, run) in itertools.product(range(WARM_UP + count), runs.items()):
        group.barrier()
        began = time.perf_counter()
        compute(run, next(steps[share]))
        slowest = max(group.gather_objects(time.perf_counter() - began))
        if turn >= WARM_UP:
            seconds[share].append(slowest)
    plain = seconds[0.0]
    return [
        Row(
            "hpcvol",
            f"{case}, p = {share:g}",
            0,
            group.size,
            times,
            {
                "of_plain": statistics.median(times) / statistics.median(plain),
                "of_mean": statistics.mean(times) / statistics.mean(plain),
            },
        )
        for share, times in seconds.items()
    ]


def until_named(group: Group) -> int:
    """Return how many units the last rank computed, all wrong, until it was named. Collective."""
    liar, units = group.members[-1], 0
    with closing(start(*digits(), SHARE)) as run:
        if run.member == liar:
            parameter = next(run.model.parameters())
            parameter.register_hook(lambda gradient: gradient * (1 + 2**-20) if run.step else gradient)
        for step in run.steps(1 << 30):
            named = False
            try:
                compute(run, step)
            except MemberError as error:
                named = f"member {liar} " in str(error)
                if not named:
                    raise
            if step.index:
                units += sum(len(share.units) for share in step.shares if share.member == liar)
            if named:
                break
    return units


def until_drawn(random: np.random.Generator) -> int:
    """Return how many units a member computes that is wrong in `WRONG_SHARE` of them, until one of these is checked."""
    owners = {unit: MEMBERS[unit % len(MEMBERS)] for unit in range(UNITS)}
    mine = [unit for unit, owner in owners.items() if owner == MEMBERS[0]]
    for steps in itertools.count(1):
        wrong = [unit for unit in mine if random.random() < WRONG_SHARE]
        if wrong:
            drawn = draw(seed_of({member: random.bytes(16) for member in MEMBERS}), owners, MEMBERS, SHARE)
            if any(unit in drawn for unit in wrong):
                return steps * len(mine)
    raise AssertionError


def trials(case: str, trial: Callable[[], int], count: int, most: int) -> Row:
    """Return a row of so many trials, each of which returns a number of units."""
    seconds, units = [], []
    for _ in range(count):
        began = time.perf_counter()
        units.append(trial())
        seconds.append(time.perf_counter() - began)
    return Row("hpcvol", case, 0, len(MEMBERS), seconds, of_units(units, most))


def of_units(units: Sequence[int], most: int) -> dict[str, Any]:
    middle, high = np.percentile(units, [50, 99]).tolist()
    return {"units": middle, "units_p99": high, "most": most, "over": float(np.mean(np.asarray(units) > most))}


def main() -> None:
    """Measure, and publish from rank 0."""
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    group = start_mpi()
    if group.size != len(MEMBERS):
        raise SystemExit("trust: with two ranks nobody can say who is wrong: mpiexec -n 3 python benchmarks/trust.py")
    quick = options.quick
    rows = [
        *cost("digits", *digits(), 5 if quick else 200, group),
        *cost("gpt", *gpt(), 1 if quick else 30, group),
        trials("wrong in every unit", lambda: until_named(group), 2 if quick else 100, MOST_OF_ALWAYS),
    ]
    if group.rank == 0:
        random = np.random.default_rng(0)
        rows.append(trials("wrong in 1 %", lambda: until_drawn(random), 100 if quick else 20_000, MOST_OF_SELDOM))
        publish("trust", rows, options.json)


if __name__ == "__main__":
    main()
