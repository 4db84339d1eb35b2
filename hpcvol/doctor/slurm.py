"""Slurm: its tools, the job that this is in, and what its policy means for a run that wants to survive it."""

import re
import shutil
from collections.abc import Iterator, Mapping

from hpcvol import environment
from hpcvol.comm.launch import loaded_library
from hpcvol.comm.launcher import MPICH, OPEN_MPI, vendor_of
from hpcvol.doctor.asking import ask
from hpcvol.doctor.finding import Finding, note, ok, wrong
from hpcvol.errors import HpcvolError

_TOPIC = "Slurm"
_SECONDS = 5.0


def check_slurm() -> Iterator[Finding]:
    """Yield what there is to say of Slurm; one line where there is none."""
    job = environment.variable("SLURM_JOB_ID")
    if shutil.which("sinfo") is None:
        if job is None:
            yield note(_TOPIC, "tools", "none here: runs start on this host, or on hosts given to mpiexec")
        else:
            yield wrong(_TOPIC, "tools", f"in job {job}, but sinfo is not on PATH", "put Slurm's bin folder on PATH")
        return
    version = ask(["sinfo", "--version"], _SECONDS)
    if not version.good:
        found = f"installed, but not set up: {version.complaint}"
        yield (
            wrong(_TOPIC, "tools", found, "export SLURM_CONF=/path/to/slurm.conf")
            if job
            else note(_TOPIC, "tools", found)
        )
        return
    yield ok(_TOPIC, "tools", version.stdout.strip())
    yield _job(job)
    config = ask(["scontrol", "show", "config"], _SECONDS)
    if not config.good:
        yield note(
            _TOPIC, "controller", f"does not answer: {config.complaint}", "ask for `scontrol ping` to be looked at"
        )
        return
    partitions = ask(["scontrol", "--oneliner", "show", "partition"], _SECONDS)
    yield from policy(parse_config(config.stdout), parse_partitions(partitions.stdout))
    yield _srun()


def parse_config(text: str) -> dict[str, str]:
    """Return what `scontrol show config` printed, by key."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def parse_partitions(text: str) -> list[dict[str, str]]:
    """Return what `scontrol --oneliner show partition` printed, a mapping each."""
    lines = (line for line in text.splitlines() if line.startswith("PartitionName="))
    return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]


def policy(config: Mapping[str, str], partitions: list[dict[str, str]]) -> Iterator[Finding]:
    """Yield what Slurm does to a job that has to go, and what train.sbatch makes of it."""
    wait = _seconds(config.get("KillWait", "30"))
    yield ok(
        _TOPIC,
        "time limit",
        f"KILL {wait} s after TERM; train.sbatch asks for USR1 earlier (--signal), and checkpoints",
    )
    if config.get("JobRequeue") == "0":
        yield note(
            _TOPIC,
            "requeue",
            "jobs are not requeued unless they ask (JobRequeue=0)",
            "train.sbatch asks: nothing to do",
        )
    else:
        yield ok(_TOPIC, "requeue", "jobs may be requeued")
    if config.get("PreemptType", "preempt/none") == "preempt/none":
        yield ok(_TOPIC, "pre-emption", "none")
        return
    user_signal = "preempt_send_user_signal" in config.get("PreemptParameters", "") + config.get(
        "SlurmctldParameters", ""
    )
    for partition in partitions:
        yield _preemption(partition, config.get("PreemptMode", "OFF"), user_signal)


def _preemption(partition: Mapping[str, str], default_mode: str, user_signal: bool) -> Finding:
    name = f"partition {partition['PartitionName']}"
    mode = partition.get("PreemptMode") or default_mode
    grace = int(partition.get("GraceTime") or 0)
    if "OFF" in mode.upper():
        return ok(_TOPIC, name, "its jobs are not pre-empted")
    told = "USR1 first" if user_signal else "TERM"
    remedies = []
    if grace == 0:
        remedies.append("set checkpoint.every_steps: what was done since the last checkpoint is lost")
    if "CANCEL" in mode.upper():
        remedies.append("train.sbatch submits itself again where it is given the time; else submit it again")
    if "SUSPEND" in mode.upper():
        remedies.append("a suspended run goes on when it is resumed: nothing to do")
    found = f"pre-empted jobs: {mode.lower()}, {grace} s after the warning ({told})"
    return note(_TOPIC, name, found, "; ".join(remedies)) if remedies else ok(_TOPIC, name, found)


def _seconds(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _job(job: str | None) -> Finding:
    if job is None:
        return note(
            _TOPIC, "job", "this is no job: what is said here is said of this host", "salloc -N 2 hpcvol doctor --hosts"
        )
    nodes = environment.variable("SLURM_JOB_NODELIST") or "?"
    tasks = environment.variable("SLURM_NTASKS") or environment.variable("SLURM_TASKS_PER_NODE") or "?"
    return ok(_TOPIC, "job", f"{job} on {nodes}, {tasks} tasks")


def _srun() -> Finding:
    answer = ask(["srun", "--mpi=list"], _SECONDS)
    plugins = sorted(set(re.findall(r"\b(pmi2|pmix(?:_v\d+)?|cray_shasta|pmi1)\b", answer.stdout + answer.stderr)))
    listed = ", ".join(plugins) or "none"
    try:
        vendor = vendor_of(loaded_library())
    except HpcvolError:
        vendor = None
    if vendor == MPICH and "pmi2" in plugins:
        return ok(_TOPIC, "srun", f"plugins: {listed}; `srun --mpi=pmi2` starts ranks of MPICH")
    if vendor == OPEN_MPI and any(plugin.startswith("pmix") for plugin in plugins):
        return ok(
            _TOPIC,
            "srun",
            f"plugins: {listed}; `srun --mpi=pmix` starts ranks of Open MPI, which then all end when one dies",
        )
    return note(
        _TOPIC,
        "srun",
        f"plugins: {listed}; none that starts ranks of this MPI: each would be a run of its own",
        "inside a job start with `hpcvol train` or mpiexec, which take the job's nodes",
    )
