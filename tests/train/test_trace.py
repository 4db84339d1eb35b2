"""The trace of a run: valid, whole, on one clock, whoever is killed."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from digits_project import STEPS, Project, make_project, what_decides
from launched import RunRanks
from trace_reader import Slice, TraceContent, check_spans, read_trace
from two_hosts import as_hosts

from hpcvol import tracing
from hpcvol.comm import Group
from hpcvol.errors import ConfigError

TRACE = ("train.trace=true", "checkpoint.every_steps=2", "train.validate_every_steps=3")
# Nobody leaves one of these before all have come to it.
MEETINGS = ("gather records", "all-reduce sum", "exchange notices")


def check_meetings(trace: TraceContent, tolerance_ns: int) -> None:
    """Fail where a member left a collective before another had come to it: an effect before its cause."""
    for name in MEETINGS:
        rounds = list(zip(*(trace.named(name, member) for member in trace.members), strict=True))
        assert len(rounds) >= STEPS
        for met in rounds:
            assert max(one.begin for one in met) <= min(one.end for one in met) + tolerance_ns, met


def tolerance(trace: TraceContent) -> int:
    """Return by how many ns times of two members may be wrong, as the trace itself tells."""
    worst = [
        max(float(abs(one.args["off_us"]) + one.args["round_trip_us"]) for one in trace.named("compare clocks", member))
        for member in trace.members
    ]
    return round(2000 * max(worst))


def inside(outer: Slice, trace: TraceContent) -> set[str]:
    return {
        one.name
        for one in trace.slices
        if (one.member, one.thread) == (outer.member, outer.thread)
        and outer.begin <= one.begin
        and one.end <= outer.end
        and one is not outer
    }


def test_every_member_and_everything_it_did(group: Group, shared_project: Project) -> None:
    assert shared_project.train("run", *TRACE, group=group)
    group.barrier()
    trace = read_trace(shared_project.folder / "run" / "trace.json")
    assert trace.members == [group.name_of(rank) for rank in range(group.size)]
    check_spans(trace)
    # One node, one clock: not a nanosecond may be wrong.
    check_meetings(trace, tolerance_ns=0)
    for member in trace.members:
        steps = trace.named("step", member)
        assert [one.args["step"] for one in steps] == list(range(STEPS))
        units = {"data wait", "forward", "backward"}
        assert {"gather records", "all-reduce sum", "optimizer", *units} <= inside(steps[1], trace)
        assert units <= inside(trace.named("probe", member)[0], trace)
        evaluations = trace.named("evaluation", member)
        assert len(evaluations) == 3  # after 3 and 6 steps, and of the test split
        assert {"forward", "data wait"} <= inside(evaluations[0], trace)
        threads = {one.name: one.thread for one in trace.slices if one.member == member}
        assert threads["fetch"].startswith("hpcvol-prefetch")
        assert {threads[name] for name in ("step", "evaluation", "optimizer", "exchange notices")} == {"main"}
    first = trace.members[0]
    writes = trace.named("checkpoint write", first)
    assert sorted(one.args["step"] for one in writes) == [2, 3, 4, 6]
    assert {one.thread for one in writes} == {"hpcvol-checkpoint"}
    assert {one.thread for one in trace.named("checkpoint copy", first)} == {"main"}
    assert not tracing.is_on()


def test_off_writes_nothing_and_changes_nothing(group: Group, shared_project: Project) -> None:
    assert shared_project.train("off", group=group)
    assert shared_project.train("on", "train.trace=true", group=group)
    group.barrier()
    assert not list((shared_project.folder / "off").glob("*trace*"))
    assert what_decides(shared_project.summary("off")) == what_decides(shared_project.summary("on"))


def test_clocks_that_are_apart_are_aligned(
    group: Group, shared_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member's clock shows another time, as on hosts that were started on different days."""
    ahead_ns = 12_345_678_901_234 * group.rank
    monkeypatch.setattr("hpcvol.tracing.now", lambda: time.monotonic_ns() + ahead_ns)
    assert shared_project.train("run", *TRACE, group=group)
    group.barrier()
    trace = read_trace(shared_project.folder / "run" / "trace.json")
    check_spans(trace)
    assert max(one.end for one in trace.slices) < 12_345_000_000_000
    check_meetings(trace, tolerance(trace))


