"""Pytest on several ranks as if it were one: every rank runs the same tests in step, and rank 0 reports.

After each phase of each test (setup, call, teardown) the ranks tell each other how it went, so that a failure on one
is a failure on all and the next test starts on all of them. Outside mpiexec the same tests run in one process, and
those for more ranks are skipped by name.
"""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hang_watch import HangWatch

from hpcvol.comm import Group, start, under_launcher

LIMIT_SECONDS = 60.0

_watch_key = pytest.StashKey[HangWatch]()
_group_key = pytest.StashKey[Group]()
_outside_key = pytest.StashKey[bool]()


@dataclass(frozen=True)
class Share:
    """How one phase of a test, or collection, went on one rank."""

    outcome: str
    text: str
    outside: bool = False


@pytest.fixture(params=[1, 2, 3, 4], ids=lambda size: f"{size}ranks")
def group(request: pytest.FixtureRequest) -> Group:
    """The first 1, 2, 3 or 4 ranks as a group of their own. Ranks outside skip, and wait at the end of the test."""
    item, size = request.node, request.param
    if item.stash.get(_outside_key, False):
        pytest.skip(f"not one of the first {size} ranks")
    if _group_key not in item.stash:
        pytest.skip(f"takes {size} ranks: mpiexec -n {size}")
    made: Group = item.stash[_group_key]
    return made


@pytest.fixture
def shared_path(group: Group, tmp_path: Path) -> Iterator[Path]:
    """An empty folder that all ranks of the group share."""
    yield Path(group.broadcast_object(str(tmp_path)))
    # Rank 0's pytest removes the folder: not while somebody still writes there.
    group.barrier()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"limit_seconds(n): a hang is called so after n seconds, not {LIMIT_SECONDS:g}")
    config.addinivalue_line(
        "markers", "again_on_ranks: in a run of one process, what four ranks run too (set by itself)"
    )
    world = start() if under_launcher() else None
    rank, size = (0, 1) if world is None else (world.rank, world.size)
    run_id = os.getpid() if world is None else world.broadcast_object(os.getpid())
    watch = HangWatch(f"rank {rank} of {size}", run_id, config)
    config.stash[_watch_key] = watch
    config.add_cleanup(watch.close)
    if world is None:
        return
    _use_own_folder(config, run_id, rank)
    config.option.only_mpi = True  # pytest-mpi: what takes no ranks runs in one process, elsewhere
    config.pluginmanager.register(RanksInStep(world, watch), "ranks_in_step_plugin")
    if rank > 0:  # rank 0 reports
        config.pluginmanager.set_blocked("terminalreporter")


def _use_own_folder(config: pytest.Config, run_id: int, rank: int) -> None:
    """Give each rank a temporary folder of its own: several sessions that tidy up one would take it from each other."""
    if config.option.basetemp is None:
        folder = Path(tempfile.gettempdir(), f"hpcvol-tests-{run_id}-rank{rank}")
        config.option.basetemp = str(folder)
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what takes ranks as pytest-mpi's `mpi`; under mpiexec leave the rest to the one-process run."""
    launched = under_launcher()
    for item in items:
        if "group" in getattr(item, "fixturenames", ()) and (launched or _num_ranks(item) > 1):
            item.add_marker("mpi")
        if "group" in getattr(item, "fixturenames", ()) and not launched:
            item.add_marker("again_on_ranks")
    if not launched:
        return
    ours = [item for item in items if item.get_closest_marker("mpi") and not item.get_closest_marker("mpi_skip")]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(ours)])
    items[:] = ours


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    mark = item.get_closest_marker("limit_seconds")
    with item.config.stash[_watch_key].watching(item.nodeid, mark.args[0] if mark else LIMIT_SECONDS):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Make the group before any fixture can fail or skip: making it is collective."""
    if "group" not in getattr(item, "fixturenames", ()):
        return (yield)
    size = _num_ranks(item)
    if under_launcher() or size == 1:
        world = start()
        if size <= world.size:
            item.stash[_outside_key] = world.rank >= size
            item.stash[_group_key] = world.split(int(world.rank >= size))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        if _group_key in item.stash:
            item.stash[_group_key].close()
            del item.stash[_group_key]


class RanksInStep:
    """The hooks that talk to the other ranks; registered under mpiexec only."""

    def __init__(self, world: Group, watch: HangWatch) -> None:
        # Its own communicator, so that what a test leaves behind on the world's cannot be taken for ours.
        self._world = world.split(0)
        self._watch = watch
        self._collect_errors: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._collect_errors.append(report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Stop where ranks collected different tests, or one of them could not."""
        texts = self._world.gather_objects("\n".join(self._collect_errors))
        names = self._world.gather_objects([item.nodeid for item in session.items])
        if any(texts):
            # Rank 0 prints its own errors anyway.
            other = [f"\n--- rank {rank} ---\n{text}" for rank, text in enumerate(texts) if text not in ("", texts[0])]
            pytest.exit("collection failed" + "".join(other), returncode=2)
        for rank, theirs in enumerate(names):
            if theirs != names[0]:
                only = sorted(set(theirs) ^ set(names[0])) or ["the same tests in another order"]
                pytest.exit(f"rank {rank} collected other tests than rank 0: {', '.join(only[:5])}", returncode=2)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        outside = item.stash.get(_outside_key, False)
        runs = self._share(report, outside)
        if call.when == "setup" and outside and runs:
            # The others run the body now. Wait for its end here: a skipped test has no report for that phase.
            self._share(report, outside)
        return report

    def _share(self, report: pytest.TestReport, outside: bool) -> bool:
        """Make `report` say what happened on all ranks; return whether the phase passed on those inside."""
        mine = Share(report.outcome, _text(report), outside and report.skipped)
        if report.failed:
            # If the others are stuck waiting for this rank they never reach the exchange below.
            self._watch.expect_the_others(f"failed in its {report.when}:\n{mine.text}")
        shares = self._world.gather_objects(mine)
        self._watch.all_here()
        inside = {rank: share for rank, share in enumerate(shares) if not share.outside}
        outcomes = {share.outcome for share in inside.values()}
        if "failed" in outcomes:
            report.outcome = "failed"
            report.longrepr = "\n".join(_said(inside)) if len(shares) > 1 else report.longrepr
        elif len(outcomes) > 1:
            report.outcome = "failed"
            skipped = ", ".join(str(rank) for rank, share in inside.items() if share.outcome == "skipped")
            report.longrepr = f"the test was skipped on some ranks only: {skipped}"
        return outcomes == {"passed"}


def _said(shares: dict[int, Share]) -> Iterator[str]:
    """Yield the text of the failing ranks, once where several say the same."""
    texts: dict[str, list[int]] = {}
    for rank, share in shares.items():
        if share.outcome == "failed":
            texts.setdefault(share.text, []).append(rank)
    for text, ranks in texts.items():
        yield f"--- failed on rank {', '.join(map(str, ranks))} ---\n{text}"


def _text(report: pytest.TestReport) -> str:
    captured = "".join(f"\n--- {name} ---\n{text}" for name, text in report.sections if report.failed)
    return report.longreprtext + captured


def _num_ranks(item: pytest.Item) -> int:
    """Return the size of the group that `item` asks for."""
    callspec = getattr(item, "callspec", None)
    return int(callspec.params["group"]) if callspec is not None and "group" in callspec.params else 1
