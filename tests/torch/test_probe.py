"""The probe finds impure models and members of another numerics class before anything is trained."""

import re
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training import Regression, Rows, built, make_run, numbers, sgd, train

from hpcvol.comm import Group
from hpcvol.errors import ModelError
from hpcvol.torch.settings import Settings


def refusal(group: Group, model: nn.Module, samples: Rows | None = None) -> str:
    """Train a step, and return what every rank is told."""
    with closing(make_run(group, model, samples or numbers(16), Settings(8, 2), sgd)) as run:
        with pytest.raises(ModelError) as caught:
            train(run, 1)
        assert run.step == 0
    assert caught.value.everywhere
    said: list[str] = group.gather_objects(str(caught.value))
    assert len(set(said)) == 1
    return said[0]


class OwnGenerator(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.randn(x.shape, generator=self.generator), y)


class Counting(Regression):
    """Its loss is the same at every call; a gradient is not."""

    calls = 0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        bias = self.layers[2].bias
        return super().forward(x, y) + self.calls * (bias - bias.detach()).sum()


class Remembering(Regression):
    """Neither loss nor gradients tell: only a buffer that follows calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls_seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.calls_seen += self.calls
        return super().forward(x, y)


@pytest.mark.parametrize(
    ("build", "tensor"),
    [(OwnGenerator, "the loss"), (Counting, "gradient of layers.2.bias"), (Remembering, "buffer calls_seen")],
)
def test_an_impure_model_is_refused_and_the_tensor_named(group: Group, build: type[nn.Module], tensor: str) -> None:
    said = refusal(group, built(build))
    assert f"differs in {tensor}:" in said
    assert "computed twice by member 0" in said
    assert 'train.sum = "float"' in said


def test_impurity_of_one_member_alone_is_refused_on_all(group: Group) -> None:
    last = group.size - 1
    said = refusal(group, built(OwnGenerator if group.rank == last else Regression))
    assert f"computed twice by {group.name_of(last)}" in said


@pytest.mark.parametrize("draw", [np.random.standard_normal, lambda shape: torch.randn(shape).numpy()])
def test_samples_that_draw_from_global_generators_in_the_background_are_refused(group: Group, draw: Any) -> None:
    """The prefetch thread runs beside the model: global generators are not seeded there, `rng` is."""

    class Noisy(Rows):
        def fetch(self, indices: Any, generator: np.random.Generator) -> dict[str, Any]:
            batch = super().fetch(indices, generator)
            return {**batch, "x": batch["x"] + torch.from_numpy(draw(tuple(batch["x"].shape))).float()}

    assert "differs in field x:" in refusal(group, built(Regression), Noisy(**numbers(16).fields))


def test_members_with_other_data_are_refused(group: Group) -> None:
    if group.size == 1:
        pytest.skip("takes two members")
    said = refusal(group, built(Regression), numbers(16, seed=group.rank))
    assert "they differ first in field x (unit 0)" in said
    assert group.name_of(1) in said


class Wide(nn.Module):
    """Sums long enough to be shared out over threads; several, because one may come out the same by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        shifted = self.numbers * x[0, 0] + y[0, 0]
        sums = torch.stack([shifted[start:].sin().sum() for start in range(8)])
        return (self.weight * sums).mean()


def test_another_number_of_threads_is_refused_with_the_remedy(group: Group) -> None:
    if group.size == 1:
        pytest.skip("takes two members")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if group.rank == 1 else 1)
        said = refusal(group, Wide())
    finally:
        torch.set_num_threads(threads)
    assert f"{group.name_of(1)} computes other bits than {group.name_of(0)}" in said
    assert re.search(r"they differ first in (the loss|gradient of weight) \(", said)
    assert "threads: 1 and 2" in said
    assert "set train.threads" in said


def test_bits_that_differ_without_a_known_reason_are_refused(group: Group) -> None:
    if group.size == 1:
        pytest.skip("takes two members")

    class Slightly(Regression):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            factor = 1 + 1e-6 * (group.rank == group.size - 1)
            return factor * super().forward(x, y)

    said = refusal(group, built(Slightly))
    assert group.name_of(group.size - 1) in said
    assert "Nothing known of their numerics differs" in said


def test_the_probe_leaves_no_trace(group: Group) -> None:
    """The same weights with it and without; it runs once, before the first step, and never under the float sum."""
    found = []
    for probed in (True, False):
        model = built(lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1)))
        with closing(make_run(group, model, numbers(16), Settings(8, 2))) as run:
            assert run.needs_probe
            run.needs_probe = probed
            for step in run.steps(3):
                units = 0
                for unit in step:
                    units += 1
                    step.backward(nn.functional.mse_loss(model(unit["x"]), unit["y"]))
                mine = len(run.deal(run.batching.units(step.index)))
                assert units == mine + (3 if probed and step.index == 0 else 0)
                assert step.attempts == 1
            found.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    with closing(make_run(group, built(OwnGenerator), numbers(16), Settings(8, 2, sum="float"))) as run:
        train(run, 1)
