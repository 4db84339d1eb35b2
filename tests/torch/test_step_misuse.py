"""What a loop of the user's own can do wrong, and what it is told."""

import math
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn
from training import Regression, Rows, built, make_run, numbers, sgd, train

from hpcvol.comm import Group
from hpcvol.errors import ConfigError, DataError, ModelError
from hpcvol.torch.run import Run
from hpcvol.torch.settings import Settings

Misuse = Callable[[Run], None]


def loss_of(run: Run, unit: Any) -> torch.Tensor:
    loss: torch.Tensor = run.model(**unit)
    return loss


def leaves_early(run: Run) -> None:
    for step in run.steps(1):
        for unit in step:
            step.backward(loss_of(run, unit))
            break


def never_iterates(run: Run) -> None:
    for _ in run.steps(1):
        pass


def backward_twice(run: Run) -> None:
    for step in run.steps(1):
        for unit in step:
            step.backward(loss_of(run, unit))
            step.backward(loss_of(run, unit))


def backward_outside(run: Run) -> None:
    for step in run.steps(1):
        step.backward(torch.zeros((), requires_grad=True))


def backward_after(run: Run) -> None:
    for step in run.steps(1):
        for unit in step:
            step.backward(loss_of(run, unit))
        step.backward(loss_of(run, unit))


def no_backward(run: Run) -> None:
    for step in run.steps(1):
        for _ in step:
            pass


def skips_a_unit(run: Run) -> None:
    for step in run.steps(2):
        for unit in step:
            if unit.step == 1:
                continue
            step.backward(loss_of(run, unit))


def iterates_twice(run: Run) -> None:
    for step in run.steps(1):
        for _ in range(2):
            for unit in step:
                step.backward(loss_of(run, unit))


def many_losses(run: Run) -> None:
    for step in run.steps(1):
        for unit in step:
            step.backward(run.model.layers(unit["x"]))


