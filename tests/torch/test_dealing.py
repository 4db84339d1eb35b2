"""Whoever computes which units, and however slow: the weights are the same, and slow members get less."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from training import (
    NoisyClassifier,
    Regression,
    assert_same_alone,
    built,
    make_run,
    numbers,
    outcome,
    sentences,
    train,
)
from two_hosts import as_hosts

from hpcvol.comm import Group, shared_memory
from hpcvol.elastic.dealing import Terms
from hpcvol.elastic.speed import Stopwatch
from hpcvol.errors import ConfigError
from hpcvol.torch.run import Run
from hpcvol.torch.settings import Settings

# How long a unit of a slow member takes at least: more than others' on a busy machine.
SLOW_SECONDS = 0.1


def slowed(run: Run, until: int, seconds: float = SLOW_SECONDS) -> list[Any]:
    """Train, the last rank with a pause in each unit; return the steps."""
    prepare = run.prepare

    def slow(span: Any) -> Any:
        time.sleep(seconds)
        return prepare(span)

    if run.group.rank == run.group.size - 1 > 0:
        run.prepare = slow  # type: ignore[method-assign]
    return train(run, until)


@contextmanager
def on_nodes(group: Group, nodes: list[int]) -> Iterator[Group]:
    if len(set(nodes[: group.size])) == 1:
        yield group
        return
    with as_hosts(group, nodes) as spread, as_hosts(group, nodes) as of_thread:
        spread.split = lambda _: of_thread  # type: ignore[method-assign, assignment, misc]
        yield spread


@pytest.mark.parametrize("nodes", [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 2]], ids=str)
@pytest.mark.parametrize("kind", ["equal", "static", "dynamic"])
def test_the_weights_do_not_tell_how_units_were_dealt(group: Group, kind: Any, nodes: list[int]) -> None:
    def compute(ranks: Group, dealing: Terms, layout: list[int]) -> Any:
        settings = Settings(24, 2, seed=3, clip_norm=0.5, dealing=dealing)
        with (
            on_nodes(ranks, layout) as spread,
            closing(make_run(spread, built(NoisyClassifier), sentences(57), settings)) as run,
        ):
            steps = slowed(run, 5, 0.005)
            for step in steps:
                assert sum(share.num_samples for share in step.shares) == step.num_samples
            return outcome(run, steps)

    def either(ranks: Group) -> Any:
        if ranks.size == 1:
            return compute(ranks, Terms("equal"), [0])
        return compute(ranks, Terms(kind), nodes)

    assert_same_alone(group, either)


def samples_by_rank(group: Group, dealing: Terms, steps: int, seconds: float = 0.0) -> list[list[int]]:
    with closing(make_run(group, built(Regression), numbers(96), Settings(32, 2, dealing=dealing))) as run:
        return [[share.num_samples for share in step.shares] for step in slowed(run, steps, seconds)]


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_slow_member_computes_less(group: Group, kind: Any) -> None:
    computed = samples_by_rank(group, Terms(kind), 4, SLOW_SECONDS)
    assert all(sum(step) == 32 for step in computed)
    if group.size > 1:
        assert min(step[-1] for step in computed) < 32 // group.size / 2
    equal = samples_by_rank(group, Terms("equal"), 3)
    assert all(max(step) - min(step) <= 2 for step in equal)


@pytest.mark.parametrize("kind", ["equal", "static", "dynamic"])
def test_limits_and_priorities_hold(group: Group, kind: Any) -> None:
    others = group.size - 1
    computed = samples_by_rank(group, Terms(kind, limits={"0": 3}), 2)
    assert all(step[0] <= 6 for step in computed) or not others
    computed = samples_by_rank(group, Terms(kind, priorities={"0": 0.0}), 2)
    assert all(step[0] == (0 if others else 32) for step in computed)
    if kind == "equal":
        computed = samples_by_rank(group, Terms(kind, priorities={"0": 0.25}), 2)
        assert [step[0] for step in computed] == [{1: 32, 2: 6, 3: 4, 4: 2}[group.size]] * 2
    # More than the members may compute together has to be computed all the same.
    host = group.hosts[0]
    computed = samples_by_rank(group, Terms(kind, limits={host: 1}), 2)
    assert all(sum(step) == 32 for step in computed)


def test_without_shared_memory_units_are_dealt_beforehand(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise OSError("refused by a test")

    monkeypatch.setattr(shared_memory, "_allocated", refuse)
    assert all(sum(step) == 32 for step in samples_by_rank(group, Terms("dynamic"), 4))


def test_a_slow_member_is_reported_once(
    group: Group, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stopwatch, "count", lambda *_: None)
    settings = Settings(32, 2, dealing=Terms("static"))
    with (
        caplog.at_level("WARNING", "hpcvol"),
        closing(make_run(group, built(Regression), numbers(96), settings)) as run,
    ):
        run.dealing.stopwatch.sample_seconds = 9.0 if group.rank == group.size - 1 else 1.0
        train(run, 13)
    told = [record.getMessage() for record in caplog.records if "as long for a sample" in record.getMessage()]
    name = group.name_of(group.size - 1)
    line = f"{name} takes 9.0 times as long for a sample as the median member and is dealt less"
    assert told == ([line] if group.size > 1 and group.rank == 0 else [])


def test_what_cannot_be_is_refused(group: Group) -> None:
    with pytest.raises(ConfigError, match=r'dealing = "dynamic" with sum = "float"'):
        Settings(8, 2, sum="float", dealing=Terms("dynamic"))
    with pytest.raises(ConfigError, match=r'dealing = "static" with strategy.combine'):
        Settings(8, 2, sum="float", combine="median", dealing=Terms("static"))
    with pytest.raises(ConfigError, match=r'dealing = "fair": expected "auto"'):
        Terms("fair")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'node07' -1"):
        Terms(limits={"node07": -1})
    assert Terms(limits={"node07": 1, "0": 2}, priorities={group.hosts[0]: 2.0}).unknown(group) == ["node07"]
