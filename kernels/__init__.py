"""Numba kernels: array in, array out. They know no MPI, no torch and no files of anybody else's."""

from contextlib import suppress
from pathlib import Path


def _forget_what_older_sources_compiled(folder: Path) -> None:
    """Remove the indices of compiled kernels that are older than any kernel's source.

    Numba compares a compiled function with its own file only, and takes into it what that imports from the others.
    """
    newest = max(path.stat().st_mtime_ns for path in folder.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        with suppress(OSError):  # another process was faster, or the folder is not ours
            if index.stat().st_mtime_ns < newest:
                index.unlink()


_forget_what_older_sources_compiled(Path(__file__).parent)
