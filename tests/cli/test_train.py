"""`hpcvol train` from a shell: what it starts, what it prints, how it ends."""

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from launched import RunProgram, RunRanks

from hpcvol.data import build_dataset

# Some start ranks twice, which takes a busy machine a while.
pytestmark = pytest.mark.limit_seconds(240)
HPCVOL = [sys.executable, "-m", "hpcvol.cli"]
LIMIT = 100.0
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the example digits."""
    out = tmp_path_factory.mktemp("digits") / "data-digits"
    return build_dataset("python", [f"{EXAMPLES}/digits.py:samples"], out, split="train=.7,val=.1,test=.2")


@pytest.fixture
def job(tmp_path: Path, data: Path) -> Path:
    """A project of the example digits, its dataset built, in a folder that a shell would split in two words."""
    folder = tmp_path / "my digits"
    folder.mkdir()
    shutil.copytree(data, folder / "data-digits")
    shutil.copy(EXAMPLES / "digits.py", folder)
    return Path(shutil.copy(EXAMPLES / "digits.toml", folder / "job.toml"))


def summary(run_dir: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((run_dir / "summary.json").read_text())
    return content


def test_ranks_are_started_and_the_command_is_printed(run_program: RunProgram, job: Path) -> None:
    done = run_program([*HPCVOL, "train", str(job), "-n", "2", "--set", "train.steps=4"], seconds=LIMIT)
    assert done.returncode == 0, done.stderr
    note, command, *lines = done.stdout.splitlines()
    assert "MPI" in note or "MPICH" in note
    assert command.startswith("$ ")
    assert " -n 2 " in command
    assert f"train '{job}' --set train.steps=4 --run-dir '{job.parent}/runs/job'" in command
    assert any("batch 64 = 8 units of 8 over 2 workers" in line for line in lines)
    assert "\r" not in done.stdout  # no terminal: plain lines
    assert summary(job.parent / "runs" / "job")["ranks"] == 2


def test_one_rank_gives_the_weights_of_three(run_program: RunProgram, job: Path) -> None:
    for ranks in (1, 3):
        run_dir = job.parent / f"of-{ranks}"
        arguments = ["-n", str(ranks), "--set", "train.steps=6", "--run-dir", str(run_dir)]
        done = run_program([*HPCVOL, "train", str(job), *arguments], seconds=LIMIT)
        assert done.returncode == 0, done.stderr
    one, three = summary(job.parent / "of-1"), summary(job.parent / "of-3")
    assert (one["ranks"], three["ranks"]) == (1, 3)
    assert one["weights_sha256"] == three["weights_sha256"]


def test_under_a_launcher_it_takes_its_place(run_ranks: RunRanks, job: Path) -> None:
    done = run_ranks(2, ["-m", "hpcvol.cli", "train", str(job), "--set", "train.steps=4"], seconds=LIMIT)
    assert done.returncode == 0, done.stderr
    assert "$ " not in done.stdout
    assert summary(job.parent / "runs" / "job")["ranks"] == 2


def test_a_rank_starts_no_ranks(run_program: RunProgram, job: Path) -> None:
    variables = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    done = run_program([*HPCVOL, "train", str(job), "-n", "2"], variables=variables)
    assert done.returncode == 1
    assert "this process is a rank already" in done.stderr


def test_a_wrong_configuration_is_refused_before_anything_starts(run_program: RunProgram, job: Path) -> None:
    done = run_program([*HPCVOL, "train", str(job), "-n", "2", "--set", "train.stepz=4"])
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "hpcvol: error: --set train.stepz=4: unknown key 'stepz' in [train]. Did you mean 'steps'?\n"


def test_a_failing_model_is_told_and_the_status_says_so(run_program: RunProgram, job: Path) -> None:
    done = run_program([*HPCVOL, "train", str(job), "-n", "2", "--set", "model.build=digits.py:bild"], seconds=LIMIT)
    assert done.returncode not in (0, 130)
    assert done.stderr.count("there is no function bild") == 1
    assert "Did you mean build?" in done.stderr
    assert "the run is not complete" in done.stderr
    assert not (job.parent / "runs" / "job" / "summary.json").exists()


def interrupt(job: Path, times: int) -> tuple[int, str]:
    """Start a long run on two ranks, interrupt it `times` times after its tenth step; return status and output."""
    arguments = ["train", str(job), "-n", "2", "--set", "train.steps=1000000", "--set", "optimizer.schedule=constant"]
    with subprocess.Popen(
        [*HPCVOL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        seen = ""
        try:
            for line in process.stdout:
                seen += line
                if line.startswith("step 10/"):
                    process.send_signal(signal.SIGINT)
                if times > 1 and "again ends at once" in line:
                    process.send_signal(signal.SIGINT)
            return process.wait(), seen
        finally:
            process.kill()


def test_ctrl_c_checkpoints_and_the_same_command_goes_on(run_program: RunProgram, job: Path) -> None:
    status, seen = interrupt(job, times=1)
    assert status == 130, seen
    assert "again ends at once" in seen
    run_dir = job.parent / "runs" / "job"
    assert not (run_dir / "summary.json").exists()
    steps = [int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").glob("step-*")]
    assert len(steps) >= 1, seen
    last = max(steps)
    before = json.loads((run_dir / "ledger.jsonl").read_text().splitlines()[-1])
    assert (before["event"], before["version"]) == ("stop", last)
    more = ["--set", f"train.steps={last + 3}", "--set", "optimizer.schedule=constant"]
    done = run_program([*HPCVOL, "train", str(job), *more], seconds=LIMIT)
    assert done.returncode == 0, done.stderr
    assert f"at step {last}" in done.stdout
    assert summary(run_dir)["steps"] == last + 3


def is_a_rank_that_holds_usr1_back(process: psutil.Process) -> bool:
    """Return whether `process` is a rank with SIGUSR1 blocked; a program that is being started blocks all signals."""
    with suppress(OSError, psutil.Error):
        blocked = re.search(r"^SigBlk:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        is_rank = "HPCVOL_LAUNCHED" in process.environ() and "hpcvol.cli" in process.cmdline()
        return is_rank and blocked is not None and int(blocked[1], 16) == 1 << (signal.SIGUSR1 - 1)
    return False


def test_ctrl_c_in_a_ranks_first_moment_checkpoints_too(job: Path) -> None:
    argv = [*HPCVOL, "train", str(job), "--set", "train.steps=1000000", "--set", "optimizer.schedule=constant"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            hpcvol = psutil.Process(process.pid)
            while not any(is_a_rank_that_holds_usr1_back(one) for one in hpcvol.children(recursive=True)):
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            seen = process.communicate()[0]
        finally:
            process.kill()
    assert process.returncode == 130, seen
    assert "stopped on request after step 1, with a checkpoint" in seen


def test_a_second_ctrl_c_ends_at_once(job: Path) -> None:
    status, seen = interrupt(job, times=2)
    assert status == 130, seen
    assert not (job.parent / "runs" / "job" / "summary.json").exists()
