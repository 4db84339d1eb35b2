"""Weights make ragged batches, masked tokens and padding right: one unit or eight, the same gradient."""

import copy
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn
from training import (
    NoisyClassifier,
    Regression,
    Rows,
    assert_same_alone,
    built,
    make_run,
    numbers,
    sentences,
    sgd,
    train,
)

from hpcvol.comm import Group
from hpcvol.torch.run import Run
from hpcvol.torch.settings import Settings


def gradients(run: Run) -> dict[str, torch.Tensor]:
    train(run, run.step + 1)
    return {
        name: parameter.grad.clone() for name, parameter in run.model.named_parameters() if parameter.grad is not None
    }


def doubled(samples: Rows) -> Rows:
    return Rows(**{name: v.double() if v.is_floating_point() else v for name, v in samples.fields.items()})


def quiet_classifier() -> nn.Module:
    model = NoisyClassifier().double()
    model.dropout.p = 0.0
    return model


@pytest.mark.parametrize("sum", ["exact", "float"])
@pytest.mark.parametrize("unit", [1, 3, 4, 13])
def test_one_unit_or_many_give_the_gradient_of_the_whole_batch(group: Group, unit: int, sum: str) -> None:
    samples = doubled(numbers(13))
    model = built(lambda: Regression().double())
    whole = copy.deepcopy(model)
    whole(**samples.fields).backward()
    with closing(make_run(group, model, samples, Settings(13, unit, sum=sum), sgd)) as run:
        found = gradients(run)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sum", ["exact", "float"])
@pytest.mark.parametrize("unit", [1, 2, 5, 12])
def test_masked_tokens_count_by_token(group: Group, unit: int, sum: str) -> None:
    """Samples of other lengths, some of them with nothing to predict: a unit of weight 0."""
    samples = sentences(12)
    model = built(quiet_classifier)
    whole = copy.deepcopy(model)
    output = whole(**samples.fields)
    output["loss"].backward()
    with closing(make_run(group, model, samples, Settings(12, unit, sum=sum), sgd)) as run:
        (step,) = train(run, 1)
        found = {name: p.grad for name, p in run.model.named_parameters()}
    assert step.weight == output["weight"]
    assert step.loss == pytest.approx(output["loss"].item(), rel=1e-12)
    assert step.metrics["accuracy"] == pytest.approx(float(output["accuracy"]), rel=1e-6)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_a_ragged_last_batch_has_the_mean_over_what_it_holds(group: Group, sum: str) -> None:
    samples = doubled(numbers(11))
    model = built(lambda: Regression().double())
    with closing(make_run(group, model, samples, Settings(8, 2, sum=sum), lambda p: torch.optim.SGD(p, lr=0.0))) as run:
        train(run, 1)
        (step,) = train(run, 2)
        found = {name: p.grad for name, p in run.model.named_parameters()}
        assert step.num_samples == step.weight == 3
        indices = torch.cat([run.loader.load(span)["x"] for span in run.batching.units(1)])
    whole = built(lambda: Regression().double())
    chosen = torch.tensor([int((samples.fields["x"] == row).all(1).nonzero()) for row in indices])
    whole(**{name: values[chosen] for name, values in samples.fields.items()}).backward()
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-11, atol=1e-12)


def test_weights_of_the_users_own(group: Group) -> None:
    """Any whole number, as an int, a float or a tensor; the mean follows."""

    def compute(ranks: Group) -> Any:
        model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(model.weight)
        samples = Rows(x=torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
        with closing(make_run(ranks, model, samples, Settings(4, 1), lambda p: torch.optim.SGD(p, lr=1.0))) as run:
            for step in run.steps(1):
                for unit in step:
                    weight = int(unit["x"])
                    given = [weight, float(weight), torch.tensor(weight)][unit.index % 3]
                    step.backward(model(unit["x"]).mean(), given, {"half": float(unit["x"]) / 2})  # type: ignore[arg-type]
            return model.weight.item(), step.loss, step.weight, step.metrics

    assert assert_same_alone(group, compute) == (-2.0, 3.0, 10, {"half": 1.5})


class Batchnormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        return {"loss": nn.functional.mse_loss(self.head(self.norm(x)), y), "weight": 0}


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_a_step_of_no_weight_changes_nothing(group: Group, sum: str) -> None:
    model = built(Batchnormed)
    before = copy.deepcopy(model.state_dict())
    with closing(make_run(group, model, numbers(8), Settings(8, 2, sum=sum))) as run:
        (step,) = train(run, 1)
        assert run.step == 1
    assert step.weight == 0
    assert step.loss != step.loss
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for parameters in run.optimizer.state.values():
        assert not parameters


def test_a_unit_of_no_weight_may_have_no_gradient_at_all(group: Group) -> None:
    """Nothing to predict in it: its loss is a constant, infinite or not a number."""

    class Sometimes(Regression):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:  # type: ignore[override]
            kept = y > 100.0
            constant = torch.tensor(torch.nan) if not kept.any() else super().forward(x, y)
            return {"loss": constant, "weight": int(kept.sum())}

    samples = numbers(6)
    samples.fields["y"][2] = 1000.0

    def compute(ranks: Group) -> Any:
        with closing(make_run(ranks, built(Sometimes), samples, Settings(6, 1))) as run:
            (step,) = train(run, 1)
            return step.weight, step.loss, [p.detach().sum().item() for p in run.model.parameters()]

    found = assert_same_alone(group, compute)
    assert found[0] == 1
    assert found[1] > 1000
