"""`jobscripts/train.sbatch` as a user submits it, in a real Slurm: whatever happens to the job, the run ends with the
weights of a run that was left alone.

Every story is a function, played on a node of its own, or on hosts and in a Slurm of its own; several play at a time,
since most of each is waiting for Slurm.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab_needs import hosts_are_needed, slurm_is_needed
from slurm_project import STEPS, SlurmProject, make_project
from throwaway_slurm import Settings, throwaway_slurm
from virtual_hosts import virtual_hosts

from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import MPICH, OPEN_MPI, vendor_of

Story = Callable[[SlurmProject], None]
Undisturbed = Callable[[int], str]
AT_ONCE = 4
LIMIT_SECONDS = 280
pytestmark = pytest.mark.limit_seconds(LIMIT_SECONDS + 20)

# Stands for hpcvol where no training is needed: stops when it is asked to, without a checkpoint.
STUCK = "hpcvol=(bash -c 'trap \"exit 130\" USR1; echo waiting; sleep 1000 & wait' stuck)\n"


def notices(project: SlurmProject, job: str) -> None:
    """Send what Slurm sends before the time limit."""
    project.slurm.command("scancel", "--signal=USR1", "--batch", job)


def outrank(project: SlurmProject) -> str:
    """Submit a job that pre-empts the one on the project's node; return its id."""
    argv = ["-p", "urgent", "-w", project.node, "--exclusive", "--output=/dev/null", "--wrap", "true"]
    return project.slurm.submit(argv, project.folder)


def resumed_at(project: SlurmProject, job: str) -> list[int]:
    """Return the steps at which starts of a run went on."""
    return [int(step) for step in re.findall(r"going on from .* at step (\d+)", project.output(job))]


def assert_whole(
    project: SlurmProject, job: str, *, restarts: int | None = None, name: str = "job", seed: int = 0
) -> None:
    """Wait for the end of a run and of its job; it has the weights of an undisturbed one."""
    project.pace(0)
    summary = project.until_complete(job, name)
    assert summary["weights_sha256"] == project.undisturbed(seed)
    project.until_state(job, "COMPLETED")
    if restarts is not None:
        assert project.slurm.show(job)["Restarts"] == str(restarts)


def in_the_middle(project: SlurmProject, *options: str, pace: float = 0.1) -> str:
    """Submit the run and wait until it has made some steps and a checkpoint."""
    project.pace(pace)
    job = project.submit(*options)
    project.until_step(job, 5)
    return job


def left_alone(project: SlurmProject) -> None:
    job = project.submit("-n", "2")
    assert_whole(project, job, restarts=0)
    assert project.summary()["ranks"] == 2
    assert "2 cores; " in project.output(job) or "2 cores\n" in project.output(job)


def usr1(project: SlurmProject) -> None:
    job = in_the_middle(project)
    notices(project, job)
    assert_whole(project, job, restarts=1)
    assert "train.sbatch: requeued" in project.output(job)
    (step,) = resumed_at(project, job)
    assert step >= 5  # not the periodic checkpoint of step 4: nothing was lost
    assert f"stopped on request after step {step}" in project.output(job)


def ranks_by_srun(project: SlurmProject) -> None:
    if vendor_of(loaded_library()) != MPICH:
        pytest.skip("this Slurm speaks pmi2 and Open MPI does not")
    command = shlex.join([sys.executable, "-m", "hpcvol.cli"])
    (project.folder / "site.sh").write_text(f"hpcvol=(srun --mpi=pmi2 {command})\n")
    job = in_the_middle(project, "-n", "2")
    notices(project, job)
    assert_whole(project, job, restarts=1)
    assert project.summary()["ranks"] == 2
    assert resumed_at(project, job)[0] >= 5


def time_limit(project: SlurmProject) -> None:
    project.pace(1.2)  # 58 seconds for the whole run
    job = project.submit("--time=1", "--signal=B:USR1@25")
    project.slurm.until(job, lambda: project.slurm.show(job)["Restarts"] != "0")
    assert "SIGUSR1: stopping" in project.output(job)
    assert "stopped on request" in project.output(job)
    assert_whole(project, job)


# What a Slurm with accounts answers; this one keeps none, and tells nobody the signal that a job asked for.
SACCT = """#!/bin/bash
[ "$*" = "-X -n -P -j $SLURM_JOB_ID -o SubmitLine" ] || exit 1
echo "sbatch --time 30 --time-min=20 --signal=B:USR1@77 --job-name=my run --no-kill -d singleton train.sbatch job.toml"
"""
SBATCH = """#!/bin/bash
printf '%s\\n' "$@" >>submitted
exec {sbatch} "$@"
"""


