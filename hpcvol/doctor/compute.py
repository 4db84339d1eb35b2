"""What computes: processor, torch, GPUs, Numba's compiled kernels."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import psutil

from hpcvol import environment
from hpcvol.doctor.asking import ask, json_lines
from hpcvol.doctor.finding import Finding, note, ok, wrong

_TOPIC = "compute"
_SECONDS = 30.0
# Importing a kernel fails where Numba finds no folder to keep what it compiles.
_KERNELS = "import hpcvol.kernels.gather, hpcvol.kernels.permutation, numba; print(numba.__version__)"


def check_compute() -> Iterator[Finding]:
    """Yield what there is to say of processor, torch and GPUs."""
    usable, cores = len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 0
    yield ok(_TOPIC, "processor", f"{usable} processors that this process may use, {cores} cores in this host")
    smi = ask(["nvidia-smi", "-L"], 5.0)
    names = [line for line in smi.stdout.splitlines() if line.startswith("GPU ")] if smi.good else []
    answer = ask([sys.executable, "-W", "ignore", "-m", "hpcvol.torch.machine"], _SECONDS)
    lines = json_lines(answer.stdout)
    if answer.late:
        yield _late("torch", "which numerics and GPUs it has")
        return
    if not lines:
        yield wrong(_TOPIC, "torch", f"does not load: {answer.complaint}", 'pip install "torch>=2.4"')
        return
    yield from judge(lines[-1], len(names))


def judge(facts: dict[str, Any], num_gpus: int) -> Iterator[Finding]:
    """Say what torch is and sees on a host where nvidia-smi lists `num_gpus` GPUs."""
    build = f"CUDA {facts['cuda']}" if facts["cuda"] else "for the CPU only"
    yield ok(_TOPIC, "torch", f"{facts['version']}, {build}, {facts['threads']} threads unless told otherwise")
    numerics = facts["numerics"]
    yield ok(
        _TOPIC,
        "numerics",
        f"instruction set {numerics['instruction set']}, {numerics['processor']}, "
        f"torch build {numerics['torch build']}, a computation's digest {numerics['digest']}",
    )
    if num_gpus > len(facts["gpus"]):
        why = (
            "torch was built for the CPU only"
            if not facts["cuda"]
            else "driver and torch do not fit, or they are hidden"
        )
        hidden = environment.variable("CUDA_VISIBLE_DEVICES")
        remedy = (
            f"unset CUDA_VISIBLE_DEVICES (now {hidden})" if hidden else "pip install torch, the build for your CUDA"
        )
        yield wrong(_TOPIC, "GPU", f"nvidia-smi lists {num_gpus}, torch sees {len(facts['gpus'])}: {why}", remedy)
    elif facts["gpus"]:
        yield ok(_TOPIC, "GPU", ", ".join(facts["gpus"]))
    else:
        yield note(_TOPIC, "GPU", "none: training runs on the CPU")


def _late(name: str, unknown: str) -> Finding:
    """Say that a library takes too long to load: slow is not wrong."""
    return note(
        _TOPIC,
        name,
        f"did not load within {_SECONDS:g} s: not known {unknown}",
        "ask again where less is running; on a slow file system a copy of the environment on the node's disk helps",
    )


def check_kernels() -> Iterator[Finding]:
    """Yield whether Numba can keep what it compiles."""
    answer = ask([sys.executable, "-W", "ignore", "-c", _KERNELS], _SECONDS)
    folder = environment.variable("NUMBA_CACHE_DIR")
    if answer.good:
        yield ok(_TOPIC, "Numba", f"{answer.stdout.strip()}, keeps compiled kernels{f' in {folder}' if folder else ''}")
        return
    if answer.late:
        yield _late("Numba", "whether it keeps compiled kernels")
        return
    yield wrong(
        _TOPIC,
        "Numba",
        f"kernels do not load: {answer.complaint}",
        "export NUMBA_CACHE_DIR=$HOME/.cache/numba, or another folder that can be written",
    )
