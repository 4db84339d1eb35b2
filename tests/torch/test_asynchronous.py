"""Runs whose members do not wait for each other: every step counts once, nobody is further ahead than asked for."""

import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from training import Regression, adamw, built, digest, make_run, numbers, sgd, train
from two_hosts import hosts_of

from hpcvol.comm import Group
from hpcvol.elastic.dealing import Terms
from hpcvol.errors import ConfigError, ModelError
from hpcvol.strategies import wire
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.supernodes import Supernodes
from hpcvol.torch.run import Run
from hpcvol.torch.settings import Settings
from hpcvol.torch.step import Step


def settings(spec: ParameterServer | None, **more: Any) -> Settings:
    return Settings(12, 2, **{"sum": "float", "clip_norm": 0.5, "bucket_nbytes": 20_000, "servers": spec, **more})


def weights(run: Run) -> Any:
    return digest(run.model.state_dict())


def slow_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.003)


class Deep(nn.Module):
    """Three layers, each of which fills a bucket."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 2000), nn.Tanh(), nn.Linear(2000, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.layers(x), y)


WAYS = [("all", 0, 2, 1), ("all", 0, math.inf, 1), (1, 0, 1, 1), ("all", 1, math.inf, 2), (1, 0, 8, 2), (2, 1, 2, 2)]


@pytest.mark.parametrize(("servers", "replicas", "staleness", "hosts"), WAYS)
def test_every_step_counts_once(
    group: Group, servers: Any, replicas: int, staleness: float, hosts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if group.size < max(1 if servers == "all" else servers + 1, replicas + 1):
        pytest.skip("needs more members")
    spec = ParameterServer(servers, replicas, staleness)
    with (
        nullcontext(group) if hosts == 1 else hosts_of(group, monkeypatch) as members,
        closing(make_run(members, built(lambda: Regression(6, 3000)), numbers(60), settings(spec), slow_sgd)) as run,
    ):
        before = run.evaluate(lambda unit: run.model(**unit), numbers(60)).loss
        for until in (7, 30):
            first = run.step
            mine = []
            for step in run.steps(until):
                if members.rank % 2:
                    time.sleep(0.003)
                for unit in step:
                    step.backward(run.model(**unit))
                assert math.isfinite(step.loss)
                mine.append(step.index)
            assert run.step == until
            assert sorted(one.index for one in run.counted) == list(range(first, until))
            assert all(one.behind <= staleness for one in run.counted)
            assert [one.index for one in run.counted if one.shares[0].member == run.member] == mine
            assert group.gather_objects(weights(run)) == [weights(run)] * group.size
        assert run.evaluate(lambda unit: run.model(**unit), numbers(60)).loss < before
        assert run.shards is not None
        if run.shards.dedicated and run.member in run.shards.servers:
            assert mine == []
    group.barrier()


def test_buckets_are_pushed_while_others_are_computed(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_STRETCH_NBYTES", 4096)
    if group.size < 2:
        pytest.skip("two hosts")
    with (
        hosts_of(group, monkeypatch) as members,
        closing(make_run(members, built(Deep), numbers(60), settings(ParameterServer("all", 0, 2)), sgd)) as run,
    ):
        assert run.asynchronous is not None
        store = run.asynchronous.store
        early: list[int] = []  # parts that were sent when the pass came to the first layer
        first = next(run.model.parameters())
        first.register_hook(  # type: ignore[no-untyped-call]
            lambda _: early.append(0 if store._under_way is None else len(store._under_way.parcels))
        )
        train(run, 4 * members.size)
        assert early[:1] in ([], [0])  # the first pass is watched
        assert all(early[1:])
        assert sorted(one.index for one in run.counted) == list(range(4 * members.size))
    group.barrier()


# Of servers, copies, staleness, groups, the period, elastic averaging, the codec, hosts.
TEAMS = [
    ("all", 0, math.inf, Supernodes(2), 0.0, "none", 1),
    ("all", 1, 2, Supernodes(1), 0.0, "int8", 1),
    (1, 0, math.inf, Supernodes(2, 3), 0.0, "none", 1),
    ("all", 0, 4, Supernodes("node", 4, "int8"), 0.0, "none", 2),
    (1, 0, math.inf, Supernodes("node"), 0.2, "topk:0.5", 2),
    ("all", 0, math.inf, Supernodes(2, 3, "topk:0.5"), 0.3, "none", 1),
]


@pytest.mark.parametrize(("servers", "replicas", "staleness", "spec", "elastic", "codec", "hosts"), TEAMS)
def test_groups_are_workers(
    group: Group,
    servers: Any,
    replicas: int,
    staleness: float,
    spec: Supernodes,
    elastic: float,
    codec: str,
    hosts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All members of a group have the same parameters in each step, and all steps count once."""
    if group.size < 3:
        pytest.skip("needs more members")
    holders = ParameterServer(servers, replicas, staleness, elastic_averaging=elastic)
    given = settings(holders, supernodes=spec, codec=codec)
    with (
        nullcontext(group) if hosts == 1 else hosts_of(group, monkeypatch) as members,
        closing(make_run(members, built(lambda: Regression(6, 3000)), numbers(60), given, slow_momentum)) as run,
    ):
        assert run.grouping is not None
        before = run.evaluate(lambda unit: run.model(**unit), numbers(60)).loss
        teams = run.grouping.teams
        assert run.roles()["groups"] == teams
        for until in (7, 30):
            first, seen = run.step, {}
            for step in run.steps(until):
                seen[step.index] = str(weights(run))
                if members.rank % 2:
                    time.sleep(0.003)
                for unit in step:
                    step.backward(run.model(**unit))
                assert math.isfinite(step.loss)
            everybody = dict(zip(members.members, members.gather_objects(seen), strict=True))
            assert sorted(one.index for one in run.counted) == list(range(first, until))
            for one in run.counted:
                team = tuple(share.member for share in one.shares)
                assert team in teams
                assert len({everybody[member][one.index] for member in team}) == 1
                assert sum(share.num_samples for share in one.shares) == one.num_samples == 12
                assert one.behind <= staleness

            assert members.gather_objects(weights(run)) == [weights(run)] * members.size
            run.gather_optimizer()
        assert run.evaluate(lambda unit: run.model(**unit), numbers(60)).loss < 1.5 * before  # stale momentum swings
    group.barrier()