def not_a_tensor(run: Run) -> None:
    for step in run.steps(1):
        for unit in step:
            step.backward(loss_of(run, unit).item())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (leaves_early, "step 0 was left before its bag was empty"),
        (never_iterates, "step 0 was left before its bag was empty"),
        (backward_twice, "step 0: backward\\(\\) was called twice for one unit, or outside"),
        (backward_outside, "step 0: backward\\(\\) was called twice for one unit, or outside"),
        (backward_after, "step 0: backward\\(\\) was called twice for one unit, or outside"),
        (no_backward, "step 0: unit 0 was not given to step.backward"),
        (skips_a_unit, "step 1: unit \\d was not given to step.backward"),
        (iterates_twice, "step 0 is iterated over a second time"),
        (many_losses, "the loss is a tensor of shape \\[2, 1\\]: expected the mean"),
        (not_a_tensor, "the loss is a float: expected the mean"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_misuse_is_told(group: Group, misuse: Misuse, said: str) -> None:
    with (
        closing(make_run(group, built(Regression), numbers(16), Settings(8, 2), sgd)) as run,
        pytest.raises(ModelError, match=said),
    ):
        misuse(run)


@pytest.mark.parametrize("weight", [-1, 0.5, math.nan, math.inf, 2**29, "many", [1, 2], torch.ones(2)])
def test_weights_that_count_nothing_are_refused(group: Group, weight: Any) -> None:
    with closing(make_run(group, built(Regression), numbers(16), Settings(8, 2), sgd)) as run:
        step = next(run.steps(1))
        unit = next(iter(step))
        with pytest.raises(ModelError, match=r"a unit's weight is .* expected a whole number below"):
            step.backward(loss_of(run, unit), weight)


def test_a_loss_that_is_not_finite_stops_all_and_names_the_unit(group: Group) -> None:
    samples = numbers(16)
    samples.fields["y"][5] = math.nan
    with closing(make_run(group, built(Regression), samples, Settings(16, 1), sgd)) as run:
        units = run.batching.units(0)
        unit = next(span.index for span in units if run.loader.load(span)["y"].isnan().any())
        owner = next(rank for rank, units in enumerate(group.gather_objects(indices(run))) if unit in units)
        with pytest.raises(
            ModelError, match=f"step 0: the loss of unit {unit}, computed by member {owner}, is nan"
        ) as e:
            train(run, 1)
    assert e.value.everywhere


def indices(run: Run) -> list[int]:
    return [span.index for span in run.deal(run.batching.units(0))]


def test_fewer_units_than_workers_warn_once_and_train(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level("WARNING", "hpcvol"),
        closing(make_run(group, built(Regression), numbers(8), Settings(4, 2), sgd)) as run,
    ):
        train(run, 4)
    idle = [record.getMessage() for record in caplog.records if "idle" in record.getMessage()]
    expected = group.size > 2 and group.rank == 0
    assert len(idle) == expected
    if expected:
        assert f"a step has 2 units and there are {group.size} workers: {group.size - 2} of them idle" in idle[0]


def test_the_last_units_of_an_epoch_may_be_fewer_than_workers(group: Group) -> None:
    with closing(make_run(group, built(Regression), numbers(9), Settings(8, 2), sgd)) as run:
        steps = train(run, 4)
    assert [step.num_samples for step in steps] == [8, 1, 8, 1]
    assert [step.epoch for step in steps] == [0, 0, 1, 1]


def test_a_batch_in_words(group: Group) -> None:
    with closing(make_run(group, built(Regression), numbers(70), Settings(64, 8))) as run:
        workers = "1 worker" if group.size == 1 else f"{group.size} workers"
        assert run.describe_batch() == f"batch 64 = 8 units of 8 over {workers}"


def test_no_samples_and_unknown_sums_are_refused(group: Group) -> None:
    with pytest.raises(ConfigError, match="0 samples"):
        make_run(group, built(Regression), Rows(x=torch.empty(0, 6)), Settings(8, 2))
    with pytest.raises(ConfigError, match=r'sum = "exakt"'):
        Settings(8, 2, sum="exakt")


def test_an_overflow_computes_the_step_again(group: Group) -> None:
    """One unit's gradient outgrows the range; the whole step is redone, and its mean is the right one."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.other = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.weight * x).mean() + self.other

    samples = Rows(x=torch.tensor([1.0, 2.0, 3.0, 2.0**40]))
    with closing(make_run(group, Steep(), samples, Settings(4, 1), sgd)) as run:
        units = 0
        for step in run.steps(2):
            for unit in step:
                units += not run.needs_probe
                step.backward(loss_of(run, unit))
            assert step.attempts == (2 if step.index == 0 else 1)
            assert run.model.weight.grad == torch.tensor((2.0**40 + 6) / 4)
            assert run.model.other.grad == 1.0
            assert step.gradient_norm == pytest.approx((2.0**40 + 6) / 4)
    assert units == 3 * len(run.deal(run.batching.units(0)))


@pytest.mark.parametrize("kind", ["exact", "float"])
def test_an_optimizer_step_left_in_the_loop_is_refused(group: Group, kind: str) -> None:
    model = built(Regression)
    with closing(make_run(group, model, numbers(16), Settings(8, 2, sum=kind))) as run:
        step = next(run.steps(1))
        unit = next(iter(step))
        step.backward(loss_of(run, unit))
        with pytest.raises(ModelError, match=r"optimizer\.step\(\) was called by the loop"):
            run.optimizer.step()
    run.optimizer.step()  # the run is over


def test_evaluate_takes_what_start_takes(group: Group) -> None:
    model = built(Regression)
    samples = numbers(16)
    with closing(make_run(group, model, samples, Settings(8, 2))) as run:
        direct = run.evaluate(lambda unit: model(unit["x"], unit["y"]), samples)
        listed = [(x, y) for x, y in zip(samples.fields["x"], samples.fields["y"], strict=True)]
        assert run.evaluate(lambda unit: model(unit["x"], unit["y"]), listed) == direct
        with pytest.raises(DataError, match="nowhere"):
            run.evaluate(lambda unit: model(unit["x"], unit["y"]), "nowhere")
