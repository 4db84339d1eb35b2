"""The tests of kernels that NUMBA_DISABLE_JIT=1 has code of its own for, or other arithmetic, once more under it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.without_mpi


@pytest.mark.parametrize("name", ["test_select.py", "test_sparse.py", "test_low_rank.py"])
def test_the_same_tests_pass_without_the_compiler(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(Path(__file__).parent / name)],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
