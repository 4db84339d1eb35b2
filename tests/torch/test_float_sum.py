"""The float sum, clipping and norms: close to double precision, the same on all ranks; and the exact sum no worse."""

import copy
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from training import (
    NoisyClassifier,
    Regression,
    Rows,
    assert_same_alone,
    built,
    make_run,
    numbers,
    outcome,
    sentences,
    sgd,
    train,
)

from hpcvol.comm import Group
from hpcvol.torch.exact import target_bits
from hpcvol.torch.gradients import clip, gradient_norm
from hpcvol.torch.outputs import read_output
from hpcvol.torch.run import Run
from hpcvol.torch.settings import Settings


def gradient_in_double(run: Run) -> dict[str, Any]:
    """The gradient of the step to come, over the whole batch in one process, in double precision."""
    model = copy.deepcopy(run.model).double()
    units = [run.loader.load(span) for span in run.batching.units(run.step)]
    batch = {name: torch.cat([unit[name] for unit in units]) for name in units[0]}
    output = read_output(model(**{name: v.double() if v.is_floating_point() else v for name, v in batch.items()}))
    output.loss.backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def quiet() -> Any:
    model = NoisyClassifier()
    model.dropout.p = 0.0
    return model


def errors_of_training(group: Group, sum: str, seed: int) -> list[float]:
    """Largest error of a step's gradient, relative to its largest element, tensor by tensor and step by step."""
    found = []
    with closing(make_run(group, built(quiet, seed), sentences(48, seed=seed), Settings(48, 2, sum=sum), sgd)) as run:
        for index in range(5):
            reference = gradient_in_double(run)
            train(run, index + 1)
            for name, parameter in run.model.named_parameters():
                assert parameter.grad is not None
                error = (parameter.grad.double() - reference[name]).abs().max() / reference[name].abs().max()
                found.append(float(error))
    return found


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_gradients_are_close_to_those_in_double_precision(group: Group, sum: str) -> None:
    assert max(errors_of_training(group, sum, seed=0)) < 2e-6


@pytest.mark.limit_seconds(240)  # it trains many times
def test_training_is_no_worse_exact_than_float(group: Group) -> None:
    """Both compute a unit's gradient in float32; what the sums add to that error, over seeds, steps and tensors."""
    exact = [errors_of_training(group, "exact", seed) for seed in range(12)]
    floats = [errors_of_training(group, "float", seed) for seed in range(12)]
    assert math.fsum(map(math.fsum, exact)) <= math.fsum(map(math.fsum, floats))
    assert math.fsum(map(max, exact)) <= math.fsum(map(max, floats))


def test_the_sum_itself_is_as_good_exact_as_float(group: Group) -> None:
    """Units whose gradients are known without error: 64 terms that cancel."""

    class Given(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(500))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.weight * x).sum(1).mean()

    x = torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    samples = Rows(x=torch.cat([x, -x + 1e-4 * x.flip(0)]))
    wanted = samples.fields["x"].double().mean(0)
    worst = {}
    for sum in ("exact", "float"):
        with closing(make_run(group, Given(), samples, Settings(128, 1, sum=sum), sgd)) as run:
            train(run, 2)
            assert run.model.weight.grad is not None
            worst[sum] = float((run.model.weight.grad - wanted).abs().max())
    largest = float(samples.fields["x"].abs().max())
    assert worst["exact"] <= largest * 2.0 ** -(1 + target_bits(128, torch.float32))
    assert worst["exact"] < 1.5 * worst["float"]


@pytest.mark.parametrize("ranks_have", ["ragged", "even"])
def test_ragged_shares_weigh_by_their_samples(group: Group, ranks_have: str) -> None:
    """A worker's units are computed in one pass, and workers have other numbers of samples."""
    batch = 15 if ranks_have == "ragged" else 12
    model = built(lambda: Regression().double())
    samples = numbers(batch)
    samples.fields = {name: values.double() for name, values in samples.fields.items()}
    with closing(make_run(group, model, samples, Settings(batch, 2, sum="float"), sgd)) as run:
        reference = gradient_in_double(run)
        for step in run.steps(1):
            units = 0
            for unit in step:
                units += 1
                step.backward(run.model(**unit))
            assert units <= 1
        for name, parameter in run.model.named_parameters():
            torch.testing.assert_close(parameter.grad, reference[name], rtol=1e-12, atol=1e-13)
        assert step.weight == step.num_samples == batch
        whole = built(lambda: Regression().double())
        assert step.loss == pytest.approx(whole(**samples.fields).item(), rel=1e-12)


