"""A member that computes wrong gradients is expelled, and the weights are those of a run without it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from launched import RunProgram

from hpcvol import environment
from hpcvol.comm import launch_command
from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of

LIAR = 2
LIES_FROM = 2

LOOP = """
import hashlib, json, os, sys
from pathlib import Path
import torch
from torch import nn
import hpcvol

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 90
    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(12, generator=generator)
        return {"x": x, "y": (x.sum() > 0).long()}

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.3), nn.Linear(40, 2))
loss = lambda unit: nn.functional.cross_entropy(model(unit["x"]), unit["y"])
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
folder, share, liar, lies_from = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
run = hpcvol.start(model, optimizer, Numbers(), 24, 3, verify_share=share)

def lie(gradient):
    if run.step < lies_from:
        return gradient
    (folder / "lied").touch()
    return gradient * (1 + 2**-20)

if run.member == liar:
    model[0].weight.register_hook(lie)
for step in run.steps(5):
    for unit in step:
        step.backward(loss(unit))
state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
said = {
    "weights": hashlib.sha256(state).hexdigest(),
    "loss": step.loss,
    "expelled": run.membership.expelled,
    "members": run.group.members,
}
(folder / f"member{run.member}.json").write_text(json.dumps(said))
"""

# As `hpcvol train` does: a launcher that misses the end of its last rank is ended.
SUPERVISED = "import os, sys; from hpcvol.cli.supervision import supervise; supervise(sys.argv[1:], dict(os.environ))"


def train(folder: Path, run_program: RunProgram, ranks: int, share: float, liar: int) -> list[dict[str, Any]]:
    """Train; return what the members that lived to the end said, in the order of their ids."""
    folder.mkdir()
    (folder / "loop.py").write_text(LOOP)
    program = [sys.executable, str(folder / "loop.py"), str(folder), str(share), str(liar), str(LIES_FROM)]
    launch = launch_command(ranks, program, elastic=True)
    argv = [sys.executable, "-c", SUPERVISED, *launch.argv]
    variables = {**environment.snapshot(), **launch.environment, "OMP_NUM_THREADS": "1"}
    run_program(argv, variables=variables, seconds=240.0)
    assert (folder / "lied").exists() == (liar >= 0), "the lie was not told"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("member*.json"))]


@pytest.mark.limit_seconds(500)
def test_the_weights_are_those_of_a_run_without_it(tmp_path: Path, run_program: RunProgram) -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("ranks outlive the death of others under Open MPI only")
    (quiet,) = train(tmp_path / "quiet", run_program, 1, 0.0, -1)
    said = train(tmp_path / "lied_to", run_program, 4, 1.0, LIAR)
    assert [one["members"] for one in said] == [[0, 1, 3]] * 3
    for one in said:
        assert [name.split()[:2] for name in one["expelled"]] == [["member", str(LIAR)]]
        assert (one["weights"], one["loss"]) == (quiet["weights"], quiet["loss"])
