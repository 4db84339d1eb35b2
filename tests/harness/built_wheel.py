"""The wheel of the sources as they are, built once a session."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("hpcvol", "kernels", "examples", "jobscripts")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the sources: what earlier builds left in the working tree must not help."""
    source = tmp_path_factory.mktemp("source")
    leftovers = shutil.ignore_patterns("__pycache__", "data-*")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=leftovers)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    (source / "examples" / "runs").mkdir(exist_ok=True)
    (source / "examples" / "runs" / "config.toml").touch()  # what using the examples leaves beside them
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(source / "dist"),
        str(source),
    ]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next((source / "dist").glob("*.whl"))