def requeue_forbidden(project: SlurmProject) -> None:
    programs = {"sacct": SACCT, "sbatch": SBATCH.format(sbatch=shutil.which("sbatch"))}
    with_programs(project, programs)
    asked_for = {
        "--time-min=20": ("TimeMin", "00:20:00"),
        "--nice=7": ("Nice", "7"),
        "--mail-user=someone": ("MailUser", "someone"),
        "--mail-type=FAIL": ("MailType", "FAIL"),
        "--cpus-per-task=2": ("CPUs/Task", "2"),
        "--ntasks-per-node=1": ("NtasksPerN:B:S:C", "1:0:*:*"),
        "--no-requeue": ("Requeue", "0"),
    }
    job = in_the_middle(
        project,
        *asked_for,
        "--time=30",
        "--job-name=my run",
        "--comment=two words",
        "--error=errors-%j.txt",
        "--signal=B:USR1@77",
    )
    notices(project, job)
    project.until_state(job, "COMPLETED")
    new = re.search(r"submitted again as job (\d+)", project.output(job))
    assert new, project.output(job)
    again = project.slurm.show(new[1])
    asked = project.slurm.show(job)
    for key in ("Partition", "NumTasks", "ReqNodeList"):
        assert again[key] == asked[key]
    for key, value in asked_for.values():
        assert (key, asked[key]) == (key, value)
        assert (key, again[key]) == (key, value)
    assert again["NumNodes"] in ("1", "1-1")
    told = project.slurm.command("scontrol", "show", "job", new[1])
    for line in ("JobName=my run", "Comment=two words", f"StdErr={project.folder}/errors-{job}.txt"):
        assert line in told
    submitted = (project.folder / "submitted").read_text().splitlines()
    assert [word for word in submitted if word.startswith("--time=")][-1] == "--time=30"
    assert {"--signal=B:USR1@77", "--no-kill"} <= set(submitted)
    assert f"--dependency=afterany:{job},singleton" in submitted
    assert_whole(project, new[1], restarts=0)
    assert len(resumed_at(project, new[1])) == 1


def with_programs(project: SlurmProject, programs: dict[str, str], setting: str = "") -> None:
    """Let the job find these programs before Slurm's."""
    folder = project.folder / "bin"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    site = project.folder / "site.sh"
    site.write_text(f'{setting or site.read_text()}PATH="{folder}:$PATH"\n')


def nothing_goes(project: SlurmProject) -> None:
    with_programs(project, {"sbatch": "#!/bin/sh\necho no submitting from here >&2; exit 1\n"}, STUCK)
    job = project.submit("--no-requeue", "--time=7", arguments=("--set", "model.args={a=1, b=2}"))
    project.until_output(job, "waiting")
    notices(project, job)
    project.until_state(job, "FAILED")
    said = project.output(job)
    assert "no submitting from here" in said
    line = said.splitlines()[-1].partition("what goes on: ")[2]
    assert line.startswith(f"cd {project.folder} && sbatch ".replace(" run", "\\ run"))
    assert "--time=00:07:00" in line
    # The line is a command: it submits a job with the same arguments.
    new = project.slurm.command("bash", "-c", line).split()[-1]
    command = project.slurm.command("scontrol", "show", "job", new)
    assert f"Command={project.folder}/train.sbatch job.toml --set model.args={{a=1, b=2}}\n" in command


def requeue_is_not_the_sites_default(project: SlurmProject) -> None:
    job = in_the_middle(project)
    notices(project, job)
    assert_whole(project, job, restarts=1)  # the script asks for it


def preempted(project: SlurmProject) -> None:
    job = in_the_middle(project)
    urgent = outrank(project)
    project.until_state(urgent, "COMPLETED")
    assert project.slurm.show(job)["Restarts"] == "1"
    assert "SIGUSR1: stopping" in project.output(job)
    assert_whole(project, job, restarts=1)
    assert resumed_at(project, job)[0] >= 5


def preempted_and_cancelled(project: SlurmProject) -> None:
    job = in_the_middle(project, "-p", "cancelled")
    urgent = outrank(project)
    project.until_state(urgent, "COMPLETED")
    assert "SIGUSR1: stopping" in project.output(job)
    assert_whole(project, job, restarts=1)
    assert resumed_at(project, job)[0] >= 5


def preempted_and_cancelled_for_good(project: SlurmProject) -> None:
    job = in_the_middle(project, "-p", "cancelled", "--no-requeue")
    urgent = outrank(project)
    project.until_state(urgent, "COMPLETED")
    new = re.search(r"submitted again as job (\d+)", project.output(job))
    assert new, project.output(job)
    assert_whole(project, new[1], restarts=0)
    assert resumed_at(project, new[1])[0] >= 5


