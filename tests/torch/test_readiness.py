"""Where tensors lie in a flat vector, and when a bucket of them is complete."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint
from training import Rows, make_run, sgd, train

from hpcvol.comm import Group
from hpcvol.errors import ModelError
from hpcvol.strategies.layout import ALIGNMENT, Layout
from hpcvol.torch.readiness import Readiness
from hpcvol.torch.settings import Settings


@given(st.lists(st.integers(0, 300)), st.integers(1, 500))
def test_a_layout_places_every_tensor_in_one_bucket(numels: list[int], bucket_numel: int) -> None:
    layout = Layout.of(numels, bucket_numel)
    taken = [(start, start + numel) for start, numel in zip(layout.starts, numels, strict=True)][::-1]
    assert all(start % ALIGNMENT == 0 for start in layout.starts)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken))
    edges = [0, *(stop for _, stop in layout.buckets)]
    assert layout.buckets == tuple(itertools.pairwise(edges))
    assert edges[-1] == layout.numel
    for start, numel, bucket in zip(layout.starts, numels, layout.bucket_of, strict=True):
        if numel:
            first, last = layout.buckets[bucket]
            assert first <= start
            assert start + numel <= last
    assert all(stop - start >= bucket_numel for start, stop in layout.buckets[:-1])


def readiness() -> tuple[Readiness, list[int]]:
    pushed: list[int] = []
    return Readiness("abcde", [2, 2, 1, 0, 0], pushed.append), pushed


def run_pass(counts: Readiness, order: str, *, last: bool) -> None:
    counts.begin_pass(last=last)
    for name in order:
        counts.arrived("abcde".index(name))
    counts.end_pass()


def test_buckets_are_pushed_in_order_while_the_last_pass_runs() -> None:
    counts, pushed = readiness()
    run_pass(counts, "edcba", last=True)
    assert pushed == []  # the first pass is watched
    counts.push_rest()
    assert pushed == [0, 1, 2]
    pushed.clear()
    counts.begin_step()
    run_pass(counts, "edcba", last=False)
    assert pushed == []
    counts.begin_pass(last=True)
    for name, so_far in (("c", []), ("e", []), ("d", [0, 1]), ("b", [0, 1]), ("a", [0, 1, 2])):
        counts.arrived("abcde".index(name))
        assert pushed == so_far
    counts.end_pass()
    counts.push_rest()
    assert pushed == [0, 1, 2]


def test_an_unused_parameter_keeps_its_bucket_back() -> None:
    counts, pushed = readiness()
    run_pass(counts, "edcba", last=True)
    counts.push_rest()
    pushed.clear()
    counts.begin_step()
    run_pass(counts, "edba", last=True)
    assert pushed == [0]
    counts.push_rest()
    assert pushed == [0, 1, 2]


def test_a_gradient_in_parts_keeps_its_bucket_back_from_then_on() -> None:
    counts, pushed = readiness()
    run_pass(counts, "eddcba", last=True)
    counts.push_rest()
    pushed.clear()
    counts.begin_step()
    run_pass(counts, "eddcba", last=True)
    assert pushed == []


def test_a_part_that_comes_too_late_is_refused() -> None:
    counts, _ = readiness()
    run_pass(counts, "edcba", last=True)
    counts.begin_step()
    with pytest.raises(ModelError, match="'d' got a part"):
        run_pass(counts, "edd", last=True)


class Reentrant(torch.nn.Module):
    """One weight used in two segments whose activations are computed again in the backward pass, and one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        for _ in range(2):
            x = checkpoint(self.shared, x, use_reentrant=True).tanh()
        return self.head(x).square().mean()


@pytest.mark.parametrize("sum", ["exact", "float"])
def test_reentrant_activation_checkpointing(group: Group, sum: str) -> None:
    samples = Rows(x=torch.randn(24, 6, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    model = Reentrant()
    run = make_run(group, model, samples, Settings(24, 3, sum=sum), sgd)
    reference = Reentrant().double()
    for step in range(4):
        reference.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
        reference.zero_grad()
        reference(samples.fields["x"].double()).backward()
        train(run, step + 1)
        for name, parameter in model.named_parameters():
            wanted = dict(reference.named_parameters())[name].grad
            assert parameter.grad is not None
            assert wanted is not None
            torch.testing.assert_close(parameter.grad.double(), wanted, rtol=1e-4, atol=1e-7)
    run.close()
