"""What elasticity costs while nobody dies: steps of two ranks that would outlive each other beside such that would not.

Two models under both sums: the example GPT, and one of 100 MB. Launches with `--with-ft ulfm` and without take turns,
each pair in the other order; in the first the members agree after every step. `of_plain` is how long a step takes
beside the plain one. Launches differ by more than the steps of one do (up to a sixth for 100 MB: where its memory came
to lie), so each counts as one: the ratio is of medians of their medians, and many are needed.

    python benchmarks/insurance.py [--json FILE] [--quick]         not under mpiexec; Open MPI
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from report import Row, arguments, publish
from train_step import EXAMPLE, Wide, hpcvol_stepper

import hpcvol
from hpcvol import environment
from hpcvol.callables import load_callable
from hpcvol.comm import launch_command
from hpcvol.comm import start as start_mpi

NUM_RANKS = 2
CASES = [f"{model}, {kind}" for model in ("gpt", "100 MB") for kind in ("exact", "float")]
WIDTH_OF_100_MB = 1792
POSITIONS = 25
LAUNCHES = 20

Seconds = dict[str, list[float]]


def measure(steps: int, file: Path) -> None:
    """Time `steps` steps of each case on all ranks, and write the slowest rank's to `file`. A rank's program."""
    group = start_mpi()
    torch.set_num_threads(1)
    config = hpcvol.load_config(EXAMPLE)
    build = load_callable(config.model.build, config.folder)
    found: Seconds = {}
    for case in CASES:
        torch.manual_seed(0)
        model = build(**config.model.args) if case.startswith("gpt") else Wide(WIDTH_OF_100_MB, POSITIONS)
        step = hpcvol_stepper(config, model, case.partition(", ")[2])
        seconds = []
        for number in range(steps + 2):
            group.barrier()
            begin = time.perf_counter()
            step()
            if number > 1:  # the first two compile, and probe
                seconds.append(time.perf_counter() - begin)
        found[case] = [max(times) for times in zip(*group.gather_objects(seconds), strict=True)]
    if group.rank == 0:
        file.write_text(json.dumps(found))


def launched(steps: int, file: Path, *, elastic: bool) -> Seconds:
    """Return the seconds that a launch measured."""
    launch = launch_command(NUM_RANKS, [sys.executable, __file__, "--steps", str(steps), str(file)], elastic=elastic)
    if elastic and "ulfm" not in launch.argv:
        raise SystemExit(
            f"insurance: {launch.note}: ranks of this MPI do not outlive others, so nothing can be compared"
        )
    subprocess.run(launch.argv, env={**environment.snapshot(), **launch.environment}, check=True)
    found: Seconds = json.loads(file.read_text())
    return found


def main() -> None:
    """Measure, and publish."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--steps", nargs=2, help="a rank's part: so many steps, to a file")
    options = parser.parse_args()
    if options.steps:
        measure(int(options.steps[0]), Path(options.steps[1]))
        return
    names = ("plain", "elastic")
    found: dict[str, Seconds] = {name: {case: [] for case in CASES} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(1 if options.quick else LAUNCHES):
            for name in names if turn % 2 == 0 else names[::-1]:
                steps = 3 if options.quick else 8
                for case, times in launched(steps, Path(folder, f"{turn}"), elastic=name == "elastic").items():
                    found[name][case].append(statistics.median(times))
    rows = []
    for case, name in itertools.product(CASES, found):
        row = Row(name, case, 0, NUM_RANKS, found[name][case])
        plain = Row("plain", case, 0, NUM_RANKS, found["plain"][case])
        ratios = {f"of_plain_{kind}": row.summary[kind] / plain.summary[kind] for kind in ("p25", "median")}
        rows.append(Row(name, case, 0, NUM_RANKS, row.seconds, ratios))
    publish("insurance", rows, options.json)


if __name__ == "__main__":
    main()
