"""The exact sum's promise: the same bits at any number of ranks, whoever computed which unit."""

import copy
import random
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from training import (
    NoisyClassifier,
    Regression,
    adamw,
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
from hpcvol.elastic.dealing import Dealing
from hpcvol.torch.settings import Settings


def classified(group: Group, settings: Settings, samples: int, steps: int) -> Any:
    with closing(make_run(group, built(NoisyClassifier), sentences(samples), settings)) as run:
        return outcome(run, train(run, steps))


@pytest.mark.parametrize(
    ("samples", "batch", "unit"),
    [(29, 12, 2), (16, 8, 1), (13, 5, 3), (7, 7, 7), (30, 9, 2)],
    ids=lambda value: str(value),
)
def test_a_model_with_dropout_over_several_epochs(group: Group, samples: int, batch: int, unit: int) -> None:
    """Ragged last batches and units, masked tokens, dropout, clipping, weight decay."""
    settings = Settings(batch, unit, seed=3, clip_norm=0.5)
    found = assert_same_alone(group, lambda ranks: classified(ranks, settings, samples, 7))
    assert len(found["steps"]) == 7
    assert found["steps"][-1][-1] >= 1  # it was more than one epoch


@pytest.mark.parametrize("algorithm", ["ring", "library"])
def test_either_allreduce(group: Group, algorithm: Any) -> None:
    settings = Settings(8, 2, algorithm=algorithm)
    assert_same_alone(group, lambda ranks: classified(ranks, settings, 20, 4))


def test_units_dealt_at_random(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    def share(dealing: Dealing, items: Sequence[Any]) -> list[Any]:
        """Any partition, in any order; other shares every step, some of them empty."""
        workers, worker = dealing.group.size, dealing.group.rank
        chance = random.Random(f"{items[0].step} of {workers}")
        owners = [(chance.random(), chance.randrange(workers), item) for item in items]
        return [item for _, owner, item in sorted(owners, key=lambda one: one[0]) if owner == worker]

    settings = Settings(12, 2, seed=1, clip_norm=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(Dealing, "share", share)
        at_random = classified(group, settings, 40, 5)
    assert_same_alone(group, lambda ranks: classified(ranks, settings, 40, 5))
    assert at_random == classified(group, settings, 40, 5)


def test_the_seed_decides(group: Group) -> None:
    one, other = (classified(group, Settings(8, 2, seed=seed), 20, 2)["model"] for seed in (1, 2))
    assert one != other


def test_every_rank_starts_from_the_first_ones_model(group: Group) -> None:
    def compute(ranks: Group) -> Any:
        model = built(Regression, seed=ranks.members[ranks.rank])
        with closing(make_run(ranks, model, numbers(20), Settings(8, 2), sgd)) as run:
            return outcome(run, train(run, 2))["model"]

    assert len(set(map(str, group.gather_objects(compute(group))))) == 1


def test_generators_between_steps_do_not_tell_who_computed_what(group: Group) -> None:
    def drawn(ranks: Group) -> list[Any]:
        found = []
        with closing(make_run(ranks, built(NoisyClassifier), sentences(20), Settings(8, 2))) as run:
            for step in run.steps(3):
                for unit in step:
                    output = run.model(**unit)
                    step.backward(output["loss"], output["weight"])
                found.append((random.random(), float(np.random.random()), float(torch.rand(()))))
        return found

    found = assert_same_alone(group, drawn)
    assert len(set(found)) == 3


def test_generators_after_an_evaluation_do_not_tell_either(group: Group) -> None:
    def drawn(ranks: Group) -> list[Any]:
        with closing(make_run(ranks, built(Regression), numbers(20), Settings(8, 2))) as run:
            train(run, 1)
            run.evaluate(lambda unit: run.model(**unit), numbers(7))
            return [random.random(), float(torch.rand(()))]

    assert_same_alone(group, drawn)


def test_a_learning_rate_that_follows_the_validation_loss(group: Group) -> None:
    """What decides later weights has to be the same everywhere too."""

    def compute(ranks: Group) -> Any:
        model, held_out = built(Regression), numbers(17, seed=5)
        with closing(make_run(ranks, model, numbers(21), Settings(8, 3, clip_norm=0.7), adamw)) as run:
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(run.optimizer, patience=0)
            steps = []
            for _ in range(4):
                steps += train(run, run.step + 1)
                schedule.step(run.evaluate(lambda unit: run.model(**unit), held_out).loss)
            return outcome(run, steps), [group["lr"] for group in run.optimizer.param_groups]

    assert_same_alone(group, compute)


def test_a_run_that_goes_on_has_the_bits_of_one_that_never_stopped(group: Group) -> None:
    samples, settings = sentences(26), Settings(8, 2, clip_norm=1.0)
    with closing(make_run(group, built(NoisyClassifier), samples, settings)) as run:
        train(run, 3)
        model, optimizer = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
        state = run.state()
        resumed_model = built(NoisyClassifier, seed=9)
        resumed = make_run(group, resumed_model, samples, settings)
        resumed_model.load_state_dict(model)
        resumed.optimizer.load_state_dict(optimizer)
        resumed.load_state(state)
        with closing(resumed):
            went_on = outcome(resumed, train(resumed, 6))
        assert went_on == outcome(run, train(run, 6))
