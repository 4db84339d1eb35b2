"""A failure on one rank ends the whole job, with that rank's words."""

from pathlib import Path

import pytest
from launched import RunRanks

# A launch of ranks that import torch: seconds on a quiet machine.
SECONDS = 100.0
pytestmark = pytest.mark.limit_seconds(SECONDS + 10)

PROGRAM = """
import sys
import torch
import hpcvol

where = sys.argv[1]

class Fails(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.units = 0

    def forward(self, x):
        self.units += 1
        if RANK == 1 and where == "step" and self.units == 5:
            raise ValueError("this model cannot do it")
        return self.layer(x).square().mean()

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, index):
        return {"x": torch.full((3,), float(index))}

from hpcvol.comm import start
RANK = start().rank
model = Fails()
run = hpcvol.start(model, torch.optim.SGD(model.parameters(), lr=1e-4), Data(), 12, 2, device="cpu")
for step in run.steps(50):
    for unit in step:
        step.backward(model(**unit))
        if RANK == 1 and where == "leaves" and step.index == 2:
            break
    print("finished", step.index, flush=True)
"""


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("step", "ValueError: this model cannot do it"),
        ("leaves", "step 2 was left before its bag was empty"),
    ],
)
def test_the_job_ends_with_the_words_of_the_rank_that_failed(
    run_ranks: RunRanks, tmp_path: Path, where: str, said: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = run_ranks(3, [str(program), where], seconds=SECONDS)
    assert ended.returncode != 0
    assert said in ended.stderr
    assert "member 1 " in ended.stderr
    assert ("Traceback" in ended.stderr) == (where != "leaves")
    assert "finished 49" not in ended.stdout
    if where != "leaves":
        assert 'raise ValueError("this model cannot do it")' in ended.stderr


OTHER_MODEL = """
import sys
import torch
import hpcvol
from hpcvol.comm import start

sys.path.insert(0, f"{sys.argv[1]}/{start().rank}")
from model import Model

model = Model(3, 1)
hpcvol.start(model, torch.optim.SGD(model.parameters(), lr=0.1), [(0, 0)], 1, device="cpu")
"""


def test_members_with_another_model_file_are_refused_once_for_all(run_ranks: RunRanks, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(OTHER_MODEL)
    for member in (0, 1):
        (tmp_path / str(member)).mkdir()
        model = f"import torch\n\nclass Model(torch.nn.Linear):\n    version = {member}\n"
        (tmp_path / str(member) / "model.py").write_text(model)
    ended = run_ranks(2, [str(tmp_path / "program.py"), str(tmp_path)], seconds=SECONDS)
    assert ended.returncode != 0
    assert ended.stderr.count("members disagree: the file model.py is") == 1
    assert "Traceback" not in ended.stderr