def test_steps_that_come_to_nothing_leave_no_trace_in_the_optimizer(group: Group) -> None:
    given = settings(ParameterServer(max_staleness=4), supernodes=Supernodes(1, 3))
    with closing(make_run(group, built(Regression), numbers(60), given, slow_momentum)) as run:

        def kept() -> Any:
            momenta = {name: run.optimizer.state[one]["momentum_buffer"] for name, one in run.parameters}
            return digest(momenta), weights(run)

        train(run, 3)
        before = kept()
        steps = run.steps(9)
        for _ in range(2):
            step = next(steps)
            for unit in step:
                step.backward(run.model(**unit))
        assert kept() != before
        run.abandon()  # as after a death
        run.rebuild()
        if run.membership.survives:
            assert kept() == before
        steps.close()
        run.apart.is_under_way = False
        train(run, 9)
        assert sorted(one.index for one in run.counted) == list(range(3, 9))


def test_who_has_no_priority_or_a_limit_of_0_computes_nothing(group: Group) -> None:
    if group.size < 2:
        pytest.skip("somebody has to")
    idle = group.members[0]
    for spec, terms in (
        (None, Terms(priorities={str(idle): 0.0})),
        (None, Terms(limits={str(idle): 0})),
        (Supernodes(1, 2), Terms(priorities={str(idle): 0.0})),
    ):
        given = settings(ParameterServer(max_staleness=4), supernodes=spec, dealing=terms)
        with closing(make_run(group, built(Regression), numbers(60), given, slow_sgd)) as run:
            mine = [step.index for step in _computed(run, 8)]
            assert (mine == []) == (run.member == idle)
            assert sorted(one.index for one in run.counted) == list(range(8))
            run.evaluate(lambda unit: run.model(**unit), numbers(60))
    nobody = Terms(priorities={str(member): 0.0 for member in group.members})
    with pytest.raises(ConfigError, match="there is no worker"):
        make_run(group, built(Regression), numbers(40), settings(ParameterServer(max_staleness=4), dealing=nobody))


def _computed(run: Run, until: int) -> Iterator[Step]:
    for step in run.steps(until):
        for unit in step:
            step.backward(run.model(**unit))
        yield step


