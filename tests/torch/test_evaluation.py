"""Means over held-out samples: each once, the same bits at any number of ranks, and the model left as it was."""

import math
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn
from training import NoisyClassifier, Regression, assert_same_alone, built, make_run, numbers, sentences, sgd

from hpcvol.comm import Group
from hpcvol.errors import ModelError
from hpcvol.torch.settings import Settings


@pytest.mark.parametrize("samples", [1, 3, 17])
def test_the_same_bits_at_any_number_of_ranks(group: Group, samples: int) -> None:
    held_out = sentences(samples, seed=7)

    def compute(ranks: Group) -> Any:
        with closing(make_run(ranks, built(NoisyClassifier), sentences(20), Settings(8, 2))) as run:
            return run.evaluate(lambda unit: run.model(**unit), held_out)

    found = assert_same_alone(group, compute)
    model = built(NoisyClassifier).eval()
    whole = model(**held_out.fields)
    assert found.weight == whole["weight"]
    assert found.loss == pytest.approx(whole["loss"].item(), rel=1e-6)
    assert found.metrics["accuracy"] == pytest.approx(whole["accuracy"].item(), rel=1e-6)


def test_every_sample_is_used_once(group: Group) -> None:
    with closing(make_run(group, built(Regression), numbers(20), Settings(8, 3))) as run:
        seen: list[float] = []

        def note(unit: Any) -> torch.Tensor:
            seen.extend(unit["x"][:, 0].tolist())
            return unit["x"][:, 0].mean()  # type: ignore[no-any-return]

        held_out = numbers(11, seed=3)
        found = run.evaluate(note, held_out)
    everything = [value for part in group.gather_objects(seen) for value in part]
    assert everything == held_out.fields["x"][:, 0].tolist()
    assert found.loss == pytest.approx(held_out.fields["x"][:, 0].double().mean().item(), rel=1e-6)
    assert found.weight == 11


def test_modes_are_put_back_module_by_module_also_after_an_error(group: Group) -> None:
    model = built(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1)))
    model.train()
    model[1].eval()  # frozen statistics, as in fine-tuning
    modes = [module.training for module in model.modules()]

    def loss(unit: Any) -> torch.Tensor:
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        return nn.functional.mse_loss(model(unit["x"]), unit["y"])

    with closing(make_run(group, model, numbers(16), Settings(8, 2), sgd)) as run:
        run.evaluate(loss, numbers(9))
        assert [module.training for module in model.modules()] == modes
        with pytest.raises(ModelError, match="the model returned a NoneType"):
            run.evaluate(lambda _: None, numbers(9))
        assert [module.training for module in model.modules()] == modes


def test_random_numbers_in_an_evaluation_are_those_of_the_unit(group: Group) -> None:
    def compute(ranks: Group) -> Any:
        with closing(make_run(ranks, built(Regression), numbers(20), Settings(8, 2))) as run:
            return [run.evaluate(lambda _: torch.rand(()), numbers(11)) for _ in range(2)]

    first, second = assert_same_alone(group, compute)
    assert first == second


def test_units_of_no_weight_are_left_out(group: Group) -> None:
    def some(unit: Any) -> dict[str, Any]:
        counts = unit.index != 1
        return {"loss": torch.tensor(2.0 if counts else math.nan), "weight": int(counts)}

    with closing(make_run(group, built(Regression), numbers(20), Settings(8, 2))) as run:
        found = run.evaluate(some, numbers(6))
        nothing = run.evaluate(lambda _: {"loss": torch.tensor(math.nan), "weight": 0}, numbers(6))
    assert (found.loss, found.weight) == (2.0, 2)
    assert nothing.weight == 0
    assert math.isnan(nothing.loss)


def test_metrics_that_hold_a_graph_are_read_without_it(group: Group) -> None:
    """Training reads metrics while gradients are on."""
    with closing(make_run(group, built(Regression), numbers(16), Settings(8, 2), sgd)) as run:
        for step in run.steps(1):
            for unit in step:
                loss = run.model(**unit)
                step.backward(loss, metrics={"twice": 2 * loss})
    assert step.metrics["twice"] == pytest.approx(2 * step.loss, rel=1e-6)