@pytest.mark.parametrize("algorithm", ["ring", "library"])
def test_all_ranks_have_the_same_bits_under_the_float_sum(group: Group, algorithm: Any) -> None:
    settings = Settings(12, 2, sum="float", clip_norm=0.5, algorithm=algorithm)
    with closing(make_run(group, built(NoisyClassifier), sentences(29), settings)) as run:
        found = outcome(run, train(run, 4))
    assert group.gather_objects(found) == [found] * group.size


def test_a_unit_that_zeroes_gradients_itself_loses_nothing(group: Group) -> None:
    """An old habit, harmless here."""
    found = []
    for habit in ("none", "drops", "zeroes"):
        model = built(Regression)
        with closing(make_run(group, model, numbers(8), Settings(8, 1, sum="float"), sgd)) as run:
            for step in run.steps(2):
                for unit in step:
                    if habit != "none":
                        run.optimizer.zero_grad(set_to_none=habit == "drops")
                    step.backward(model(**unit))
                    if habit != "none":
                        run.optimizer.zero_grad(set_to_none=habit == "drops")
        found.append([parameter.tolist() for parameter in model.parameters()])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_gradients_stay_where_ranks_share_them(group: Group, sum: str) -> None:
    """Whatever a loop does to the model between steps; and it changes nothing."""

    def habits(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        model.to("cpu").to(torch.float32)
        model.load_state_dict(copy.deepcopy(model.state_dict()))

    places, found = [], []
    for habit in (lambda *_: None, habits):
        model = built(Regression)
        with closing(make_run(group, model, numbers(8), Settings(8, 2, sum=sum), sgd)) as run:
            for index in range(4):
                train(run, index + 1)
                gradients = [parameter.grad for parameter in model.parameters()]
                places.append([gradient.data_ptr() for gradient in gradients if gradient is not None])
                habit(model, run.optimizer)
            lines = Path("/proc/self/maps").read_text().splitlines()
            maps = [line.split()[0].split("-") for line in lines if "/memfd:hpcvol " in line]
        shared = [(int(low, 16), int(high, 16)) for low, high in maps]
        assert all(any(low <= place < high for low, high in shared) for place in places[-1])
        assert min(places[-1]) % 64 == 0
        found.append([parameter.tolist() for parameter in model.parameters()])
    assert places[:4] == places[:1] * 4
    assert places[4:] == places[4:5] * 4
    assert found[0] == found[1]


@pytest.mark.parametrize("sum", ["exact", "float"])
@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_clipping_is_torchs_clipping(group: Group, sum: str, limit: float) -> None:
    model = built(Regression)
    with closing(make_run(group, model, numbers(16), Settings(16, 2, sum=sum, clip_norm=limit), sgd)) as run:
        reference = copy.deepcopy(model)
        for parameter, gradient in zip(reference.parameters(), gradient_in_double(run).values(), strict=True):
            parameter.grad = gradient.float()
        norm = float(torch.nn.utils.clip_grad_norm_(reference.parameters(), limit))
        (step,) = train(run, 1)
    assert step.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert (norm > limit) == (limit < 1)
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    assert set(group.gather_objects(step.gradient_norm)) == {step.gradient_norm}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_norms_of_any_dtype(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((3, 5), (17,), ())]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
    parameters.append(torch.nn.Parameter(torch.zeros(2)))  # unused: no gradient
    flat = torch.cat([p.grad.double().reshape(-1) for p in parameters if p.grad is not None])
    assert gradient_norm(parameters) == pytest.approx(float(flat.norm()), rel=1e-14)
    clip(parameters, 4.0, 1.0)
    clipped = torch.cat([p.grad.double().reshape(-1) for p in parameters if p.grad is not None])
    torch.testing.assert_close(clipped, flat / 4, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)


def test_norms_are_exact_functions_of_the_gradient(group: Group) -> None:
    def compute(ranks: Group) -> list[float]:
        with closing(make_run(ranks, built(NoisyClassifier), sentences(24), Settings(8, 1))) as run:
            return [step.gradient_norm for step in train(run, 3)]

    assert all(norm > 0 for norm in assert_same_alone(group, compute))