def preempted_without_grace(project: SlurmProject) -> None:
    job = in_the_middle(project, "-p", "graceless")
    project.pace(30)  # longer than Slurm waits before it kills
    urgent = outrank(project)
    project.until_state(urgent, "COMPLETED")
    killed, _, _ = project.output(job).partition("DUE TO PREEMPTION")
    assert killed != project.output(job)
    assert "stopped on request" not in killed
    last = int(re.findall(r"^step (\d+)/", killed, re.MULTILINE)[-1])
    assert_whole(project, job, restarts=1)
    assert resumed_at(project, job) == [last // 4 * 4]  # the last periodic checkpoint


def preempted_without_signal(project: SlurmProject) -> None:
    """Nobody tells the script; the processes that Slurm started for mpiexec get SIGTERM."""
    job = in_the_middle(project, pace=0.6)
    urgent = outrank(project)
    project.until_state(urgent, "COMPLETED")
    assert project.slurm.show(job)["Restarts"] == "1"
    assert_whole(project, job, restarts=1)
    assert resumed_at(project, job)[0] >= 4


def cancelled_without_signal(project: SlurmProject) -> None:
    """As the above, but Slurm would not put the job back."""
    job = in_the_middle(project, "-p", "cancelled", pace=0.6)
    urgent = outrank(project)
    project.until_state(urgent, "COMPLETED")
    assert "train.sbatch: requeued" in project.output(job)
    assert_whole(project, job, restarts=1)
    assert resumed_at(project, job)[0] >= 4


def cancelled_at_the_end_of_grace(project: SlurmProject) -> None:
    """SIGTERM comes to the script seconds before the end: it requeues the job before it waits for training."""
    (project.folder / "site.sh").write_text(
        'hpcvol=(bash -c \'trap "" TERM; trap "echo asked" USR1; echo waiting; while :; do sleep 1; done\' deaf)\n'
    )
    job = project.submit("-p", "cancelled")
    project.until_output(job, "waiting")
    urgent = outrank(project)
    project.until_state(urgent, "COMPLETED")
    said, _, _ = project.output(job).partition("waiting\nwaiting")
    assert "asked" in said
    assert "train.sbatch: requeued" in said
    assert project.slurm.show(job)["Restarts"] == "1"
    project.slurm.command("scancel", job)


def array(project: SlurmProject) -> None:
    project.pace(0.1)
    job = project.submit("--array=1-2", arguments=("--set", "train.seed=%a"))
    for task in ("1", "2"):
        project.until_step(f"{job}_{task}", 5, f"job-{task}")
    notices(project, f"{job}_1")
    assert_whole(project, f"{job}_2", restarts=0, name="job-2", seed=2)
    assert_whole(project, f"{job}_1", restarts=1, name="job-1", seed=1)
    assert not project.run_dir("job").exists()


def no_progress(project: SlurmProject) -> None:
    (project.folder / "site.sh").write_text(STUCK)
    job = project.submit()
    for start in (1, 2):
        project.slurm.until(job, lambda start=start: project.output(job).count("waiting") == start)
        notices(project, job)
    project.until_state(job, "FAILED")
    assert project.slurm.show(job)["Restarts"] == "1"
    assert "no new checkpoint in two starts" in project.output(job)
    assert (project.run_dir() / ".starts").read_text() == f"{job} \n{job} \n"


def users_scancel(project: SlurmProject) -> None:
    job = in_the_middle(project)
    project.slurm.command("scancel", job)
    project.until_state(job, "CANCELLED")
    said = project.output(job)
    assert "train.sbatch: cancelled; what goes on" in said
    assert project.slurm.show(job)["Restarts"] == "0"
    assert project.slurm.command("squeue", "-h", "-w", project.node) == ""
    line = re.search(r"cancelled; what goes on from the last checkpoint: (.*)", said)
    assert line
    project.pace(0)
    new = project.slurm.command("bash", "-c", line[1]).split()[-1]
    assert_whole(project, new, restarts=0)
    assert resumed_at(project, new)[0] >= 4


def failure(project: SlurmProject) -> None:
    job = project.submit(arguments=("--set", "model.args.broken=true"))
    project.until_state(job, "FAILED")
    assert project.slurm.show(job)["Restarts"] == "0"
    said = project.output(job)
    assert "this model cannot be built" in said
    assert "train.sbatch: training failed" in said


def two_nodes_on_two_hosts(folder: Path, undisturbed: Undisturbed) -> None:
    hosts_are_needed()
    with virtual_hosts(2) as hosts, throwaway_slurm(hosts=hosts) as slurm:
        project = make_project(folder, slurm, None, undisturbed)
        project.pace(0.1)
        job = project.submit("-N", "2", "--ntasks-per-node=1")
        project.until_step(job, 5)
        notices(project, job)
        assert_whole(project, job, restarts=1)
        assert project.summary()["ranks"] == 2
        assert project.slurm.show(job)["NumNodes"] == "2"
        assert resumed_at(project, job)[0] >= 5
        assert project.step() == STEPS
        assert all(one.sent_nbytes > 10_000 for one in hosts.traffic().values())


def a_node_loses_power(folder: Path, undisturbed: Undisturbed) -> None:
    """mpiexec ends before Slurm has noticed; the job goes on, on the nodes that are left."""
    hosts_are_needed()
    with virtual_hosts(3) as hosts, throwaway_slurm(hosts=hosts) as slurm:
        project = make_project(folder, slurm, None, undisturbed)
        project.pace(0.3)
        job = project.submit("-N", "2", "--ntasks-per-node=1")
        project.until_step(job, 5)
        assert slurm.show(job)["NodeList"] == "h[0-1]"
        assert hosts.power_off("h1")
        assert_whole(project, job, restarts=1)
        assert slurm.show(job)["NodeList"] == "h[0,2]"
        assert "train.sbatch: a node does not answer" in project.output(job)
        (step,) = resumed_at(project, job)
        assert step in range(4, STEPS, 4)  # a periodic checkpoint


def a_node_is_lost_and_the_run_goes_on(folder: Path, undisturbed: Undisturbed) -> None:
    """Its network goes with its power, as in life: nothing tells the launcher that its daemon there has ended."""
    if vendor_of(loaded_library()) != OPEN_MPI:
        pytest.skip("members outlive their hosts under Open MPI only")
    hosts_are_needed()
    with virtual_hosts(2) as hosts, throwaway_slurm(hosts=hosts) as slurm:
        project = make_project(folder, slurm, None, undisturbed)
        project.pace(0.3)
        arguments = ("--set", "elastic.detect_seconds=5")
        job = project.submit("-N", "2", "--ntasks-per-node=1", "--no-kill", arguments=arguments)
        project.until_step(job, 5)
        hosts.cut("h1")
        assert hosts.power_off("h1")
        project.slurm.until(job, lambda: "died: 1 member goes on" in project.output(job))
        assert_whole(project, job, restarts=0)
        assert resumed_at(project, job) == []


STORIES_ON_HOSTS = (a_node_is_lost_and_the_run_goes_on, a_node_loses_power, two_nodes_on_two_hosts)
STORIES: dict[Settings, tuple[Story, ...]] = {
    Settings(): (
        time_limit,
        left_alone,
        usr1,
        ranks_by_srun,
        requeue_forbidden,
        nothing_goes,
        preempted,
        preempted_and_cancelled,
        preempted_and_cancelled_for_good,
        preempted_without_grace,
        array,
        no_progress,
        users_scancel,
        failure,
    ),
    Settings(user_signal=False, grace_seconds=1, requeue=False): (
        preempted_without_signal,
        cancelled_without_signal,
        cancelled_at_the_end_of_grace,
        requeue_is_not_the_sites_default,
    ),
}
NAMES = [story.__name__ for stories in (STORIES_ON_HOSTS, *STORIES.values()) for story in stories]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The weights of a run that was left alone, by seed."""
    project = make_project(tmp_path_factory.mktemp("undisturbed"))
    weights = {}
    for seed in range(3):
        project.train(f"of-{seed}", f"train.seed={seed}")
        weights[seed] = project.summary(f"of-{seed}")["weights_sha256"]
    assert len(set(weights.values())) == 3
    return weights.__getitem__


@pytest.fixture(scope="module")
def told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, undisturbed: Undisturbed
) -> Iterator[dict[str, Future[None]]]:
    """The stories that are selected, by name, as they play."""
    slurm_is_needed()
    callspecs = [getattr(item, "callspec", None) for item in request.session.items]
    selected = {callspec.params.get("story") for callspec in callspecs if callspec}
    playing: dict[str, Future[None]] = {}
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(AT_ONCE)
        stack.callback(pool.shutdown, cancel_futures=True)
        for on_hosts in STORIES_ON_HOSTS:
            if on_hosts.__name__ in selected:
                folder = tmp_path_factory.mktemp(on_hosts.__name__)
                playing[on_hosts.__name__] = pool.submit(on_hosts, folder, undisturbed)
        for settings, stories in STORIES.items():
            chosen = [story for story in stories if story.__name__ in selected]
            if not chosen:
                continue
            slurm = stack.enter_context(throwaway_slurm(len(chosen), settings))
            for story, node in zip(chosen, slurm.nodes, strict=True):
                folder = tmp_path_factory.mktemp(story.__name__) / "a run"
                project = make_project(folder, slurm, node, undisturbed)
                playing[story.__name__] = pool.submit(story, project)
        yield playing


@pytest.mark.parametrize("story", NAMES)
def test_story(story: str, told: dict[str, Future[None]]) -> None:
    told[story].result(LIMIT_SECONDS)
