"""Training on ranks of one machine as if they were on two hosts: buckets are combined while others are computed."""

from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn
from training import DEVICE, Regression, assert_same_alone, built, make_run, numbers, outcome, sgd, train
from two_hosts import hosts_of

from hpcvol.comm import Group
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.torch.exact import ExactSum, Term
from hpcvol.torch.optimizer import DistributedOptimizer
from hpcvol.torch.settings import Settings

SMALL = 64  # bytes a bucket: nearly every parameter has its own


class Alternating(nn.Module):
    """Layers of two precisions by turns; units of samples whose `x` begins with a negative number use half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.singles = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.doubles = nn.ModuleList(nn.Linear(6, 6).double() for _ in range(3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        some = bool(x[0, 0] < 0)
        for single, double in zip(self.singles, self.doubles, strict=True):
            x = single(x.float()).tanh()
            x = x if some else double(x.double()).tanh()
        return (x.sum(1, keepdim=True) - y).square().mean()


@pytest.mark.parametrize("sum", ["exact", "float"])
@pytest.mark.parametrize("batch", [3, 8])
def test_sums_of_two_precisions_go_in_one_order(
    group: Group, sum: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks without units, and such as use half of the parameters, push after their pass what others push during it."""

    def compute(ranks: Group) -> Any:
        settings = Settings(batch, 1, sum=sum, bucket_nbytes=SMALL)
        with (
            hosts_of(ranks, monkeypatch) as spread,
            closing(make_run(spread, built(Alternating), numbers(19), settings, sgd)) as run,
        ):
            return outcome(run, train(run, 4))

    if sum == "exact":
        assert_same_alone(group, compute)
    else:
        assert len({str(found["model"]) for found in group.gather_objects(compute(group))}) == 1


@pytest.mark.parametrize("zero", ["optimizer", "model", "by hand"])
def test_a_wrapped_optimizer_averages_whoever_zeroes_gradients(
    group: Group, zero: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hosts_of(group, monkeypatch) as spread:
        monkeypatch.setattr("hpcvol.torch.optimizer.start_mpi", lambda: spread)
        model, reference = built(Regression), built(Regression)
        optimizer, plain = DistributedOptimizer(sgd(model.parameters())), sgd(reference.parameters())
        for step in range(4):
            fields = numbers(4 * group.size, seed=step).fields
            if zero == "optimizer":
                optimizer.zero_grad()
            elif zero == "model":
                model.zero_grad()
            else:
                for parameter in model.parameters():
                    parameter.grad = None
            model(**{name: v[4 * group.rank : 4 * group.rank + 4] for name, v in fields.items()}).backward()
            optimizer.step()
            plain.zero_grad()
            reference(**fields).backward()
            plain.step()
        for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_a_step_that_weighs_nothing_leaves_nothing_on_its_way(
    group: Group, sum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hosts_of(group, monkeypatch) as spread:
        settings = Settings(4, 1, sum=sum)
        with closing(make_run(spread, built(Regression), numbers(16), settings, sgd)) as run:
            dropped = []
            drop = run.gradients.drop
            monkeypatch.setattr(run.gradients, "drop", lambda: (dropped.append(run.step), drop()))
            before = [p.tolist() for p in run.model.parameters()]
            for step in run.steps(3):
                for unit in step:
                    step.backward(run.model(**unit), 0 if step.index == 1 else None)
                if step.index < 2:
                    assert (before == [p.tolist() for p in run.model.parameters()]) == (step.index == 1)
                    before = [p.tolist() for p in run.model.parameters()]
            assert dropped == [1]


def test_sums_on_another_device_are_combined_when_they_are_on_the_host(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum that is kept beside the memory in which it is combined, as that of a GPU is."""
    with hosts_of(group, monkeypatch) as spread:
        strategy = AllReduce(spread)
        total = ExactSum([Term("one", 40), Term("other", 5)], 8, strategy, torch.device("cpu"))
        total._on_cpu = False
        total._total, total._means = torch.zeros_like(total._total), torch.zeros_like(total._means)
        total._slices = [total._part(total._total, index) for index in range(2)]
        for step in range(2):
            total.reset()
            for index, numel in enumerate((40, 5)):
                total.add(index, torch.full((numel,), float(group.rank + index + step)), 1)
            total.push_all()
            while not total.agree():
                total.drop()
                total.reset()
                for index, numel in enumerate((40, 5)):
                    total.add(index, torch.full((numel,), float(group.rank + index + step)), 1)
                total.push_all()
            total.finish(group.size)
            for index in range(2):
                wanted = sum(rank + index + step for rank in range(group.size)) / group.size
                assert set(total.mean(index).tolist()) == {wanted}
            total.commit()
        strategy.close()


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_a_run_that_was_closed_has_let_its_model_go(group: Group, sum: str) -> None:
    """Gradients that come later are not copied to its memory, where they would take the place of what was kept."""
    model = built(Regression)
    with closing(make_run(group, model, numbers(16), Settings(8, 1, sum=sum), sgd)) as run:
        train(run, 1)
    kept = [parameter.grad for parameter in model.parameters()]
    before = [gradient.tolist() for gradient in kept]
    for parameter in model.parameters():
        parameter.grad = None
    fields = {name: values.to(DEVICE) for name, values in numbers(4, seed=9).fields.items()}
    model(**fields).backward()
    assert [gradient.tolist() for gradient in kept] == before
    assert all(p.grad.data_ptr() != gradient.data_ptr() for p, gradient in zip(model.parameters(), kept, strict=True))
