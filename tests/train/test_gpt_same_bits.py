"""Twenty steps of the example GPT: weights do not depend on who dies, leaves or resumes, nor on how many there are."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from digits_project import EXAMPLES, Project
from launched import RunProgram

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import OPEN_MPI, vendor_of
from hpcvol.train.verify import verify_run

SECONDS = 200.0

CONFIG = """\
[model]
build = "gpt.py:build"
args = { width = 64, num_layers = 2, num_heads = 2, context = 64, num_past = 2 }
[data]
path = "data"
[data.source]
kind = "text"
paths = ["text"]
split = { train = 0.9, val = 0.1 }
options = { sequence_length = 65 }
[optimizer]
name = "adamw"
args = { lr = 4e-3, betas = [0.9, 0.95], weight_decay = 0.1 }
schedule = "cosine"
warmup_steps = 5
clip_norm = 1.0
[train]
steps = 20
batch_size = 8
unit_size = 1
threads = 1
[checkpoint]
every_steps = 10
"""

BEGIN = (
    "import sys; sys.path.insert(0, {harness!r}); import strikes; strikes.install()\n"
    "from hpcvol.train import stopping; stopping._ALL_SECONDS = 0.0\n"
)


@pytest.fixture
def gpt(tmp_path: Path) -> Project:
    """The example GPT, small, on its own sources; members are struck where a run says so."""
    project = Project(tmp_path / "gpt")
    project.folder.mkdir()
    code = (EXAMPLES / "gpt.py").read_text()
    begin = BEGIN.format(harness=str(Path(__file__).parents[1] / "harness"))
    project.write("gpt.py", code.replace("\nimport ", f"\n{begin}import ", 1))
    project.write("job.toml", CONFIG)
    (project.folder / "text").mkdir()
    for file in Path(EXAMPLES).glob("*.py"):
        shutil.copy(file, project.folder / "text")
    return project


def train(project: Project, run_program: RunProgram, run: str, ranks: int, strikes: Any = (), ends: bool = True) -> str:
    argv = [sys.executable, "-m", "hpcvol.cli", "train", str(project.job), "-n", str(ranks)]
    variables = {"STRIKES": json.dumps(list(strikes)), "STRUCK": str(project.folder)}
    ended = run_program([*argv, "--run-dir", str(project.folder / run)], variables=variables, seconds=SECONDS)
    assert (ended.returncode == 0) == ends, ended.stdout + ended.stderr
    for member, point, *_ in strikes:
        assert (project.folder / f"struck-{member}-{str(point).replace(' ', '_')}").exists(), f"{point} was not reached"
    if not ends:
        return ""
    found = verify_run(project.folder / run)
    assert (found.damaged, found.notes) == ([], [])
    weights: str = project.summary(run)["weights_sha256"]
    return weights


@pytest.mark.limit_seconds(600)
def test_the_weights_are_those_of_a_quiet_run_of_one(gpt: Project, run_program: RunProgram) -> None:
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("members outlive others under Open MPI only")
    quiet = train(gpt, run_program, "quiet", 1)
    deaths = [[0, "all-reduce sum", 9], [1, "backward", 31]]
    assert train(gpt, run_program, "deaths", 3, strikes=deaths) == quiet
    leave = [[2, "forward", 21, "SIGTERM"]]
    assert train(gpt, run_program, "leave", 3, strikes=leave) == quiet
    everybody = [[0, "backward", 46], [1, "backward", 60]]
    train(gpt, run_program, "resumed", 2, strikes=everybody, ends=False)
    assert gpt.steps("resumed")[-1] < 20
    assert train(gpt, run_program, "resumed", 3) == quiet
