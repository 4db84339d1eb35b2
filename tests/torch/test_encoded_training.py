"""Training with gradients that a codec encodes: on one host and on two, at any number of ranks."""

from contextlib import closing

import numpy as np
import pytest
import torch
from torch import nn
from training import Regression, built, make_run, numbers, sgd, train
from two_hosts import hosts_of

from hpcvol.collectives.table import Cost
from hpcvol.comm import Group
from hpcvol.errors import ConfigError
from hpcvol.strategies import automatic
from hpcvol.strategies.allreduce import AllReduce
from hpcvol.strategies.feedback import Feedback
from hpcvol.torch.float_sum import FloatGradients
from hpcvol.torch.settings import Settings

STEPS = 8
CODECS = ["bf16", "int8", "topk:0.3+int8", "topk:0.3+dgc:4", "randomk:0.5", "powersgd:2", "ternary"]


def last_loss(group: Group, codec: str) -> float:
    model, samples = built(Regression), numbers(64)
    with closing(make_run(group, model, samples, Settings(32, 8, sum="float", codec=codec), sgd)) as run:
        train(run, STEPS)
        weights = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    assert group.gather_objects(weights.tobytes()) == [weights.tobytes()] * group.size
    with torch.no_grad():
        return float(model(samples.fields["x"], samples.fields["y"]))


@pytest.mark.limit_seconds(240)
@pytest.mark.parametrize("codec", CODECS)
def test_members_keep_the_same_weights_and_the_loss_falls_as_without(group: Group, codec: str) -> None:
    begin, plain = last_loss_at_the_start(), last_loss(group, "none")
    assert last_loss(group, codec) < plain + 0.4 * (begin - plain)


def last_loss_at_the_start() -> float:
    model, samples = built(Regression), numbers(64)
    with torch.no_grad():
        return float(model(samples.fields["x"], samples.fields["y"]))


