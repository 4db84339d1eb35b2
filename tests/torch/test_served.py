"""Parameters and optimizer state in shards: the weights, losses and checkpoints are those of an all-reduce."""

import copy
import warnings
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training import (
    NoisyClassifier,
    Regression,
    adamw,
    built,
    digest,
    make_run,
    numbers,
    outcome,
    sentences,
    sgd,
    train,
)
from two_hosts import hosts_of

from hpcvol.comm import Group, shared_memory
from hpcvol.errors import ConfigError, ModelError
from hpcvol.kernels.fixed_point import GRAIN_NUMEL
from hpcvol.strategies.held_sums import HeldExact
from hpcvol.strategies.layout import Layout
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.torch.gradients import ExactGradients
from hpcvol.torch.settings import Settings

KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.001, momentum=0.5, centered=True),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01, t0=2),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.001),
}


def wide() -> nn.Module:
    """Tensors of several grains, and of parts of one."""
    return Regression(6, 3000)


def result(group: Group, settings: Settings, build: Callable[[], nn.Module], optimizer: Any, steps: int = 3) -> Any:
    data = sentences(40) if build is NoisyClassifier else numbers(40)
    with closing(make_run(group, built(build), data, settings, optimizer)) as run:
        found = train(run, steps)
        run.gather_optimizer()
        return outcome(run, found)


def servers_of(group: Group, servers: Any, replicas: int = 0) -> ParameterServer:
    if servers != "all" and servers >= group.size:
        pytest.skip("needs a worker besides")
    if replicas >= (group.size if servers == "all" else servers):
        pytest.skip("needs members for copies")
    return ParameterServer(servers, replicas)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_an_all_reduce(group: Group, kind: str) -> None:
    served = Settings(12, 2, clip_norm=0.5, servers=ParameterServer())
    plain = Settings(12, 2, clip_norm=0.5)
    assert result(group, served, wide, KINDS[kind]) == result(group, plain, wide, KINDS[kind])


