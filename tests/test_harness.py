"""The harness itself: a failure on one rank fails the run, a hang ends with every rank's stack, ranks stay in step."""

import re
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from launched import RunProgram, RunRanks

HARNESS = Path(__file__).parent / "harness"


class Outcome:
    """What a run of pytest under mpiexec said."""

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        self.status, self.stdout, self.stderr = status, stdout, stderr

    def counts(self) -> dict[str, int]:
        last = self.stdout.strip().splitlines()[-1]
        return {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last.split(" in ")[0])}


class RunTests:
    """Runs the body of a test file on some ranks."""

    def __init__(self, folder: Path, run_ranks: RunRanks) -> None:
        self._folder, self._run_ranks = folder, run_ranks

    def __call__(self, num_ranks: int, body: str) -> Outcome:
        (self._folder / "conftest.py").write_text('pytest_plugins = ["ranks_in_step", "without_mpi"]\n')
        (self._folder / "test_it.py").write_text("import os, pytest, time\n" + dedent(body))
        (self._folder / "pytest.ini").write_text("[pytest]\n")
        pytest_there = ["-m", "pytest", "-p", "no:cacheprovider", "--color=no", str(self._folder)]
        ended = self._run_ranks(num_ranks, pytest_there, variables={"PYTHONPATH": str(HARNESS)})
        return Outcome(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def run_tests(tmp_path: Path, run_ranks: RunRanks) -> RunTests:
    return RunTests(tmp_path, run_ranks)


def test_one_body_runs_on_every_size_and_one_rank_reports(run_tests: RunTests) -> None:
    outcome = run_tests(
        3,
        """
        def test_sum(group):
            assert sum(group.gather_objects(1)) == group.size

        def test_folder(group, shared_path):
            (shared_path / str(group.rank)).touch()
            group.barrier()
            assert len(list(shared_path.iterdir())) == group.size

        def test_without_ranks():
            raise AssertionError("this one is for a single process")
        """,
    )
    assert outcome.status == 0, outcome.stdout + outcome.stderr
    assert outcome.counts() == {"passed": 6, "skipped": 2, "deselected": 1}
    assert outcome.stdout.count("test session starts") == 1


def test_a_failure_on_one_rank_is_a_failure_and_the_rest_goes_on(run_tests: RunTests) -> None:
    outcome = run_tests(
        2,
        """
        @pytest.fixture
        def broken(group):
            if group.rank == 1:
                raise OSError("disk full")

        @pytest.fixture
        def left_open(group):
            yield
            assert group.rank == 0, "left open"

        @pytest.mark.parametrize("bad", [0, 1])
        def test_call(group, bad):
            assert group.size == 1 or group.rank != bad, f"wrong on {group.rank}"

        def test_setup(group, broken):
            group.barrier()

        def test_teardown(group, left_open):
            group.barrier()

        def test_skip(group):
            if group.rank == 1:
                pytest.skip("not here")

        def test_good(group):
            assert sum(group.gather_objects(1)) == group.size
        """,
    )
    assert outcome.status != 0
    # For one rank all six pass; for two two calls fail, setup and teardown are errors, the skip fails, two bodies pass.
    assert outcome.counts() == {"failed": 3, "passed": 8, "skipped": 12, "errors": 2}
    for bad in (0, 1):
        assert f"wrong on {bad}" in outcome.stdout
    for text in ("failed on rank 0 ---", "failed on rank 1 ---", "disk full", "left open"):
        assert text in outcome.stdout
    assert "the test was skipped on some ranks only: 1" in outcome.stdout


def test_ranks_that_wait_for_one_that_failed_end_with_stacks(run_tests: RunTests) -> None:
    outcome = run_tests(
        2,
        """
        import hang_watch
        hang_watch.PATIENCE_SECONDS = 2.0

        def test_left_alone(group):
            assert group.rank == 0, "rank 1 is out"
            if group.size > 1:
                wait_for_the_other(group)

        def wait_for_the_other(group):
            group.barrier()
        """,
    )
    assert outcome.status != 0
    assert "rank 1 is out" in outcome.stderr
    assert "=== rank 0 of 2: " in outcome.stderr
    assert "=== rank 1 of 2: " in outcome.stderr
    assert "in wait_for_the_other" in outcome.stderr


def test_a_hang_ends_with_the_stacks_of_all_ranks(run_tests: RunTests) -> None:
    outcome = run_tests(
        2,
        """
        @pytest.mark.limit_seconds(2)
        def test_hang(group):
            if group.size > 1:
                wait_forever(group) if group.rank == 0 else sleep_forever()

        def wait_forever(group):
            group.broadcast_object(None, root=1)
            group.broadcast_object(None, root=1)

        def sleep_forever():
            time.sleep(3600)
        """,
    )
    assert outcome.status != 0
    for rank, function in ((0, "wait_forever"), (1, "sleep_forever")):
        assert f"=== rank {rank} of 2: " in outcome.stderr
        assert f"in {function}" in outcome.stderr
    assert "test_hang[2ranks]: has not ended after 2 s" in outcome.stderr


def test_an_import_that_fails_on_one_rank_stops_all(run_tests: RunTests) -> None:
    outcome = run_tests(
        2,
        """
        from hpcvol.comm import start
        if start().rank == 1:
            raise ImportError("not on this node")

        def test_body(group):
            group.barrier()
        """,
    )
    assert outcome.status != 0
    assert "not on this node" in outcome.stdout + outcome.stderr


def test_ranks_that_collect_different_tests_stop(run_tests: RunTests) -> None:
    outcome = run_tests(
        2,
        """
        from hpcvol.comm import start

        @pytest.mark.parametrize("seed", [start().rank])
        def test_body(group, seed):
            group.barrier()
        """,
    )
    assert outcome.status != 0
    assert "rank 1 collected other tests than rank 0" in outcome.stdout + outcome.stderr


def test_a_test_that_takes_ranks_is_not_one_without_mpi(run_tests: RunTests) -> None:
    outcome = run_tests(
        1,
        """
        @pytest.mark.without_mpi
        def test_body(group):
            group.barrier()
        """,
    )
    assert outcome.status != 0
    assert "test_body[1ranks] is marked without_mpi and takes ranks: group" in outcome.stdout + outcome.stderr


@pytest.mark.without_mpi
def test_what_a_test_without_mpi_starts_finds_none(run_program: RunProgram) -> None:
    ended = run_program([sys.executable, "-c", "from hpcvol.comm import start; start()"])
    assert ended.returncode == 1
    assert "no MPI library found" in ended.stderr
