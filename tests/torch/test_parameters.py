"""Parameters that are unused, frozen, shared, sparse or of half precision; optimizers that hold others."""

from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn
from training import Regression, Rows, assert_same_alone, built, make_run, numbers, outcome, sgd, train

from hpcvol.comm import Group
from hpcvol.errors import ConfigError, ModelError
from hpcvol.torch.settings import Settings


class Odd(nn.Module):
    """One parameter never used, one used by a single unit, one frozen, one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6, bias=False)
        self.again = nn.Linear(6, 6, bias=False)
        self.again.weight = self.shared.weight
        self.head = nn.Linear(6, 1)
        self.never = nn.Parameter(torch.ones(3))
        self.seldom = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found = self.head(self.again(torch.tanh(self.shared(x * self.frozen))))
        if (y == 100).any():
            found = found * self.seldom
        return nn.functional.mse_loss(found, y)


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_unused_frozen_and_shared(group: Group, sum: str) -> None:
    samples = numbers(16)
    samples.fields["y"][3] = 100.0

    def compute(ranks: Group) -> Any:
        model = built(Odd)
        with closing(make_run(ranks, model, samples, Settings(16, 2, sum=sum))) as run:
            steps = train(run, 3)
            assert model.never.grad is None
            assert model.frozen.grad is None
            assert model.seldom.grad is not None
            assert model.again.weight is model.shared.weight
            torch.testing.assert_close(model.never, nn.Parameter(torch.ones(3)), rtol=0, atol=0)
            assert not torch.equal(model.seldom, torch.ones(1))
            return outcome(run, steps)

    if sum == "exact":
        assert_same_alone(group, compute)
    else:
        assert len({str(found) for found in group.gather_objects(compute(group)["model"])}) == 1


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4, sparse=True)
        self.head = nn.Linear(4, 9)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self.words(tokens)), tokens)


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_sparse_gradients(group: Group, sum: str) -> None:
    samples = Rows(tokens=torch.arange(12) % 7)

    def compute(ranks: Group) -> Any:
        with closing(make_run(ranks, built(Sparse), samples, Settings(12, 2, sum=sum), sgd)) as run:
            return outcome(run, train(run, 3))

    if sum == "exact":
        assert_same_alone(group, compute)
    dense = built(Sparse)
    dense.words.sparse = False
    with closing(make_run(group, dense, samples, Settings(12, 2, sum=sum), sgd)) as run:
        train(run, 3)
        sparse = built(Sparse)
        with closing(make_run(group, sparse, samples, Settings(12, 2, sum=sum), sgd)) as other:
            train(other, 3)
    for one, same in zip(dense.parameters(), sparse.parameters(), strict=True):
        torch.testing.assert_close(one, same)


@pytest.mark.parametrize("sum", ["exact", "float"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(group: Group, sum: str, dtype: torch.dtype) -> None:
    """Part of the model in another precision; the sum keeps more digits than bfloat16 has."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 5, dtype=dtype), nn.Linear(5, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return nn.functional.mse_loss(self.head(torch.tanh(self.first(x.to(dtype))).float()), y)

    def compute(ranks: Group) -> Any:
        model = built(Mixed)
        with closing(make_run(ranks, model, numbers(12), Settings(12, 2, sum=sum), sgd)) as run:
            return outcome(run, train(run, 3))

    if sum == "exact":
        assert_same_alone(group, compute)
    assert len({str(found["model"]) for found in group.gather_objects(compute(group))}) == 1


def test_channels_last_and_other_layouts(group: Group) -> None:
    class Pictures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 1)
            self.to(memory_format=torch.channels_last)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return nn.functional.mse_loss(self.head(self.first(x).mean((2, 3))), y)

    generator = torch.Generator().manual_seed(0)
    samples = Rows(x=torch.randn(12, 2, 5, 5, generator=generator), y=torch.randn(12, 1, generator=generator))

    def compute(ranks: Group) -> Any:
        with closing(make_run(ranks, built(Pictures), samples, Settings(8, 2))) as run:
            return outcome(run, train(run, 4))

    assert_same_alone(group, compute)


def test_nothing_to_train_is_refused(group: Group) -> None:
    model = Regression().requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter that requires a gradient"):
        make_run(group, model, numbers(8), Settings(8, 2))


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_an_optimizer_with_parameters_that_are_not_the_models_is_refused(group: Group, sum: str) -> None:
    """Their gradients would be those of this member alone, and the members would drift apart."""
    criterion = nn.Linear(2, 3)
    with pytest.raises(ConfigError, match=r"\[3, 2\].*not the model's"):
        make_run(
            group,
            Regression(),
            numbers(8),
            Settings(8, 2, sum=sum),
            lambda parameters: torch.optim.SGD([*parameters, *criterion.parameters()], lr=0.1),
        )


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_parameters_that_thaw_or_freeze_while_training_are_refused(group: Group, sum: str) -> None:
    """A parameter that starts to require gradients later is not in the sum: members would drift apart."""
    model = built(Regression)
    model.layers[0].requires_grad_(False)
    with closing(make_run(group, model, numbers(8), Settings(8, 2, sum=sum))) as run:
        train(run, 1)
        model.layers[0].requires_grad_(True)
        with pytest.raises(ModelError, match=r"layers\.0\.weight"):
            train(run, 2)


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_parameters_that_are_replaced_while_training_are_refused(group: Group, sum: str) -> None:
    """The new ones have no part in the sum, and the optimizer does not know them either."""
    model = built(Regression)
    with closing(make_run(group, model, numbers(8), Settings(8, 2, sum=sum))) as run:
        train(run, 1)
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
        train(run, 2)
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
        with pytest.raises(ModelError, match=r"layers\.0\.weight.*another object"):
            train(run, 3)


def test_a_gradient_that_is_not_finite_stops_the_float_sum_too(group: Group) -> None:
    """The loss is finite, its derivative is not: nothing may reach the weights."""

    class Root(Regression):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            bias = self.layers[2].bias
            return super().forward(x, y) + (bias - bias.detach()).sqrt().sum() * (x[0, 0] > 1)

    for sum in ("exact", "float"):
        model = built(Root)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with closing(make_run(group, model, numbers(16), Settings(8, 1, sum=sum), sgd)) as run:
            run.needs_probe = False
            with pytest.raises(ModelError, match=r"step \d: gradient layers\.2\.bias holds (nan|inf)") as caught:
                train(run, 2)
        assert caught.value.everywhere
        assert len(set(group.gather_objects(str(caught.value)))) == 1
        if run.step == 0:
            assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["exact", "float"])
def test_complex_parameters_are_refused(group: Group, kind: str) -> None:
    class Complex(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Parameter(torch.ones(1, dtype=torch.complex64))

    with pytest.raises(ModelError, match=r"parameter 'turn' is torch\.complex64: .*torch\.view_as_real") as caught:
        make_run(group, built(Complex), numbers(16), Settings(8, 2, sum=kind))
    assert caught.value.everywhere