@pytest.mark.parametrize(
    ("servers", "replicas", "hosts", "build"),
    [
        (1, 0, 1, NoisyClassifier),
        (2, 1, 1, wide),
        ("all", 1, 1, NoisyClassifier),
        ("all", 0, 2, wide),
        (1, 0, 2, wide),
        (3, 1, 2, NoisyClassifier),
        ("all", 2, 2, wide),
    ],
)
def test_whoever_serves(
    group: Group, servers: Any, replicas: int, hosts: int, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = servers_of(group, servers, replicas)
    wanted = result(group, Settings(12, 2, clip_norm=0.5), build, adamw)
    served = Settings(12, 2, clip_norm=0.5, servers=spec, bucket_nbytes=20_000)
    if hosts == 1:
        found = result(group, served, build, adamw)
    else:
        with hosts_of(group, monkeypatch) as spread:
            found = result(spread, served, build, adamw)
    assert group.gather_objects(found) == [wanted] * group.size


@pytest.mark.parametrize("way", ["ring", "no memory"])
def test_where_no_memory_is_shared(group: Group, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "no memory":
        monkeypatch.setattr(shared_memory, "_allocated", refuse)
    algorithm: Any = "ring" if way == "ring" else "auto"
    wanted = result(group, Settings(12, 2, clip_norm=0.5), NoisyClassifier, adamw)
    served = Settings(12, 2, clip_norm=0.5, algorithm=algorithm, servers=ParameterServer())
    assert result(group, served, NoisyClassifier, adamw) == wanted


def refuse(_: int) -> int:
    raise OSError("refused by a test")


@pytest.mark.parametrize("hosts", [1, 2])
def test_the_float_sum(group: Group, hosts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All members end alike, and where an all-reduce does but for rounding."""
    settings = Settings(12, 2, sum="float", clip_norm=0.5, bucket_nbytes=20_000)

    def weights(members: Group, **more: Any) -> Any:
        with closing(make_run(members, built(wide), numbers(40), replace(settings, **more))) as run:
            train(run, 4)
            return torch.cat([parameter.detach().cpu().view(-1) for parameter in run.model.parameters()])

    wanted = weights(group)
    with nullcontext(group) if hosts == 1 else hosts_of(group, monkeypatch) as members:
        found = weights(members, servers=ParameterServer())
    assert group.gather_objects(found.numpy().tobytes()) == [found.numpy().tobytes()] * group.size
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_only_holders_have_sums_and_state(group: Group) -> None:
    with closing(make_run(group, built(wide), numbers(40), Settings(12, 2, servers=ParameterServer()))) as run:
        train(run, 2)
        assert run.served is not None
        assert run.optimizer.state_dict()["state"] == {}
        kept = sum(
            value.numel() for state in run.served.optimizer.states().values() for value in state.values() if value.dim()
        )
        assert isinstance(run.gradients, ExactGradients)
        assert isinstance(run.gradients.sums[0].reducer, HeldExact)
        everything = 2 * sum(parameter.numel() for parameter in run.model.parameters())
        assert sum(group.gather_objects(kept)) == everything
        assert kept <= everything / group.size + 4 * GRAIN_NUMEL
        assert all(parameter.grad is None for parameter in run.model.parameters())


def test_a_state_that_is_loaded_later_counts(group: Group) -> None:
    def trained(servers: ParameterServer | None, until: int, state: Any = None) -> tuple[Any, Any]:
        with closing(make_run(group, built(Regression), numbers(40), Settings(12, 2, servers=servers))) as run:
            if state is not None:
                run.optimizer.load_state_dict(copy.deepcopy(state))  # it takes tensors as they are
            train(run, until)
            run.gather_optimizer()
            return copy.deepcopy(run.optimizer.state_dict()), outcome(run, [])

    state, _ = trained(None, 2)
    wanted, found = trained(None, 2, state)[1], trained(ParameterServer(), 2, state)[1]
    assert found == wanted


def test_hyperparameters_are_those_of_the_users_optimizer(group: Group) -> None:
    def scheduled(servers: ParameterServer | None) -> Any:
        with closing(make_run(group, built(Regression), numbers(40), Settings(12, 2, servers=servers), sgd)) as run:
            schedule = torch.optim.lr_scheduler.StepLR(run.optimizer, 1, 0.5)
            for step in run.steps(4):
                for unit in step:
                    step.backward(run.model(**unit))
                schedule.step()
            return outcome(run, [])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scheduled(ParameterServer()) == scheduled(None)


def test_a_parameter_that_is_not_finite_is_named(group: Group) -> None:
    settings = Settings(12, 2, sum="float", servers=ParameterServer())
    model = built(Regression)
    model.layers[2].weight.register_hook(lambda gradient: gradient * float("inf"))
    with (
        closing(make_run(group, model, numbers(40), settings)) as run,
        pytest.raises(ModelError, match=r"step 0: gradient layers\.2\.weight holds"),
    ):
        train(run, 1)


class Orthogonal(torch.optim.SGD):
    """Looks at whole matrices, one would think."""


class Own(torch.optim.SGD):
    """Says of itself that it does not."""

    element_wise = True


def test_what_cannot_be_served_is_refused(group: Group) -> None:
    servers = ParameterServer()

    def start(model: Any = None, optimizer: Any = sgd, **more: Any) -> None:
        settings = Settings(12, 2, **{"servers": servers, **more})
        make_run(group, model or built(Regression), numbers(40), settings, optimizer).close()

    start(optimizer=lambda p: Own(p, 0.1))
    with pytest.raises(ConfigError, match=r"the optimizer is Orthogonal, .* `element_wise = True`"):
        start(optimizer=lambda p: Orthogonal(p, 0.1))
    with pytest.raises(ConfigError, match="the optimizer is Adafactor"):
        start(optimizer=torch.optim.Adafactor)
    with pytest.raises(ModelError, match=r"'layers.0.weight' is torch.bfloat16: .* train.precision"):
        start(built(Regression).to(torch.bfloat16))
    model = built(Regression)
    model.layers[0].weight.data = torch.zeros(6, 7).T
    with pytest.raises(ModelError, match=r"'layers.0.weight' is not contiguous"):
        start(model)
    with pytest.raises(ConfigError, match="leaves no worker"):
        start(servers=ParameterServer(group.size))
    with pytest.raises(ConfigError, match=r"strategy.replicas = 4 of each shard, and .* to hold them"):
        start(servers=ParameterServer("all", 4))
    for bad in ({"sum": "float", "combine": "median"}, {"verify_share": 0.1}):
        with pytest.raises(ConfigError, match="does not go together with"):
            start(**bad)
    for codec in ("auto", "powersgd:2"):
        with pytest.raises(ConfigError, match=r"strategy.codec = .* with strategy.kind = .*encoded by itself"):
            start(sum="float", codec=codec)
    with pytest.raises(ConfigError, match=r"strategy.servers = 0"):
        ParameterServer(0)
    with pytest.raises(ConfigError, match=r"strategy.replicas = -1"):
        ParameterServer("all", -1)


class Sometimes(nn.Module):
    """Gradients that do not depend on the parameters; the second layer is used every third step only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 3000)
        self.second = nn.Linear(6, 3000)

    def forward(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return self.first(x).sum() + (self.second(x).sum() if number % 3 == 0 else 0.0)


# Of servers, copies, hosts, the codec.
ENCODED = [
    ("all", 0, 1, "topk:0.1"),
    (1, 0, 1, "int8"),
    ("all", 1, 2, "topk:0.1+int8"),
    (2, 1, 2, "topk:0.02"),
    (1, 0, 2, "randomk:0.5"),
    ("all", 2, 2, "int4"),
    ("all", 1, 1, "topk:0.2+dgc:3"),
]


@pytest.mark.parametrize(("servers", "replicas", "hosts", "codec"), ENCODED)
def test_what_is_not_sent_to_servers_is_sent_later(
    group: Group, servers: Any, replicas: int, hosts: int, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights lack of the sum of all gradients what members have kept; copies of a shard are alike, to the bit."""
    spec = servers_of(group, servers, replicas)
    given = Settings(12, 2, sum="float", codec=codec, bucket_nbytes=20_000, servers=spec, seed=3)
    rate, dgc = 0.5, "dgc" in codec
    momentum = 0.0 if dgc else 1e-9  # so that there is a state to compare
    with (
        nullcontext(group) if hosts == 1 else hosts_of(group, monkeypatch) as members,
        closing(
            make_run(members, Sometimes(), numbers(60), given, lambda p: torch.optim.SGD(p, rate, momentum=momentum))
        ) as run,
    ):
        before = {name: parameter.detach().clone() for name, parameter in run.parameters}
        sums = {name: torch.zeros_like(parameter) for name, parameter in run.parameters}
        for count in (5, 5):
            for step in run.steps(run.step + count):
                for unit in step:
                    weight = len(unit["x"])
                    loss = run.model(unit["x"], step.index) / weight
                    found = torch.autograd.grad(
                        loss, list(run.model.parameters()), retain_graph=True, allow_unused=True
                    )
                    for (name, _), gradient in zip(run.parameters, found, strict=True):
                        sums[name] += 0 if gradient is None else gradient * weight / 12
                    step.backward(loss)
            kept = run.residuals.gathered().get("float32", torch.zeros(1))
            if not dgc:
                lacks = 0.0
                for name, parameter in run.parameters:
                    wanted = before[name] - rate * sum(members.gather_objects(sums[name]))
                    lacks += float((parameter.detach() - wanted).sum())
                assert lacks == pytest.approx(rate * float(kept.sum()), rel=1e-3, abs=0.05)
            assert members.size == 1 or float(kept.abs().sum()) > 0.1
            model = digest(run.model.state_dict())
            assert members.gather_objects(model) == [model] * members.size
            assert run.served is not None
            mine = {
                piece.place: digest({"momentum": run.served.optimizer._shadow.state[piece.values]["momentum_buffer"]})
                for piece in run.served.optimizer.held
                if momentum
            }
            everybody = members.gather_objects(mine)
            for theirs in everybody:
                assert all(theirs[place] == mine[place] for place in theirs.keys() & mine.keys())
            run.rebuild()  # as after a death: nothing of what was kept is lost
            again = run.residuals.gathered().get("float32", torch.zeros(1))
            torch.testing.assert_close(again, kept)
        members.barrier()


@given(
    st.lists(st.integers(0, 9000), max_size=12),
    st.integers(1, 20_000),
    st.integers(1, 7),
)
def test_portions_share_out_every_element_once(numels: list[int], bucket: int, number: int) -> None:
    layout = Layout.of(numels, bucket)
    portions = layout.portions(number)
    assert len(portions) == number
    for index, (start, stop) in enumerate(layout.buckets):
        edges = [start, *(portion[index].stop for portion in portions)]
        assert [portion[index].start for portion in portions] == edges[:-1]
        assert edges[-1] == stop
        assert edges == sorted(edges)
    pieces = [piece for portion in portions for part in portion for piece in layout.pieces(part)]
    for tensor, numel in enumerate(numels):
        own = sorted((piece.start, piece.stop, piece.place) for piece in pieces if piece.tensor == tensor)
        assert sum(stop - start for start, stop, _ in own) == numel
        assert all(start % GRAIN_NUMEL == 0 and place == layout.starts[tensor] + start for start, _, place in own)
        assert [stop for _, stop, _ in own[:-1]] == [start for start, *_ in own[1:]]
    largest = max(numels, default=0)
    sizes = [sum(part.stop - part.start for part in portion) for portion in portions]
    assert max(sizes) - min(sizes) <= 2 * (min(largest, GRAIN_NUMEL) + 2 * 16) * max(1, len(layout.buckets))
