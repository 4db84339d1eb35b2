"""`DistributedOptimizer`: the gradient averaged over ranks, for loops that cannot change."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from training import Regression, built, numbers

from hpcvol.comm import Group
from hpcvol.errors import ConfigError
from hpcvol.torch.optimizer import DistributedOptimizer

Make = Callable[[torch.optim.Optimizer], DistributedOptimizer]


@pytest.fixture
def distribute(group: Group, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Wrap an optimizer over `group`, where a program has the whole world."""
    monkeypatch.setattr("hpcvol.torch.optimizer.start_mpi", lambda: group)
    return DistributedOptimizer


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def portion(group: Group, step: int) -> dict[str, torch.Tensor]:
    """What one rank computes in a step: 4 samples."""
    return {name: v[group.rank * 4 : group.rank * 4 + 4] for name, v in numbers(16, seed=step).fields.items()}


def whole(group: Group, step: int) -> dict[str, torch.Tensor]:
    return {name: values[: group.size * 4] for name, values in numbers(16, seed=step).fields.items()}


def assert_close(one: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zero", ["optimizer", "optimizer keeps", "model", "model keeps", "none before"])
def test_it_is_one_process_with_all_samples(group: Group, distribute: Make, zero: str) -> None:
    """Whichever of the usual ways a loop has to zero gradients."""
    model, reference = built(Regression, seed=group.rank), built(Regression)
    optimizer, plain = distribute(momentum(model)), momentum(reference)
    for step in range(4):
        if zero == "model":
            model.zero_grad()
        elif zero == "model keeps":
            model.zero_grad(set_to_none=False)
        elif zero.startswith("optimizer"):
            optimizer.zero_grad(set_to_none=zero == "optimizer")
        plain.zero_grad()
        model(**portion(group, step)).backward()
        optimizer.step()
        reference(**whole(group, step)).backward()
        plain.step()
        if zero == "none before":
            optimizer.zero_grad()
        assert_close(model, reference)
    assert len(set(group.gather_objects(str([p.tolist() for p in model.parameters()])))) == 1


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_of_several_backward_passes_add_up(group: Group, distribute: Make, sparse: bool) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Embedding(9, 3, sparse=sparse), nn.Linear(3, 1))

    model, reference = built(make), built(make)
    optimizer, plain = (
        distribute(torch.optim.SGD(model.parameters(), lr=0.5)),
        torch.optim.SGD(reference.parameters(), 0.5),
    )
    tokens = torch.arange(8 * group.size).reshape(group.size, 8) % 9
    for _ in range(2):
        optimizer.zero_grad()
        plain.zero_grad()
        for half in (slice(4), slice(4, 8)):
            model(tokens[group.rank, half]).square().sum().backward()
        optimizer.step()
        (reference(tokens).square().sum() / group.size).backward()
        plain.step()
        assert_close(model, reference)


def test_a_parameter_that_no_rank_used_has_no_gradient(group: Group, distribute: Make) -> None:
    model: Any = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(3)])
    optimizer = distribute(torch.optim.AdamW(model.parameters(), weight_decay=0.5))
    before = copy.deepcopy(model)
    for step in range(2):
        model.zero_grad() if step else optimizer.zero_grad()
        used = [model[0], *([model[1]] if group.rank == group.size - 1 else [])]
        torch.stack([layer(torch.ones(1, 2)).sum() for layer in used]).sum().backward()
        optimizer.step()
        assert model[1].weight.grad is not None
        assert model[2].weight.grad is None
    assert torch.equal(model[2].weight, before[2].weight)
    assert not torch.equal(model[1].weight, before[1].weight)


@pytest.mark.parametrize("by_model", [False, True])
def test_half_precision(group: Group, distribute: Make, by_model: bool) -> None:
    model = nn.Linear(2, 1, bias=False).bfloat16()
    nn.init.zeros_(model.weight)
    optimizer = distribute(torch.optim.SGD(model.parameters(), lr=1.0))
    for step in range(3):
        model.zero_grad() if by_model else optimizer.zero_grad()
        for _ in range(2):
            model(torch.tensor([[1.0, 2.0 * (group.rank + 1)]]).bfloat16()).sum().backward()
        optimizer.step()
        wanted = torch.tensor([[-2.0, -2.0 * (group.size + 1)]]) * (step + 1)
        assert torch.equal(model.weight.float(), wanted)


