"""Supernodes: groups that train by themselves for a period, and go on from the mean."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from training import DEVICE, Regression, adamw, built, make_run, numbers, train
from two_hosts import as_hosts

from hpcvol.comm import Group
from hpcvol.elastic.dealing import Terms
from hpcvol.elastic.units import Batching
from hpcvol.errors import ConfigError, HpcvolError, ModelError
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.supernodes import Supernodes
from hpcvol.torch.loader import Loader
from hpcvol.torch.settings import Settings

BATCH, UNIT, SAMPLES = 24, 3, 72


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def regression() -> nn.Module:
    return Regression(6, 20)


class Normalised(nn.Module):
    """Statistics that are averaged, a counter, and a constant whose mean cannot be taken."""

    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 1))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.layers(x) + self.mask[0], y)


def settings(spec: Supernodes | None, **more: Any) -> Settings:
    return Settings(BATCH, UNIT, **{"sum": "float", "supernodes": spec, **more})


def expected(build: Any, optimizer: Any, sizes: Sequence[int], period: int, steps: int) -> dict[str, torch.Tensor]:
    """What plain torch makes of groups of so many members."""
    batching = Batching(SAMPLES, BATCH, UNIT)
    loader = Loader(numbers(SAMPLES), 0, DEVICE)
    models = [built(build).to(DEVICE) for _ in sizes]
    optimizers = [optimizer(model.parameters()) for model in models]
    weights = [0.0] * len(sizes)
    for index in range(steps):
        spans = batching.units(index)
        per_member = len(spans) // sum(sizes)
        assert per_member * sum(sizes) == len(spans)
        ends = [per_member * end for end in itertools.accumulate(sizes)]
        for number, (model, one, end, size) in enumerate(zip(models, optimizers, ends, sizes, strict=True)):
            part = [loader.load(span) for span in spans[end - per_member * size : end]]
            one.zero_grad()
            count = sum(unit.num_samples for unit in part)
            for unit in part:
                (model(**unit) * unit.num_samples / count).backward()
            one.step()
            weights[number] += count
        if (index + 1) % period == 0 or index + 1 == steps:
            shares = [weight / sum(weights) for weight in weights]
            with torch.no_grad():
                for values in zip(*(model.parameters() for model in models), strict=True):
                    mean = sum(share * value for share, value in zip(shares, values, strict=True))
                    for value in values:
                        value.copy_(mean)
            weights = [0.0] * len(sizes)
    loader.close()
    return {name: value.detach().cpu() for name, value in models[0].state_dict().items()}


@contextmanager
def hosts(group: Group, layout: Sequence[int]) -> Iterator[Group]:
    with as_hosts(group, layout) as spread:
        yield spread


@pytest.mark.parametrize("optimizer", [momentum, adamw])
@pytest.mark.parametrize("period", [2, 5])
@pytest.mark.parametrize("groups", [1, 2, 4, "node"])
def test_they_are_as_plain_torch_makes_them(group: Group, groups: Any, period: int, optimizer: Any) -> None:
    if group.size == 3 or (groups != "node" and groups > group.size):
        pytest.skip("needs as many members, of whom each gets as many units")
    layout = [0] * (group.size // 2) + [1] * (group.size - group.size // 2)
    with hosts(group, layout) as spread:
        spec = Supernodes(groups, period)
        with closing(make_run(spread, built(regression), numbers(SAMPLES), settings(spec), optimizer)) as run:
            train(run, 7)
            assert [one.number for one in run.counted] == list(range(1, 8))
            sizes = [len(team) for team in run.grouping.teams] if run.grouping is not None else []
            found = {name: value.detach().cpu() for name, value in run.model.state_dict().items()}
        assert len(sizes) == (groups if groups != "node" else len(set(layout)))
        everybody = group.gather_objects({name: value.numpy().tobytes() for name, value in found.items()})
    assert all(one == everybody[0] for one in everybody)
    for name, value in expected(regression, optimizer, sizes, period, 7).items():
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("codec", ["bf16", "int8", "topk:0.2", "powersgd:2"])
def test_what_a_codec_leaves_out_comes_later(group: Group, codec: str) -> None:
    if group.size < 2:
        pytest.skip("one member is no groups")
    losses = {}
    for one in ("none", codec):
        spec = Supernodes(2, 3, one)
        with closing(make_run(group, built(regression), numbers(SAMPLES), settings(spec), momentum)) as run:
            train(run, 60)
            losses[one] = run.counted[-1].loss
            if one not in ("none", "bf16"):  # of a cast nothing is kept
                kept = run.residuals.gathered()
                assert any(bool(value.any()) for value in kept.values())
    assert losses[codec] < 1.3 * losses["none"] + 0.02


def test_buffers_become_means(group: Group) -> None:
    if group.size < 2:
        pytest.skip("one member is no groups")
    spec = Supernodes(2, 4)
    with closing(make_run(group, built(Normalised), numbers(SAMPLES), settings(spec), momentum)) as run:
        train(run, 8)
        state = {name: value.detach().cpu().numpy().tobytes() for name, value in run.model.state_dict().items()}
        assert run.model.get_buffer("layers.1.num_batches_tracked") == 8
        assert run.model.get_buffer("mask").tolist() == [0.0, float("-inf")]
        assert run.model.get_buffer("layers.1.running_mean").abs().sum() > 0
    assert len({tuple(sorted(one.items())) for one in group.gather_objects(state)}) == 1


def test_what_optimizers_keep_becomes_one(group: Group) -> None:
    spec = Supernodes(min(2, group.size), 3)
    with closing(make_run(group, built(regression), numbers(SAMPLES), settings(spec), adamw)) as run:
        train(run, 3)

        def kept() -> list[bytes]:
            values = [value for state in run.optimizer.state.values() for _, value in sorted(state.items())]
            return group.gather_objects(b"".join(value.cpu().numpy().tobytes() for value in values))

        assert (len(set(kept())) > 1) == (group.size > 1)
        run.gather_optimizer()
        assert len(set(kept())) == 1
        counts = {float(state["step"]) for state in run.optimizer.state.values()}
        assert counts == {3.0}


class Creeping(nn.Module):
    """A buffer that changes by less than what the first step expects, so that units are computed again."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1e-6
        return nn.functional.mse_loss(self.layer(x), y)


