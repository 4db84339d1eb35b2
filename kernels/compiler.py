"""Numba itself, which takes half a second before a process's first kernel, whether that is cached or not."""

from numba.core.registry import cpu_target


def warm_up() -> None:
    """Have that half second now. Twice is once."""
    cpu_target.target_context.refresh()