def test_averages_can_be_clipped(group: Group, distribute: Make) -> None:
    model, reference = built(Regression, seed=group.rank), built(Regression)
    optimizer, plain = distribute(momentum(model)), momentum(reference)
    for step in range(4):
        optimizer.zero_grad()
        plain.zero_grad()
        model(**portion(group, step)).backward()
        optimizer.synchronize()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        reference(**whole(group, step)).backward()
        assert nn.utils.clip_grad_norm_(reference.parameters(), 0.05) > 0.05
        plain.step()
        assert_close(model, reference)
        assert len(set(group.gather_objects(norm.item()))) == 1


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clips", [False, True])
def test_a_grad_scaler_skips_a_step_on_all_ranks(group: Group, distribute: Make, clips: bool, fused: bool) -> None:
    """Only one rank's gradient is infinite; on one process the whole batch's would be."""

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> tuple[list[float], int]:
        scaler, scales, skipped = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3), [], 0
        for step in range(7):
            optimizer.zero_grad()
            loss = model(**batch(group, step))
            overflows = step == 2 and (model is reference or group.rank == group.size - 1)
            scaler.scale(loss * (float("inf") if overflows else 1.0)).backward()
            if isinstance(optimizer, DistributedOptimizer):
                optimizer.synchronize()
            before = [p.clone() for p in model.parameters()]
            if clips:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            skipped += all(torch.equal(one, p) for one, p in zip(before, model.parameters(), strict=True))
        return scales, skipped

    model, reference = built(Regression, seed=group.rank), built(Regression)
    adam = partial(torch.optim.Adam, lr=0.01, fused=fused)
    found = loop(model, distribute(adam(model.parameters())), portion)
    assert found == loop(reference, adam(reference.parameters()), whole)
    scales, skipped = found
    assert scales[1:3] == [2.0**10, 2.0**9]
    assert skipped == 1
    assert_close(model, reference)
    assert len(set(group.gather_objects(str(found)))) == 1


def test_another_backward_pass_is_averaged_again(group: Group, distribute: Make) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = distribute(torch.optim.SGD(model.parameters(), lr=1.0))
    model(torch.ones(1, 1)).sum().backward()
    optimizer.synchronize()
    model(torch.full((1, 1), 1.0 + group.rank)).sum().backward()
    optimizer.step()
    assert model.weight.item() == -1 - (group.size + 1) / 2


def test_the_exact_sum_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r'DistributedOptimizer with sum = "exact".*hpcvol\.start'):
        DistributedOptimizer(momentum(Regression()), sum="exact")


def test_a_closure_is_refused(distribute: Make) -> None:
    optimizer = distribute(momentum(Regression()))
    with pytest.raises(ConfigError, match="takes no closure"):
        optimizer.step(lambda: 0.0)


def test_nothing_to_train_is_refused(distribute: Make) -> None:
    model = Regression().requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        distribute(momentum(model))


def test_parameters_that_come_later_are_refused(distribute: Make) -> None:
    """They would be moved by this rank's gradient alone."""
    optimizer = distribute(momentum(Regression()))
    with pytest.raises(ConfigError, match="add_param_group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_state_and_parameter_groups_are_those_of_the_optimizer(group: Group, distribute: Make) -> None:
    model = built(Regression)
    inner = momentum(model)
    optimizer = distribute(inner)
    model(**portion(group, 0)).backward()
    optimizer.step()
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"].keys() == inner.state_dict()["state"].keys()
    other = distribute(momentum(built(Regression)))
    other.load_state_dict(saved)
    assert str(other.state_dict()) == str(saved)
    optimizer.param_groups[0]["lr"] = 0.0
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_schedules_take_it_for_an_optimizer(group: Group, distribute: Make) -> None:
    model = built(Regression)
    optimizer = distribute(momentum(model))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for step in range(2):
        optimizer.zero_grad()
        model(**portion(group, step)).backward()
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
