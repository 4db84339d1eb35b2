"""The kernels for a GPU, tested in Numba's simulator: tests/kernels/cuda, which say how to run them on a GPU.

The simulator comes with Numba; where numba-cuda is installed it is that one's, and both do. The tests do not ask for
numba-cuda, because each start of Python takes longer where it is installed.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.without_mpi

FOLDER = Path(__file__).parent / "cuda"
# What they are compared with runs without the compiler, and its values and the simulator's agree on their types.
VARIABLES = {"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}


def test_they_pass_in_the_simulator() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(FOLDER)],
        env={**os.environ, **VARIABLES},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout


def test_the_packages_do_not_load_numba_s_cuda() -> None:
    script = "import sys, hpcvol, hpcvol.kernels, hpcvol.kernels.quantise; sys.exit('numba.cuda' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
