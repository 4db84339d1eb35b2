"""Where a member computes: its device, its threads, and the settings under which its bits repeat."""

import os

import torch

from hpcvol import environment
from hpcvol.comm import Group
from hpcvol.errors import ConfigError


def check_device(name: str) -> None:
    """Refuse names of devices that there are not. Local.

    Raises:
        ConfigError: not "auto", "cpu" or "cuda".
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f'device = "{name}": expected "auto", "cpu" or "cuda"')


def choose_device(name: str, group: Group, *, share: bool = False) -> torch.device:
    """Return this member's device. Collective. Local members take one GPU each, in the order of their rank on the node.

    Args:
        name: "auto" (a GPU where every local member can have one, else the CPU), "cpu" or "cuda".
        group: the live ranks.
        share: allow more members than GPUs on a node; they take turns.

    Raises:
        ConfigError: no GPU, or more members than GPUs; the same on every member.
    """
    if name == "cpu":
        return torch.device("cpu")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    members = group.node.size
    enough = gpus >= members or (share and gpus > 0)
    found = group.gather_objects((enough, gpus, members))
    lacking = next((rank for rank, (enough, _, _) in enumerate(found) if not enough), None)
    if lacking is not None:
        if name == "auto":
            return torch.device("cpu")
        _, gpus, members = found[lacking]
        have = f"{gpus} GPUs for {members} members" if gpus else "no GPU that torch can use"
        raise ConfigError(
            f'device = "cuda": {group.hosts[lacking]} has {have}; start fewer members a node, set share_devices = true '
            'to let members share a GPU, or device = "cpu"',
            everywhere=True,
        )
    device = torch.device("cuda", group.node.rank % gpus)
    torch.cuda.set_device(device)
    return device


def choose_threads(threads: int | str, exact: bool, group: Group) -> int:
    """Return how many threads this member computes with, and set torch to it.

    "auto" is one under the exact sum, because gradients of one thread and of two differ in their bits, so that a run's
    weights would depend on how many members share a node; under the float sum it is the node's cores shared out.

    Raises:
        ConfigError: not "auto" and not a positive integer.
    """
    if threads == "auto":
        count = 1 if exact else max(1, len(os.sched_getaffinity(0)) // group.node.size)
    elif isinstance(threads, int) and threads > 0:
        count = threads
    else:
        raise ConfigError(f'threads = {threads!r}: expected "auto" or a positive integer')
    torch.set_num_threads(count)
    return count


def make_deterministic(device: torch.device) -> None:
    """Choose deterministic algorithms, which the exact sum needs on a GPU; an operation without one raises by name."""
    if device.type == "cuda":
        environment.set_default("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
