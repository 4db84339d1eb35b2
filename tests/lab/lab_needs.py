"""What the lab needs of a machine, and what becomes of a test where that is missing."""

import os
import shutil
import subprocess

import pytest

# Continuous integration sets it: there a test that cannot be made is a failure.
REQUIRED = "HPCVOL_REQUIRE_LAB"

_SLURM = ("slurmctld", "slurmd", "sbatch", "munged")
_HOSTS = ("ip", "nsenter", "unshare")


def slurm_is_needed() -> None:
    """Skip this test, or fail, where there is no Slurm to start."""
    _judge([f"{name} (apt-get install slurm-wlm munge)" for name in _SLURM if _find(name) is None], "Slurm")


def hosts_are_needed() -> None:
    """Skip this test, or fail, where virtual hosts cannot be made."""
    missing = [f"{name} (apt-get install iproute2 util-linux)" for name in _HOSTS if _find(name) is None]
    if os.geteuid() != 0:
        missing.append("root")
    elif not missing:
        missing = _what_is_forbidden()
    _judge(missing, "virtual hosts")


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _what_is_forbidden() -> list[str]:
    made = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--ipc", "test", "-w", "/dev/net/tun"],
        capture_output=True,
        check=False,
    )
    return [] if made.returncode == 0 else ["namespaces and /dev/net/tun, which this container is not given"]


def _judge(missing: list[str], what: str) -> None:
    if not missing:
        return
    reason = f"{what} cannot be started here, missing: {', '.join(missing)}"
    if os.environ.get(REQUIRED):
        pytest.fail(f"{reason} ({REQUIRED} is set, so this is not skipped)")
    pytest.skip(reason)
