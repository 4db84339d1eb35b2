"""Units dealt to unequal members: one of four is ten times slower. Equal, static and dynamic dealing beside each other.

A unit sleeps, so that four members need no four cores, and there are 64 a step (16 with --quick). `of_speeds` is how
long a step would take if all members were busy from its beginning to its end, at the speeds that they have measured,
beside how long it took: 1 is out of reach for units that cannot be cut.

    mpiexec -n 4 python benchmarks/dealing.py [--json FILE] [--quick]
"""

import time
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import torch
from report import Row, arguments, publish
from torch.utils.data import TensorDataset

import hpcvol
from hpcvol.comm import Group
from hpcvol.comm import start as start_mpi
from hpcvol.elastic.dealing import Kind

UNITS, QUICK_UNITS = 64, 16
UNIT_SECONDS = 0.03
TIMES_SLOWER = 10
CONTENDERS = [kind for kind in get_args(Kind) if kind != "auto"]
WARM_UP = 3  # steps, after which speeds are known

Step = Callable[[], float]


def stepper(kind: Kind, units: int, group: Group) -> tuple[hpcvol.Run, Step]:
    """Return a run, and a function that computes a step and returns the seconds that it took here."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    samples = TensorDataset(torch.randn(units, 8), torch.randn(units, 1))
    run = hpcvol.start(model, torch.optim.SGD(model.parameters(), 0.01), samples, units, 1, dealing=kind)
    steps = run.steps(1 << 30)
    seconds = UNIT_SECONDS * (TIMES_SLOWER if group.rank == group.size - 1 > 0 else 1)

    def step() -> float:
        group.barrier()
        begin = time.perf_counter()
        one = next(steps)
        for unit in one:
            time.sleep(seconds)
            one.backward(torch.nn.functional.mse_loss(model(unit["x"]), unit["y"]))
        return time.perf_counter() - begin

    return run, step


def main() -> None:
    """Measure, and publish from rank 0."""
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    group = start_mpi()
    units = QUICK_UNITS if options.quick else UNITS
    made = {kind: stepper(kind, units, group) for kind in CONTENDERS}
    found: dict[str, list[float]] = {kind: [] for kind in CONTENDERS}
    ratios: dict[str, list[float]] = {kind: [] for kind in CONTENDERS}
    for turn in range(WARM_UP + (2 if options.quick else 10)):
        for kind, (run, step) in made.items():
            seconds = max(group.gather_objects(step()))
            if turn >= WARM_UP:
                found[kind].append(seconds)
                ratios[kind].append(units / sum(1 / one for one in run.dealing.seconds.values()) / seconds)
    if group.rank == 0:
        case = f"{units} units, one member {TIMES_SLOWER} times slower"
        rows = [Row(f"hpcvol_{kind}", case, 0, group.size, found[kind], extra(ratios[kind])) for kind in CONTENDERS]
        publish("dealing", rows, options.json)


def extra(ratios: list[float]) -> dict[str, Any]:
    low, middle = np.percentile(ratios, [25, 50]).tolist()
    return {"of_speeds_p25": low, "of_speeds": middle}


if __name__ == "__main__":
    main()