def test_a_step_that_is_computed_again_counts(group: Group) -> None:
    spec = Supernodes(min(2, group.size), 2)
    with closing(make_run(group, built(Creeping), numbers(SAMPLES), settings(spec), momentum)) as run:
        found = train(run, 4)
        assert max(step.attempts for step in found) > 1
        assert [one.weight for one in run.counted] == [BATCH] * 4
        torch.testing.assert_close(run.model.get_buffer("seen").cpu(), torch.full((3,), 4e-6))


def test_groups_without_units_do_not_fall_behind(group: Group) -> None:
    """The last step of an epoch has one unit, which is one group's."""
    few = Settings(8, 2, sum="float", supernodes=Supernodes(group.size, 4))
    with closing(make_run(group, built(Normalised), numbers(10), few, adamw)) as run:
        train(run, 6)
        run.gather_optimizer()
        kept = [float(state["step"]) for state in run.optimizer.state.values()]
        counts = int(run.model.get_buffer("layers.1.num_batches_tracked"))
    assert len({(tuple(one), count) for one, count in group.gather_objects((kept, counts))}) == 1
    assert counts >= 6


def test_parameters_may_be_changed_between_rounds(group: Group) -> None:
    with closing(make_run(group, built(regression), numbers(SAMPLES), settings(Supernodes(1, 2)), momentum)) as run:
        train(run, 2)
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.fill_(0.25)
        run.broadcast_model()
        assert run.rounds is not None
        run.rounds.restore()
        assert all(bool((parameter == 0.25).all()) for parameter in run.model.parameters())


