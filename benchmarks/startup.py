"""From `mpiexec` to the end of the first training step: hpcvol beside plain torch, the example GPT on two ranks.

- plain_torch: imports torch and mpi4py, makes the same model and optimizer, computes and applies one local batch.
- hpcvol_cold: the same with `hpcvol.start` and the exact sum, with an empty Numba cache.
- hpcvol_warm: the same with the cache that the cold run filled.

The time is that of the whole command up to the end of the first step, which each rank notes on the system's clock; the
slowest rank counts. Contenders take turns.

    python benchmarks/startup.py [--json FILE] [--quick]
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import Row, arguments, publish

from hpcvol import environment
from hpcvol.comm import launch_command

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NUM_RANKS = 2
COMMON = """
import sys, time
import torch
sys.path.insert(0, {examples!r})
import gpt
torch.set_num_threads(1)
model = gpt.build()
optimizer = torch.optim.AdamW(model.parameters())
tokens = torch.zeros((8, 257), dtype=torch.uint8)
"""
PLAIN = """
from mpi4py import MPI
model(tokens=tokens[:4])["loss"].backward()
optimizer.step()
"""
OURS = """
import hpcvol
data = [{"tokens": row} for row in tokens]
run = hpcvol.start(model, optimizer, data=data, batch_size=8, unit_size=1)
for step in run.steps(1):
    for unit in step:
        output = model(**unit)
        step.backward(output["loss"], output["weight"])
"""
# In one write: ranks share the pipe.
NOTE = """
sys.stdout.write(f"first step ended {time.time()}\\n")
"""


def seconds_to_first_step(program: str, cache: Path) -> float:
    """Run `program` on all ranks and return when the slowest has ended its first step, in seconds from the command."""
    launch = launch_command(NUM_RANKS, [sys.executable, "-c", COMMON.format(examples=str(EXAMPLES)) + program + NOTE])
    variables = {**environment.snapshot(), **launch.environment, "NUMBA_CACHE_DIR": str(cache)}
    begin = time.time()
    done = subprocess.run(launch.argv, env=variables, check=True, capture_output=True, text=True)
    ends = [float(seconds) for seconds in re.findall(r"first step ended ([\d.]+)\n", done.stdout)]
    if len(ends) != NUM_RANKS:
        raise RuntimeError(f"{len(ends)} of {NUM_RANKS} ranks ended a step:\n{done.stdout}\n{done.stderr}")
    return max(ends) - begin


def main() -> None:
    """Measure, and publish."""
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    seconds: dict[str, list[float]] = {"plain_torch": [], "hpcvol_cold": [], "hpcvol_warm": []}
    for _ in range(1 if options.quick else 7):
        with tempfile.TemporaryDirectory() as cache:
            for name, program in (("plain_torch", PLAIN), ("hpcvol_cold", OURS), ("hpcvol_warm", OURS)):
                seconds[name].append(seconds_to_first_step(program, Path(cache)))
    rows = [Row(name, "first step", 0, NUM_RANKS, times) for name, times in seconds.items()]
    plain = rows[0].summary["median"]
    publish(
        "startup",
        [
            Row(r.contender, r.case, 0, r.ranks, r.seconds, {"beyond_plain_s": r.summary["median"] - plain})
            for r in rows
        ],
        options.json,
    )


if __name__ == "__main__":
    main()
