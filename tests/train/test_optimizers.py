"""Optimizers by name, their state across a resume, and the shapes of schedules."""

import pytest
import torch
from digits_project import Project, what_decides

from hpcvol.errors import ConfigError
from hpcvol.train.config import OptimizerConfig
from hpcvol.train.optimizers import learning_rate_factor, make_optimizer

# SparseAdam takes sparse gradients only, Muon matrices only.
NAMES = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)
USABLE = [name for name in NAMES if name not in ("LBFGS", "SparseAdam", "Muon")]


def refusal(**settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        make_optimizer(OptimizerConfig(**settings), [torch.nn.Parameter(torch.zeros(2))])  # type: ignore[arg-type]
    return str(caught.value)


def test_names_are_those_of_torch_in_any_case() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    assert len(USABLE) >= 10
    for name in USABLE:
        for spelled in (name, name.lower(), name.upper()):
            assert type(make_optimizer(OptimizerConfig(name=spelled), parameters)).__name__ == name


def test_what_cannot_be_is_refused() -> None:
    assert refusal(name="adanw").endswith("torch.optim has no such optimizer; did you mean AdamW?")
    assert refusal(name="zzz").endswith("torch.optim has no such optimizer")
    assert refusal(name="optimizer").startswith("optimizer.name = 'optimizer': torch.optim has no such optimizer")
    said = refusal(name="sgd", args={"rl": 1.0})
    assert said.startswith("optimizer.args: SGD says: ")
    assert "'rl'" in said
    assert "it takes lr, momentum" in said
    assert "Invalid learning rate: -1" in refusal(name="sgd", args={"lr": -1})
    assert "Muon" in refusal(name="muon")


@pytest.mark.parametrize("name", USABLE)
def test_every_state_comes_back(project: Project, name: str) -> None:
    overrides = (f"optimizer.name={name}", "optimizer.args={lr=0.01}")
    assert project.train("run", "train.steps=2", *overrides)
    assert project.train("run", "train.steps=4", *overrides)
    assert project.train("never", "train.steps=4", *overrides)
    assert what_decides(project.summary("run")) == what_decides(project.summary("never"))


def factors(total: int, **settings: object) -> list[float]:
    factor = learning_rate_factor(OptimizerConfig(**settings), total)  # type: ignore[arg-type]
    return [round(factor(step), 6) for step in range(total)]


def test_schedules() -> None:
    assert factors(3) == [1.0, 1.0, 1.0]
    assert factors(5, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors(5, schedule="linear", final_lr_ratio=0.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert factors(7, schedule="linear", warmup_steps=2, final_lr_ratio=0.2) == [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert factors(5, schedule="cosine", final_lr_ratio=0.0) == [1.0, 0.853553, 0.5, 0.146447, 0.0]
    assert factors(1, schedule="cosine") == [1.0]
    assert factors(2, schedule="cosine", warmup_steps=5) == [0.2, 0.4]
