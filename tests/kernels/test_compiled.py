"""What Numba keeps of older sources is not used: it compares a function with its own file only."""

import os
from pathlib import Path

from hpcvol import kernels


def test_indices_older_than_any_source_are_forgotten(tmp_path: Path) -> None:
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    ages = {"caller.py": 1, "called.py": 5, "__pycache__/caller.f-1.nbi": 3, "__pycache__/called.g-1.nbi": 7}
    for name, seconds in ages.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    kernels._forget_what_older_sources_compiled(tmp_path)
    assert [path.name for path in cache.iterdir()] == ["called.g-1.nbi"]
