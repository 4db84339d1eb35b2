"""Which machine a process is on, as far as it matters to other processes: whom it sees, and shares memory with."""

import os
from pathlib import Path


def machine() -> str:
    """Return a text that is equal for processes that see each other's processes and share a loopback. Local."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return " ".join([boot, *(os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net"))])