@pytest.mark.limit_seconds(240)
@pytest.mark.parametrize("codec", ["int8", "topk:0.3", "powersgd:2"])
def test_between_hosts(group: Group, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, plain = last_loss_at_the_start(), last_loss(group, "none")
    with hosts_of(group, monkeypatch) as spread:
        assert last_loss(spread, codec) < plain + 0.4 * (begin - plain)


def kept(feedback: Feedback, group: Group) -> np.ndarray:
    found = feedback.gathered(group)
    assert found is not None
    return found


def take_steps(feedback: Feedback, value: float) -> None:
    residual, _ = feedback.begin()
    assert residual is not None
    residual += value
    feedback.commit()


def test_a_step_that_is_not_committed_changes_nothing(group: Group) -> None:
    feedback = Feedback(10, np.dtype(np.float32), rows=1)
    feedback.place(group, [slice(0, 10)], 0, owns=group.rank == 0)
    take_steps(feedback, 1.0)
    residual, _ = feedback.begin()
    assert residual is not None
    residual += 5
    feedback.place(group, [slice(0, 10)], 0, owns=group.rank == 0)  # somebody died: the step is computed again
    residual, _ = feedback.begin()
    np.testing.assert_array_equal(residual, np.ones(10, np.float32))
    feedback.commit()
    np.testing.assert_array_equal(kept(feedback, group), group.size)


def test_the_sum_stays_when_slices_are_cut_anew(group: Group) -> None:
    feedback = Feedback(12, np.dtype(np.float64), rows=1)
    half = slice(0, 6) if group.rank % 2 == 0 else slice(6, 12)
    feedback.place(group, [half], 0, owns=group.rank < 2)
    take_steps(feedback, 1.0 + group.rank)
    before = kept(feedback, group)
    feedback.place(group, [slice(0, 12)], 0, owns=group.rank == 0)
    np.testing.assert_array_equal(kept(feedback, group), before)
    residual, _ = feedback.begin()
    np.testing.assert_array_equal(residual, before if group.rank == 0 else np.zeros(12))


def test_a_death_while_some_have_taken_up_their_new_slices_counts_nothing_twice(group: Group) -> None:
    feedback = Feedback(12, np.dtype(np.float64), rows=1)
    half = slice(0, 6) if group.rank % 2 == 0 else slice(6, 12)
    feedback.place(group, [half], 0, owns=group.rank < 2)
    take_steps(feedback, 1.0 + group.rank)
    before = kept(feedback, group)
    feedback.place(group, [slice(0, 12)], 0, owns=group.rank == 0)
    if group.rank == 0:
        feedback.begin()
    feedback.place(group, [half], 0, owns=group.rank < 2)
    np.testing.assert_array_equal(kept(feedback, group), before)


def test_who_leaves_hands_its_residual_over(group: Group) -> None:
    if group.size == 1:
        pytest.skip("nobody to hand it to")
    feedback = Feedback(8, np.dtype(np.float64), rows=1)
    feedback.place(group, [slice(0, 8)], 0, owns=group.rank == 0)
    take_steps(feedback, 1.0 + group.rank)
    before, last = kept(feedback, group), group.size - 1
    feedback.inherit(group, {group.members[last]})
    stay = group.part(int(group.rank == last))
    if group.rank != last:
        feedback.place(stay, [slice(0, 8)], 0, owns=stay.rank == 0)
        assert feedback.inherited == {group.members[last]}
        np.testing.assert_array_equal(kept(feedback, stay), before)
    stay.close()


def test_who_stays_after_all_is_inherited_from_by_nobody(group: Group) -> None:
    feedback = Feedback(8, np.dtype(np.float64), rows=1)
    feedback.place(group, [slice(0, 8)], 0, owns=group.rank == 0)
    take_steps(feedback, 1.0 + group.rank)
    before = kept(feedback, group)
    feedback.inherit(group, {group.members[-1]})
    feedback.place(group, [slice(0, 8)], 0, owns=group.rank == 0)
    assert feedback.inherited == set()
    np.testing.assert_array_equal(kept(feedback, group), before)


class Branches(nn.Module):
    """Two layers; every other step uses the one, and those between the other, whose gradients are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 1), nn.Linear(6, 1)
        self.calls = 0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (self.one(x) - y).square().mean() if self.calls % 2 else 0 * self.other(x).mean()


def test_what_is_left_of_a_parameter_that_a_step_does_not_use_is_applied(group: Group) -> None:
    if group.size == 1:
        pytest.skip("nothing is left")
    model, samples = built(Branches), numbers(64)
    settings = Settings(32, 8, sum="float", codec="topk:0.05")
    with closing(make_run(group, model, samples, settings, sgd)) as run:
        train(run, 1)
        before = model.one.weight.detach().clone()
        assert run.residuals.gathered()["float32"].any()
        train(run, 2)
        assert not torch.equal(model.one.weight, before)


def test_padding_between_parameters_stays_out_of_it(group: Group) -> None:
    """A weight that is less than the number of ranks would have it grow step by step."""
    model = built(lambda: nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)))
    strategy = AllReduce(group, codec="sign")
    gradients = FloatGradients(list(model.named_parameters()), strategy, torch.device("cpu"))
    for _ in range(30):
        gradients.reset()
        gradients.backward(model(torch.ones(2, 3)).mean(), 1, last=True)
        gradients.agree([gradients.tell()])
        gradients.finish(1)
        gradients.commit()
    norms = [float(parameter.grad.norm()) for parameter in model.parameters()]
    assert max(norms) < 100 * group.size


def test_what_is_stored_is_owned_by_one(group: Group) -> None:
    feedback = Feedback(8, np.dtype(np.float64), rows=1)
    feedback.place(group, [slice(0, 8)], 0, owns=group.rank == 0)
    whole = np.arange(8.0)
    feedback.load(whole, 7)
    assert feedback.step == 7
    np.testing.assert_array_equal(kept(feedback, group), whole)
    with pytest.raises(ValueError, match="9 elements, expected 8"):
        feedback.load(np.zeros(9), 7)


def test_all_rows_of_a_residual_stay_when_slices_are_cut_anew(group: Group) -> None:
    """Also where the checkpoint is of a codec that keeps less, or more."""
    feedback = Feedback(12, np.dtype(np.float64), rows=2)
    half = slice(0, 6) if group.rank % 2 == 0 else slice(6, 12)
    feedback.place(group, [half], 0, owns=group.rank < 2)
    residual, _ = feedback.begin()
    assert residual is not None
    residual += np.arange(12.0) + group.rank
    feedback.commit()
    before = kept(feedback, group)
    assert before.reshape(2, 12).any(axis=1).all()
    feedback.place(group, [slice(0, 12)], 0, owns=group.rank == 0)
    np.testing.assert_array_equal(kept(feedback, group), before)
    for rows, wanted in ((1, before[:12]), (2, before)):
        other = Feedback(12, np.dtype(np.float64), rows=rows)
        other.place(group, [half], 0, owns=group.rank < min(2, group.size))
        other.load(before, 3)
        if group.size > 1:
            np.testing.assert_array_equal(kept(other, group), wanted)
    feedback.load(before[:12], 3)
    np.testing.assert_array_equal(kept(feedback, group), np.concatenate([before[:12], np.zeros(12)]))


def test_momentum_twice_is_refused(group: Group) -> None:
    settings = Settings(32, 8, sum="float", codec="topk:0.3+dgc")
    with pytest.raises(ConfigError, match="AdamW, has its own: choose SGD"):
        make_run(group, built(Regression), numbers(64), settings)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"codec": "int8"}, r'set train.sum = "float", or strategy.codec = "none"'),
        ({"codec": "int8", "sum": "float", "combine": "median"}, r'strategy.combine = "mean"'),
        ({"codec": "int9", "sum": "float"}, "no codec is called"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        Settings(8, 2, **settings)  # type: ignore[arg-type]


@pytest.mark.limit_seconds(240)
def test_auto_stays_off_where_memory_is_shared(group: Group) -> None:
    with closing(
        make_run(group, built(Regression), numbers(64), Settings(32, 8, sum="float", codec="auto"), sgd)
    ) as run:
        train(run, 4)
        (chooses,) = run.strategy.automatic
        assert (chooses.chosen, chooses.notes) == ("none", [])


@pytest.mark.limit_seconds(240)
def test_auto_chooses_what_costs_least_and_says_so(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a link that is said to be slow, then fast: what residuals hold is sent before gradients go as they are."""
    if group.size == 1:
        pytest.skip("one host")
    links, settings = [Cost(1e-9, 1e-3), Cost(0.0, 0.0)], Settings(32, 8, sum="float", codec="auto")
    monkeypatch.setattr(automatic, "fit", lambda _: links[0])
    monkeypatch.setattr(automatic, "CANDIDATES", {"bf16": 1.0, "int8": 1.0})
    monkeypatch.setattr(automatic, "_INTERVAL", 4)
    monkeypatch.setattr(automatic, "_CHANGED", 0.5)  # whatever steps take it is another time
    with (
        hosts_of(group, monkeypatch) as spread,
        closing(make_run(spread, built(Regression), numbers(64), settings, sgd)) as run,
    ):
        (chooses,) = run.strategy.automatic
        train(run, 4)
        assert chooses.chosen == "int8"
        assert chooses.expected_seconds is not None
        assert chooses.expected_seconds > 0
        assert 'strategy.codec = "auto": int8 from here on' in chooses.notes[-1]
        assert run.residuals.gathered()["float32"].any()
        del links[0]
        train(run, 18)
        assert chooses.chosen == "none"
        assert run.residuals.gathered() == {}
        weights = np.concatenate([p.detach().numpy().ravel() for p in run.model.parameters()])
        assert group.gather_objects(weights.tobytes()) == [weights.tobytes()] * group.size


def test_what_steps_took_counts_for_more_than_what_was_expected(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "CANDIDATES", {"bf16": 1.0, "int8": 1.0, "powersgd:8+bf16": 1.1})
    settings = Settings(32, 8, sum="float", codec="auto")
    with closing(make_run(group, built(Regression), numbers(64), settings, sgd)) as run:
        (chooses,) = run.strategy.automatic
        chooses._predicted = {"none": 1.0, "bf16": 0.5, "int8": 0.6, "powersgd:8+bf16": 0.59}
        found = []
        for took in (0.9, 0.7, 0.8):
            chooses._wanted = chooses._choose()
            chooses._took[chooses._wanted] = took
            found.append(chooses._wanted)
        assert found == ["bf16", "int8", "powersgd:8+bf16"]  # each is tried once, and 0.59 · 1.1 is more than 0.6
        assert chooses._choose() == "int8"
        chooses._wanted, chooses._took["int8"] = "int8", 0.88
        assert chooses._choose() == "int8"  # bf16 took about as long