def test_groups_that_would_have_nothing_to_do_are_told_of(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    if group.size < 2:
        pytest.skip("two groups")
    given = settings(ParameterServer(max_staleness=4), supernodes=Supernodes(2, 5))
    with closing(make_run(group, built(Regression), numbers(60), given, slow_sgd)) as run:
        train(run, 10)
        assert "members meet" not in caplog.text
        train(run, 14)
        train(run, 18)
        said = "4 steps until members meet are 1 rounds of strategy.between.period = 5, and there are 2 groups"
        assert caplog.text.count(said) == (1 if group.rank == 0 else 0)


def test_rounds_of_one_group_are_steps(group: Group) -> None:
    """One group that trains by itself is what members are who train together."""

    def trained(spec: ParameterServer | None, supernodes: Supernodes | None) -> Any:
        given = settings(spec, supernodes=supernodes, clip_norm=None)
        with closing(make_run(group, built(Regression), numbers(40), given, slow_momentum)) as run:
            train(run, 9)
            run.gather_optimizer()
            momenta = {
                f"momentum of {name}": run.optimizer.state[one]["momentum_buffer"] for name, one in run.parameters
            }
            return {**{name: value.clone() for name, value in run.model.state_dict().items()}, **momenta}

    wanted = trained(None, None)
    for period in (1, 4):
        found = trained(ParameterServer(max_staleness=math.inf), Supernodes(1, period))
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_worker_alone_trains_as_one_that_waits_for_nobody_else(group: Group) -> None:
    if group.size != 1:
        pytest.skip("one")

    def trained(spec: ParameterServer | None) -> Any:
        with closing(make_run(group, built(Regression), numbers(40), settings(spec))) as run:
            train(run, 5)
            run.gather_optimizer()
            state = run.optimizer.state_dict()["state"]
            moments = {key: digest({k: torch.as_tensor(v) for k, v in one.items()}) for key, one in state.items()}
            return weights(run), moments

    assert trained(ParameterServer(max_staleness=math.inf)) == trained(None)


def test_the_state_counts_every_step(group: Group) -> None:
    spec = ParameterServer(max_staleness=4)
    with closing(make_run(group, built(Regression), numbers(40), settings(spec), adamw)) as run:
        train(run, 9)
        run.gather_optimizer()
        states = run.optimizer.state_dict()["state"].values()
        assert {float(state["step"]) for state in states} == {9.0}
        run.optimizer.load_state_dict(run.optimizer.state_dict())
        train(run, 12)
        run.gather_optimizer()
        assert {float(state["step"]) for state in run.optimizer.state_dict()["state"].values()} == {12.0}
        assert group.gather_objects(weights(run)) == [weights(run)] * group.size


def test_what_is_changed_between_meetings_counts(group: Group) -> None:
    spec = ParameterServer(max_staleness=1)
    with closing(make_run(group, built(Regression), numbers(40), settings(spec), sgd)) as run:
        train(run, 2)
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.zero_()
        for group_of in run.optimizer.param_groups:
            group_of["lr"] = 0.0
        train(run, 6)
        assert not any(bool(parameter.any()) for parameter in run.model.parameters())


def test_rates_are_divided_by_staleness(group: Group) -> None:
    """All move from 0 under a gradient of 1: what each step moved tells its rate."""
    if group.size != 2:
        pytest.skip("two")
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    spec = ParameterServer(max_staleness=math.inf, rate_by_staleness=True)
    with closing(make_run(group, model, numbers(40, 1), settings(spec, clip_norm=None), sgd)) as run:
        for step in run.steps(12):
            for _ in step:
                time.sleep(0.002 * group.rank)
                step.backward(model.weight.sum())
        wanted = -sum(0.1 / (1 + one.missed) for one in run.counted)
        assert float(model.weight.detach()) == pytest.approx(wanted, rel=1e-5)
        assert any(one.missed for one in run.counted)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_gradients_are_corrected_by_what_parameters_have_become(group: Group, clip_norm: float | None) -> None:
    """The loss is 2w: the gradient is 2 (0.5 where it is clipped), and each step can be computed from those before."""
    if group.size != 2:
        pytest.skip("two")
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    spec = ParameterServer(max_staleness=math.inf, compensation=0.3)
    with closing(make_run(group, model, numbers(40, 1), settings(spec, clip_norm=clip_norm), sgd)) as run:
        mine = {}
        for step in run.steps(12):
            mine[step.index] = float(model.weight.detach())
            for _ in step:
                time.sleep(0.002 * group.rank)
                step.backward(2 * model.weight.sum())
        pulled = {index: value for part in group.gather_objects(mine) for index, value in part.items()}
        now, gradient, corrections = 0.0, clip_norm or 2.0, 0
        for one in run.counted:
            moved = now - pulled[one.index]
            corrections += abs(moved) > 1e-3
            now -= 0.1 * (gradient + 0.3 * gradient**2 * moved)
        assert corrections
        assert float(model.weight.detach()) == pytest.approx(now, rel=1e-5)


class Sometimes(nn.Module):
    """Uses its second layer in every other unit only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 300)
        self.second = nn.Linear(6, 300)

    def forward(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return self.first(x).sum() + (self.second(x).sum() if number % 2 else 0.0)


@pytest.mark.parametrize("hosts", [1, 2])
def test_what_was_not_pushed_is_pushed_later(group: Group, hosts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without momentum or clipping the weights lack of the sum of gradients what members have kept, and no more."""
    if group.size < hosts:
        pytest.skip("needs more members")
    spec = ParameterServer(max_staleness=2, pull="bf16")
    with nullcontext(group) if hosts == 1 else hosts_of(group, monkeypatch) as members:
        given = settings(spec, clip_norm=None, codec="topk:0.1")
        with closing(make_run(members, Sometimes(), numbers(60), given, plain_sgd)) as run:
            # Gradients do not depend on the parameters.
            before = {name: p.detach().clone() for name, p in run.parameters}
            sums = {name: torch.zeros_like(p) for name, p in run.parameters}
            for step in run.steps(25):
                for unit in step:
                    weight = len(unit["x"])
                    loss = run.model(unit["x"], step.index) / weight
                    found = torch.autograd.grad(
                        loss, list(run.model.parameters()), retain_graph=True, allow_unused=True
                    )
                    for (name, _), gradient in zip(run.parameters, found, strict=True):
                        if gradient is not None:
                            sums[name] += gradient * weight / 12
                    step.backward(loss)
            kept = run.residuals.gathered()["float32"]
            assert group.gather_objects(run.residuals.norms) == [run.residuals.norms] * members.size
            assert run.residuals.norms.keys() == set(members.members)
            missing = 0.0
            for name, parameter in run.parameters:
                wanted = before[name] - sum(members.gather_objects(sums[name]))
                missing += float((parameter.detach() - wanted).sum())
            assert missing == pytest.approx(float(kept.sum()), rel=1e-3, abs=1e-2)
            assert float(kept.abs().sum()) > 1
        members.barrier()


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


@pytest.mark.parametrize("codec", ["none", "topk:0.1", "topk:0.1+dgc:4", "randomk:0.5+int8"])
def test_a_step_without_weight_changes_nothing(group: Group, codec: str) -> None:
    given = settings(ParameterServer(max_staleness=2), codec=codec)
    with closing(make_run(group, built(Regression), numbers(60), given, plain_sgd)) as run:
        train(run, 2 * group.size)
        before, kept = weights(run), digest(run.residuals.gathered())
        for step in run.steps(run.step + 2 * group.size):
            for unit in step:
                step.backward(run.model(**unit), weight=0)
        assert len(run.counted) == 2 * group.size
        assert (weights(run), digest(run.residuals.gathered())) == (before, kept)


def test_encoded_runs_learn(group: Group) -> None:
    def gained(codec: str) -> float:
        spec = ParameterServer(max_staleness=4)
        with closing(make_run(group, built(Regression), numbers(60), settings(spec, codec=codec), slow_sgd)) as run:
            before = run.evaluate(lambda unit: run.model(**unit), numbers(60)).loss
            train(run, 30)
            assert sorted(one.index for one in run.counted) == list(range(30))
            assert group.gather_objects(weights(run)) == [weights(run)] * group.size
            return before - run.evaluate(lambda unit: run.model(**unit), numbers(60)).loss

    plainly = gained("none")
    assert gained("int8") == pytest.approx(plainly, rel=0.3)
    assert gained("topk:0.1") > 0.5 * plainly > 0


@pytest.mark.parametrize(("codec", "hosts"), [("none", 1), ("topk:0.5", 1), ("int8", 2)])
def test_workers_and_servers_are_drawn_together(
    group: Group, codec: str, hosts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What servers gain workers lose: only the optimizer's steps, here of 0.1 times 2, change the sum of all."""
    if group.size < hosts:
        pytest.skip("needs more members")
    model = nn.Linear(40, 1, bias=False)
    spec = ParameterServer(max_staleness=math.inf, elastic_averaging=0.3)
    given = settings(spec, clip_norm=None, codec=codec)
    with (
        nullcontext(group) if hosts == 1 else hosts_of(group, monkeypatch) as members,
        closing(make_run(members, model, numbers(40, 1), given, lambda p: torch.optim.SGD(p, lr=0.1))) as run,
    ):
        for until in (5, 21):
            began = model.weight.detach().clone()
            own = began.clone()
            steps, alone = 0, [began.clone(), began.clone()]
            for step in run.steps(until):
                for _ in step:
                    time.sleep(0.001 * group.rank)
                    step.backward(2 * model.weight.sum())
                own = model.weight.detach().clone()
                steps += 1
                worker, server = alone[0] - 0.2, alone[1]
                alone = [worker - 0.3 * (worker - server), server + 0.3 * (worker - server)]
            told = members.gather_objects((steps, own))
            gained = sum(began - 0.2 * steps - own for steps, own in told)
            torch.testing.assert_close(model.weight.detach(), began + gained, rtol=1e-4, atol=1e-4)
            assert sum(steps for steps, _ in told) == len(run.counted)
            if members.size == 1 and codec == "none":
                torch.testing.assert_close(model.weight.detach(), alone[1], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(own, alone[0], rtol=1e-5, atol=1e-5)
            assert bool((model.weight.detach() < began).any())
        members.barrier()


@pytest.mark.parametrize("codec", ["topk:0.02", "int4", "randomk:0.1"])
def test_what_is_not_sent_does_not_drive_them_apart(group: Group, codec: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(400, 1, bias=False)
    aim = torch.randn(1, 400)
    spec = ParameterServer(max_staleness=4, elastic_averaging=0.9 / group.size)
    given = settings(spec, clip_norm=None, codec=codec)
    with closing(make_run(group, model, numbers(40, 1), given, lambda p: torch.optim.SGD(p, lr=0.1))) as run:
        began = float((model.weight.detach() - aim).square().sum())
        for step in run.steps(60 * group.size):
            for _ in step:
                step.backward((model.weight - aim).square().sum())
            assert float((model.weight.detach() - aim).abs().max()) < 20
        assert float((model.weight.detach() - aim).square().sum()) < 0.9 * began
        assert run.residuals.gathered() == {}


def test_servers_that_do_not_work_have_no_part_in_the_mean_of_states(group: Group) -> None:
    if group.size < 2:
        pytest.skip("needs a server and a worker")
    spec = ParameterServer(1, max_staleness=4, elastic_averaging=0.2)
    given = settings(spec, clip_norm=None)
    model = nn.Linear(3, 1, bias=False)

    def momentum(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.5)

    with closing(make_run(group, model, numbers(40, 1), given, momentum)) as run:
        for until in (20, 40, 60):  # a gradient of 2, again and again: momentum gets to 4, on each worker
            for step in run.steps(until * group.size):
                for _ in step:
                    step.backward(2 * model.weight.sum())
            run.gather_optimizer()
            (state,) = run.optimizer.state.values()
            torch.testing.assert_close(state["momentum_buffer"], torch.full((1, 3), 4.0), rtol=1e-3, atol=1e-3)


def test_members_that_change_between_phases_keep_the_model(group: Group) -> None:
    for elastic in (0.0, 0.2):
        spec = ParameterServer(max_staleness=4, elastic_averaging=elastic)
        with closing(make_run(group, built(Regression), numbers(60), settings(spec), slow_sgd)) as run:
            for steps in (0, 3 * group.size):
                train(run, run.step + steps)
                with torch.no_grad():
                    for parameter in run.model.parameters():
                        parameter.fill_(1.5 + steps)
                run.abandon()
                run.rebuild()
                assert all(bool((parameter == 1.5 + steps).all()) for parameter in run.model.parameters())
            train(run, run.step + group.size)
            assert group.gather_objects(weights(run)) == [weights(run)] * group.size


def test_what_takes_all_is_refused_in_the_loop(group: Group) -> None:
    with closing(make_run(group, built(Regression), numbers(60), settings(ParameterServer(max_staleness=4)))) as run:
        for step in run.steps(2 * group.size):
            for unit in step:
                step.backward(run.model(**unit))
            with pytest.raises(ModelError, match="where members are not together"):
                run.evaluate(lambda unit: run.model(**unit), numbers(60))
        run.evaluate(lambda unit: run.model(**unit), numbers(60))


def test_workers_have_optimizers_of_their_own(group: Group) -> None:
    spec = ParameterServer(max_staleness=4, elastic_averaging=0.9 / group.size)
    with closing(make_run(group, built(Regression), numbers(60), settings(spec), slow_momentum)) as run:
        before = run.evaluate(lambda unit: run.model(**unit), numbers(60)).loss
        train(run, 40)
        assert run.evaluate(lambda unit: run.model(**unit), numbers(60)).loss < before
        assert group.gather_objects(weights(run)) == [weights(run)] * group.size

        def momenta() -> Any:
            return digest({str(i): one["momentum_buffer"] for i, one in enumerate(run.optimizer.state.values())})

        run.gather_optimizer()
        assert group.gather_objects(momenta()) == [momenta()] * group.size
        assert len(run.optimizer.state) == len(run.parameters)
        train(run, 44)


def slow_momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.003, momentum=0.9)


def test_what_cannot_be_is_refused(group: Group) -> None:
    stale = ParameterServer(max_staleness=2)
    with pytest.raises(ConfigError, match=r"strategy.max_staleness above 0 with sum = .exact."):
        Settings(12, 2, servers=stale)
    for bad in (-1, 1.5, math.nan):
        with pytest.raises(ConfigError, match=r"strategy.max_staleness = .* expected 0"):
            ParameterServer(max_staleness=bad)
    with pytest.raises(ConfigError, match=r"strategy.rate_by_staleness: no step is stale"):
        ParameterServer(rate_by_staleness=True)
    with pytest.raises(ConfigError, match=r"strategy.compensation = -1"):
        ParameterServer(max_staleness=2, compensation=-1)
    with pytest.raises(ConfigError, match=r"strategy.compensation: no step is stale"):
        ParameterServer(compensation=0.1)
    with pytest.raises(ConfigError, match=r"strategy.elastic_averaging = 1: expected 0, or a share below 1"):
        ParameterServer(max_staleness=2, elastic_averaging=1)
    with pytest.raises(ConfigError, match=r"strategy.elastic_averaging does not go together with compensation"):
        ParameterServer(max_staleness=2, elastic_averaging=0.1, compensation=0.1)
    with pytest.raises(ConfigError, match=r'strategy.pull = "int8": expected one of "exact", "bf16", "fp16"'):
        ParameterServer(max_staleness=2, pull="int8")
    with pytest.raises(ConfigError, match=r'strategy.pull = "bf16" with strategy.max_staleness = 0'):
        ParameterServer(pull="bf16")
    for codec in ("powersgd:2", "auto"):
        with pytest.raises(ConfigError, match=r"strategy.codec = .* with strategy.kind"):
            settings(stale, codec=codec)
    with pytest.raises(ConfigError, match=r"leave out \+dgc"):
        settings(ParameterServer(max_staleness=2, elastic_averaging=0.1), codec="topk:0.1+dgc")
    with pytest.raises(ConfigError, match=r"strategy.compensation with strategy.between.period above 1"):
        settings(ParameterServer(max_staleness=2, compensation=0.1), supernodes=Supernodes(1, 2))
    with pytest.raises(ConfigError, match=r"strategy.between does not go together with strategy.codec"):
        settings(stale, supernodes=Supernodes(1, 2), codec="int8")
    with pytest.raises(ConfigError, match=r'strategy.between.codec = "powersgd:2" with strategy.kind'):
        settings(stale, supernodes=Supernodes("node", 2, "powersgd:2"))
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with closing(make_run(group, model, numbers(40), settings(stale))) as run:
        error = None
        try:
            for step in run.steps(group.size):
                for unit in step:
                    step.backward(nn.functional.mse_loss(model(unit["x"]), unit["y"]))
        except ModelError as found:
            error = str(found)
        assert error is not None
        assert "'1.running_mean' was changed by a unit" in error
        group.barrier()
