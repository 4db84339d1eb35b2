"""Training with a member whose gradients are garbage."""

from contextlib import closing

import pytest
import torch
from training import Regression, built, make_run, numbers, sgd, train

from hpcvol.comm import Group
from hpcvol.errors import ConfigError
from hpcvol.torch.settings import Settings

STEPS = 5


def last_loss(group: Group, combine: str, *, garbage: bool) -> float:
    """Train on 64 samples; the last member's gradients are the others' turned round and a hundred times as large."""
    model, samples = built(Regression), numbers(64)
    if garbage and group.rank == group.size - 1:
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: -100 * gradient)
    settings = Settings(32, 8, sum="float", combine=combine)
    with closing(make_run(group, model, samples, settings, sgd)) as run:
        train(run, STEPS)
    with torch.no_grad():
        return float(model(samples.fields["x"], samples.fields["y"]))


@pytest.mark.limit_seconds(240)
def test_training_converges_with_one_of_four_sending_garbage(group: Group) -> None:
    if group.size < 4:
        pytest.skip("one of four")
    quiet = last_loss(group, "mean", garbage=False)
    for combine in ("median", "centred_clip:0.5"):
        assert last_loss(group, combine, garbage=True) < 1.2 * quiet
    assert not last_loss(group, "mean", garbage=True) < 10 * quiet


def test_a_last_step_of_too_few_units_is_refused_at_the_start(group: Group) -> None:
    with pytest.raises(ConfigError, match="last step of an epoch has only 2 units"):
        make_run(group, built(Regression), numbers(64 + 16), Settings(32, 8, sum="float", combine="median"), sgd)


def test_robust_combinations_need_the_float_sum(group: Group) -> None:
    del group
    with pytest.raises(ConfigError, match=r'set train.sum = "float"'):
        Settings(8, 2, combine="median")
