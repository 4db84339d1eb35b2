"""What decides the bits of a gradient besides the parameters: the numerics class, and the code that members run."""

import hashlib
import platform
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy
import torch

import hpcvol
from hpcvol import kernels
from hpcvol.comm import Group
from hpcvol.errors import ConfigError

_REMEDIES = {
    "threads": "set train.threads to one number for all",
    "instruction set": "set the environment variable ATEN_CPU_CAPABILITY (for example avx2) to one that all have",
    "processor": "limit the run to nodes of one kind, or set ATEN_CPU_CAPABILITY and MKL_ENABLE_INSTRUCTIONS for all",
    "device": "set train.device to one kind for all",
    "torch": "install the same version everywhere",
    "torch build": "install the same build everywhere",
}


def numerics_class() -> dict[str, str]:
    """Return the facts that members must share for a unit's gradient to have the same bits on each of them. Local."""
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": str(torch.get_num_threads()),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        "torch build": hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:12],
    }


def describe_differences(one: dict[str, str], other: dict[str, str]) -> str:
    """Return a sentence that names what differs between two classes and the setting that would make them agree."""
    different = [key for key in one if one[key] != other.get(key)]
    if not different:
        return (
            "Nothing known of their numerics differs: check that they run the same libraries and that the model is "
            "deterministic"
        )
    found = "; ".join(f"{key}: {one[key]} and {other.get(key)}" for key in different)
    return f'They differ in {found}. To make them agree, {_REMEDIES[different[0]]}, or set train.sum = "float"'


def agree_on_code(group: Group, files: Iterable[Path]) -> None:
    """Check that all members run the same code and libraries. Collective.

    Args:
        group: the live ranks.
        files: the user's own files (model, script), compared by content.

    Raises:
        ConfigError: on every member, naming the first difference and who has what.
    """
    agree_on(group, code_facts(files), "start all members from the same environment and files")


def code_facts(files: Iterable[Path]) -> dict[str, str]:
    """Return what tells the code and the libraries that this member runs, by name. Local."""
    facts = {
        "Python": platform.python_version(),
        "hpcvol": f"{version('hpcvol')} ({_digest_of_sources()})",
        "torch": torch.__version__,
        "NumPy": numpy.__version__,
        "Numba": version("numba"),
    }
    for path in files:  # by name, as folders may be called differently on other hosts
        key = f"the file {path.name}"
        facts[key] = facts.get(key, "") + _digest_of_file(path)
    return facts


def agree_on(group: Group, facts: Mapping[str, str], remedy: str) -> None:
    """Check that all members found the same. Collective.

    Args:
        group: the live ranks.
        facts: what this member found, by name.
        remedy: what to do where members differ.

    Raises:
        ConfigError: on every member, naming the first difference and who has what.
    """
    everybody = group.gather_objects(dict(facts))
    for rank, other in enumerate(everybody):
        for name in everybody[0] | other:
            one_has, other_has = everybody[0].get(name, "absent"), other.get(name, "absent")
            if one_has != other_has:
                raise ConfigError(
                    f"members disagree: {name} is {one_has} on {group.name_of(0)} and {other_has} on "
                    f"{group.name_of(rank)}; {remedy}",
                    everywhere=True,
                )


def main_files(*parts: object) -> list[Path]:
    """Return the files that the user's code is in as far as they can be known: the script, and modules of `parts`."""
    names = ["__main__", *(type(part).__module__ for part in parts)]
    modules = [sys.modules.get(name) for name in names if not name.startswith("hpcvol.")]
    paths = {Path(file).resolve() for module in modules if (file := getattr(module, "__file__", None))}
    return sorted(path for path in paths if path.is_file() and "site-packages" not in path.parts)


@cache
def _digest_of_sources() -> str:
    total = hashlib.sha256()
    for package in (hpcvol, kernels):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")) if Path(folder).is_dir() else []:
                total.update(path.read_bytes())
    return total.hexdigest()[:12]


def _digest_of_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "missing"


@cache
def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
