"""Buffers: BatchNorm trains exactly; constants, counters, and what cannot be a unit's pure function."""

import copy
import math
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn
from training import Regression, Rows, assert_same_alone, built, make_run, numbers, outcome, sgd, train

from hpcvol.comm import Group
from hpcvol.errors import ModelError
from hpcvol.torch.settings import Settings


class Block(nn.Module):
    """The basic block of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016."""

    def __init__(self, planes_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = (
            nn.Sequential(nn.Conv2d(planes_in, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
            if stride != 1 or planes_in != planes
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + identity)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layers = nn.Sequential(Block(4, 4, 1), Block(4, 8, 2))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.layers(torch.relu(self.bn1(self.conv1(x))))
        return nn.functional.cross_entropy(self.fc(x.mean((2, 3))), y)


def pictures(count: int) -> Rows:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 6, 6, generator=generator)
    return Rows(x=x, y=(x.mean((1, 2, 3)) * 30).long().clamp(0, 2))


def test_a_resnet_trains_exactly(group: Group) -> None:
    settings = Settings(12, 4, clip_norm=5.0)

    def compute(ranks: Group) -> Any:
        model = built(ResNet)
        with closing(make_run(ranks, model, pictures(28), settings, lambda p: torch.optim.SGD(p, 0.1, 0.9))) as run:
            steps = train(run, 6)
            assert int(model.bn1.num_batches_tracked) == 6
            assert not torch.equal(model.bn1.running_mean, torch.zeros(4))
            assert steps[-1].loss < steps[0].loss
            held_out = run.evaluate(lambda unit: run.model(**unit), pictures(9))
            return outcome(run, steps), held_out

    assert_same_alone(group, compute)


def test_running_statistics_are_those_of_the_units_averaged_by_weight(group: Group) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(6, momentum=0.25), nn.Linear(6, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return nn.functional.mse_loss(self.head(self.norm(x)), y)

    model, samples = built(Normed), numbers(11)
    with closing(make_run(group, model, samples, Settings(11, 4), sgd)) as run:
        units = [run.loader.load(span)["x"].double() for span in run.batching.units(0)]
        train(run, 1)
    mean = sum(len(x) * (0.25 * x.mean(0)) for x in units) / 11
    variance = sum(len(x) * (0.75 + 0.25 * x.var(0)) for x in units) / 11
    torch.testing.assert_close(model.norm.running_mean, mean.float())
    torch.testing.assert_close(model.norm.running_var, variance.float())
    assert int(model.norm.num_batches_tracked) == 1


def test_batchnorm_under_the_float_sum_is_the_same_on_all_ranks(group: Group) -> None:
    model = built(ResNet)
    with closing(make_run(group, model, pictures(16), Settings(8, 2, sum="float"))) as run:
        found = outcome(run, train(run, 3))["model"]
    assert group.gather_objects(found) == [found] * group.size
    assert int(model.bn1.num_batches_tracked) == 3


class WithBuffer(Regression):
    """A regression that does `change(self)` with its buffer at every call."""

    def __init__(self, buffer: torch.Tensor, change: Any) -> None:
        super().__init__()
        self.register_buffer("state", buffer)
        self.change = change

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = super().forward(x, y)
        self.change(self, x)
        return loss


def trained_with(group: Group, buffer: torch.Tensor, change: Any, steps: int = 2, samples: int = 16) -> Any:
    """Train with a buffer that units change, on all ranks and alone, and return what becomes of it."""

    def compute(ranks: Group) -> Any:
        model = built(lambda: WithBuffer(buffer.clone(), change))
        with closing(make_run(ranks, model, numbers(samples), Settings(8, 2))) as run:
            run.needs_probe = False  # refusals of the probe are tested with the probe
            train(run, steps)
        return model.state.tolist()

    return assert_same_alone(group, compute)


def test_constants_with_infinities_stay(group: Group) -> None:
    mask = torch.full((3, 3), -math.inf).triu(1)
    assert trained_with(group, mask, lambda model, x: model.layers(x)) == mask.tolist()


def test_a_bool_that_no_unit_changes_is_welcome(group: Group) -> None:
    assert trained_with(group, torch.tensor([True, False]), lambda *_: None) == [True, False]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_counters_count_steps(group: Group, dtype: torch.dtype) -> None:
    def count(model: Any, _: torch.Tensor) -> None:
        model.state += torch.tensor([1, 3], dtype=dtype)

    assert trained_with(group, torch.tensor([7, 0], dtype=dtype), count, steps=3) == [10, 9]


def test_a_counter_goes_down_through_the_end_of_its_dtype(group: Group) -> None:
    def count(model: Any, _: torch.Tensor) -> None:
        model.state -= 1

    assert trained_with(group, torch.tensor([1], dtype=torch.uint8), count, steps=3) == [254]


def test_a_buffer_that_is_assigned_and_not_changed_in_place(group: Group) -> None:
    def assign(model: Any, x: torch.Tensor) -> None:
        model.state = model.state + x.detach().mean()

    found = trained_with(group, torch.zeros(()), assign, steps=2)
    assert found == pytest.approx(float(numbers(16).fields["x"].mean()) * 2, abs=1e-6)


def refused(group: Group, buffer: torch.Tensor, change: Any, said: str) -> None:
    model = built(lambda: WithBuffer(buffer, change))
    with closing(make_run(group, model, numbers(16), Settings(8, 2))) as run:
        run.needs_probe = False
        with pytest.raises(ModelError, match=said):
            train(run, 2)


def test_a_counter_that_differs_between_units_is_refused(group: Group) -> None:
    """Of a worker with two units at least this worker sees it, of one unit each all workers."""
    if group.size == 3:
        pytest.skip("three workers have two units and one: the second hears of it by the end of the job")

    def count(model: Any, x: torch.Tensor) -> None:
        model.state += int(x[0, 0] * 1000)

    refused(group, torch.zeros((), dtype=torch.int64), count, "buffer 'state' was changed differently by two")


def test_a_counter_that_differs_between_workers_is_refused_on_all(group: Group) -> None:
    if group.size == 1:
        pytest.skip("takes two workers")
    model = built(lambda: WithBuffer(torch.zeros(2, dtype=torch.int64), lambda model, _: model.state.add_(group.rank)))
    with closing(make_run(group, model, numbers(16), Settings(8, 2))) as run:
        run.needs_probe = False
        with pytest.raises(ModelError, match="buffer 'state' was changed differently by two workers") as caught:
            train(run, 1)
    assert caught.value.everywhere
    assert len(set(group.gather_objects(str(caught.value)))) == 1


def test_buffers_that_cannot_be_averaged_or_counted_are_refused(group: Group) -> None:
    def flip(model: Any, _: torch.Tensor) -> None:
        model.state.logical_not_()

    refused(group, torch.tensor([True]), flip, "buffer 'state' of dtype torch.bool was changed")

    def grow(model: Any, _: torch.Tensor) -> None:
        model.state = torch.zeros(len(model.state) + 1)

    refused(group, torch.zeros(2), grow, r"buffer 'state' became \[3\]")

    def cast(model: Any, _: torch.Tensor) -> None:
        model.state = model.state.double()

    refused(group, torch.zeros(2), cast, "buffer 'state' became .*float64")

    def appear(model: Any, _: torch.Tensor) -> None:
        model.register_buffer("another", torch.zeros(1))

    refused(group, torch.zeros(2), appear, "buffer 'another' appeared")

    def vanish(model: Any, _: torch.Tensor) -> None:
        model.state = None

    refused(group, torch.zeros(2), vanish, "buffer 'state' vanished")


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_change_that_is_not_finite_is_refused_by_name(group: Group, bad: float) -> None:
    def spoil(model: Any, x: torch.Tensor) -> None:
        if float(x[0, 0]) > 0.5:
            model.state[1] = bad

    refused(group, torch.zeros(2), spoil, "buffer state holds")


def test_an_evaluation_leaves_buffers_as_committed(group: Group) -> None:
    """A model that counts its calls, in evaluation mode too."""

    def count(model: Any, x: torch.Tensor) -> None:
        model.state += x.detach().mean()

    def compute(ranks: Group) -> Any:
        model = built(lambda: WithBuffer(torch.zeros(()), count))
        with closing(make_run(ranks, model, numbers(16), Settings(8, 2))) as run:
            train(run, 1)
            before = copy.deepcopy(model.state_dict())
            found = run.evaluate(lambda unit: run.model(**unit) + model.state.abs(), numbers(9, seed=3))
            assert torch.equal(model.state, before["state"])
            return found, outcome(run, train(run, 2))

    assert_same_alone(group, compute)


def test_buffers_take_up_a_checkpoint(group: Group) -> None:
    with closing(make_run(group, built(ResNet), pictures(16), Settings(8, 2))) as run:
        train(run, 2)
        model, optimizer = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
        state = run.state()
        went_on = outcome(run, train(run, 4))
    with closing(make_run(group, built(ResNet, seed=1), pictures(16), Settings(8, 2))) as resumed:
        resumed.model.load_state_dict(model)
        resumed.optimizer.load_state_dict(optimizer)
        resumed.load_state(state)
        assert outcome(resumed, train(resumed, 4)) == went_on


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_changing_buffer_that_checkpoints_would_lose_is_refused(group: Group, dtype: torch.dtype) -> None:
    class Forgetful(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1, dtype=dtype), persistent=False)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return super().forward(x, y)

    with (
        closing(make_run(group, built(Forgetful), numbers(16), Settings(8, 2))) as run,
        pytest.raises(ModelError, match=r"buffer 'seen' is changed by training .* persistent=True"),
    ):
        train(run, 1)