def test_what_takes_all_members_is_refused_within_a_round(group: Group) -> None:
    data = numbers(SAMPLES)
    with closing(make_run(group, built(regression), data, settings(Supernodes(1, 2)), momentum)) as run:
        for call in (run.gather_optimizer, lambda: run.evaluate(lambda one: run.model(**one), data)):
            steps = run.steps(2)
            for unit in next(steps):
                run.model(**unit)
                with pytest.raises(ModelError, match="where members are not together"):
                    call()
                break
            run.apart.is_under_way = False  # as nobody may do


def test_with_a_period_of_one_step_groups_change_nothing(group: Group) -> None:
    found = []
    for spec in (None, Supernodes("node", 1), Supernodes(1, 1)):
        with closing(make_run(group, built(regression), numbers(SAMPLES), settings(spec, sum="exact"))) as run:
            train(run, 3)
            found.append(b"".join(value.detach().cpu().numpy().tobytes() for value in run.model.parameters()))
    assert len(set(found)) == 1


def test_units_go_to_groups_by_what_they_can_do(group: Group) -> None:
    if group.size < 2:
        pytest.skip("one member is no groups")
    spec = Supernodes(group.size, 2)
    run = make_run(group, built(regression), numbers(SAMPLES), settings(spec, dealing=Terms("static")), momentum)
    with closing(run):
        assert run.grouping is not None
        run.grouping.dealt_by({member: 5.0 if member == 0 else 1.0 for member in group.members})
        counts = group.gather_objects([span.index for span in run.units(0)])
        assert sorted(index for one in counts for index in one) == list(range(8))
        assert len(counts[0]) == {2: 7, 3: 6, 4: 5}[group.size]
        train(run, 4)
        assert all(one.num_samples == BATCH for one in run.counted)
        # Shares have become those of measured speeds by now: all are there once.
        assert sorted(unit for share in run.counted[-1].shares for unit in share.units) == list(range(8))


def test_more_groups_than_units(group: Group) -> None:
    spec = Supernodes(group.size, 2)
    few = Settings(2, 2, sum="float", supernodes=spec)
    with closing(make_run(group, built(regression), numbers(SAMPLES), few, adamw)) as run:
        train(run, 6)
        assert len(run.counted) == 6
        state = b"".join(value.detach().cpu().numpy().tobytes() for value in run.model.parameters())
    assert len(set(group.gather_objects(state))) == 1


def test_a_loop_that_leaves_a_step_is_told(group: Group) -> None:
    with closing(make_run(group, built(regression), numbers(SAMPLES), settings(Supernodes(1, 2)), adamw)) as run:

        def leave() -> None:
            for _ in run.steps(2):
                pass

        with pytest.raises(HpcvolError, match="step 0 was left before its bag was empty"):
            leave()


@pytest.mark.parametrize(
    ("spec", "more", "says"),
    [
        (Supernodes("node", 2), {"sum": "exact"}, "groups go apart"),
        (Supernodes("node", 2), {"combine": "median"}, "strategy.combine"),
        (Supernodes("node", 2), {"codec": "int8"}, "strategy.codec"),
        (Supernodes("node", 2), {"servers": ParameterServer()}, "parameter_server"),
        (Supernodes("node", 1, "int8"), {"sum": "exact"}, "a codec rounds"),
        (Supernodes(2, 1, "int8"), {}, "period = 2 or more"),
        (Supernodes("node", 2), {"dealing": Terms(priorities={"0": 0.5})}, "elastic.priorities"),
    ],
    ids=["exact", "robust", "codec", "servers", "encoded exact", "encoded every step", "priorities"],
)
def test_what_cannot_be_is_refused(spec: Supernodes, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(spec, **more)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rack",), 'expected "none", "node"'),
        ((0,), 'expected "none"'),
        (("node", 0), "period = 0"),
        (("node", 2, "zip"), "zip"),
        (("node", 2, "auto"), "name a codec"),
        (("node", 2, "topk:0.1+dgc:2"), "leave out"),
    ],
)
def test_values_that_cannot_be(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Supernodes(*arguments)


def test_more_groups_than_members_are_refused(group: Group) -> None:
    with pytest.raises(ConfigError, match=f"strategy.groups = 9 of {group.size} members"):
        make_run(group, built(regression), numbers(SAMPLES), settings(Supernodes(9, 2)))