def test_a_drifting_clock_is_compared_again(
    group: Group, shared_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that gains a fiftieth: far more than any, so that a run of seconds shows it."""
    zero = time.monotonic_ns()
    monkeypatch.setattr("hpcvol.train.trace._FIRST_COMPARISON_SECONDS", 0.0)
    monkeypatch.setattr("hpcvol.train.aligned_clock._LARGEST_DRIFT", 0.1)
    rate = 1 + 0.02 * group.rank
    monkeypatch.setattr("hpcvol.tracing.now", lambda: zero + round((time.monotonic_ns() - zero) * rate))
    assert shared_project.train("run", *TRACE, group=group)
    group.barrier()
    trace = read_trace(shared_project.folder / "run" / "trace.json")
    check_spans(trace)
    for member in trace.members:
        # After each step, as the interval that doubles is none, and in the end.
        assert len(trace.named("compare clocks", member)) == STEPS + 1


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_a_trace_without_end_keeps_its_size(
    group: Group, shared_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcvol.train.trace._EACH_NBYTES", 2**15)
    monkeypatch.setattr("hpcvol.train.trace._LEAST_NBYTES", 2**15)
    monkeypatch.setattr("hpcvol.train.trace._FLUSH_SECONDS", 0.01)
    steps = 40
    assert shared_project.train("run", "train.trace=true", f"train.steps={steps}", group=group)
    group.barrier()
    path = shared_project.folder / "run" / "trace.json"
    assert path.stat().st_size < 2 * 2**15 + 8192
    trace = read_trace(path)
    check_spans(trace)
    for member in trace.members:
        seen = [one.args["step"] for one in trace.named("step", member)]
        assert seen[0] == 0
        assert seen[-1] == steps - 1
        assert len(seen) < steps
    assert trace.notes == ["spans from here on made room for later ones"] * 2


def test_starts_and_what_becomes_of_their_traces(project: Project) -> None:
    run = project.folder / "run"

    def steps(name: str) -> list[int]:
        (member,) = (trace := read_trace(run / name)).members
        return [one.args["step"] for one in trace.named("step", member)]

    assert project.train("run", "train.trace=true", "train.steps=2")
    assert steps("trace.json") == [0, 1]
    assert project.train("run", "train.steps=3")  # without: the trace stays as it is
    assert steps("trace.json") == [0, 1]
    assert project.train("run", "train.trace=true", "train.steps=5")
    assert (steps("trace.previous.json"), steps("trace.json")) == ([0, 1], [3, 4])
    assert project.train("run", "train.trace=true", "train.steps=6")
    assert (steps("trace.previous.json"), steps("trace.json")) == ([3, 4], [5])
    before = (run / "trace.json").read_bytes()
    assert project.train("run", "train.trace=true", "train.steps=6")  # it is complete
    assert (run / "trace.json").read_bytes() == before
    assert project.train("run", "train.steps=1", fresh=True)
    assert not list(run.glob("*trace*"))


def test_a_file_of_somebody_else_is_left_alone(project: Project) -> None:
    (project.folder / "run").mkdir()
    (project.folder / "run" / "trace.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds trace\.json and is not a run"):
        project.train("run", "train.trace=true")
    assert project.train("run")
    assert (project.folder / "run" / "trace.json").read_text() == "mine"


def test_a_trace_that_cannot_be_written_any_more_ends_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    trainer = project.trainer("run", "train.trace=true")
    monkeypatch.setattr("os.pwrite", refuse)
    assert trainer.fit()
    assert "trace.json cannot be written: [Errno 28] No space left on device" in caplog.text
    assert read_trace(project.folder / "run" / "trace.json").slices == []


@pytest.fixture
def hosts(group: Group, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    """The first rank on a host, the others on another."""
    monkeypatch.setattr("hpcvol.comm.sharing._PATIENCE_SECONDS", 0.05)
    with as_hosts(group, [min(1, rank) for rank in range(group.size)]) as made:
        yield made


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_hosts_that_share_nothing_have_one_trace_in_the_end(
    group: Group, hosts: Group, shared_path: Path, request: pytest.FixtureRequest
) -> None:
    if group.rank == 0:
        for host in (0, 1):
            make_project(shared_path / f"host{host}", request.getfixturevalue("digits_data"))
    group.barrier()
    mine = Project(shared_path / f"host{min(1, group.rank)}")
    trainer = mine.trainer("run", *TRACE, group=hosts)
    files = {str(path.relative_to(shared_path)) for path in shared_path.glob("*/run/*trace*")}
    group.barrier()
    assert files == {"host0/run/trace.json", "host1/run/trace.host1.json"}
    assert trainer.fit()
    group.barrier()
    assert [path.name for path in (shared_path / "host0" / "run").glob("*trace*")] == ["trace.json"]
    assert list((shared_path / "host1" / "run").iterdir()) == []
    trace = read_trace(shared_path / "host0" / "run" / "trace.json")
    assert trace.members == ["member 0 (host0)", "member 1 (host1)", "member 2 (host1)"]
    check_spans(trace)
    check_meetings(trace, tolerance_ns=0)


KILLED = """
import os, pathlib, re, signal, sys, time
from hpcvol import Trainer, load_config
import hpcvol.train.trainer as trainer
job, run = map(pathlib.Path, sys.argv[1:])
real = trainer.Trainer._log
def traced():
    text = (run / "trace.json").read_bytes()
    return all(re.search(rb'"step",[^\\n]*"pid":%d,[^\\n]*"step":2' % process, text) for process in (1, 2))
def log(self, step, done):
    real(self, step, done)
    if step.index == 3 and self._group.rank == 1:
        until = time.monotonic() + 20
        while not traced() and time.monotonic() < until:
            time.sleep(0.01)
        os.write(1, b"member 1 is killed, traced: %d" % traced())
        os.kill(os.getpid(), signal.SIGKILL)
trainer.Trainer._log = log
Trainer(load_config(job, ["train.trace=true", "train.steps=9"]), run).fit()
"""


@pytest.mark.limit_seconds(130)
def test_a_member_that_is_killed_leaves_a_whole_trace(project: Project, run_ranks: RunRanks) -> None:
    run = project.folder / "run"
    done = run_ranks(2, ["-c", KILLED, str(project.job), str(run)], seconds=100)
    assert done.returncode != 0
    assert "member 1 is killed, traced: 1" in done.stdout
    trace = read_trace(run / "trace.json")
    assert len(trace.members) == 2
    check_spans(trace)
    for member in trace.members:
        assert [one.args["step"] for one in trace.named("step", member)][:3] == [0, 1, 2]
    assert project.train("run", "train.trace=true")
    assert read_trace(run / "trace.previous.json") == trace
