"""Kernels for a GPU run in Numba's simulator, where `tests/kernels/test_cuda.py` starts these tests, or on a GPU.

Which of the two Numba decides when it is imported. So they are collected only where that was said before:
`NUMBA_ENABLE_CUDASIM=0 python -m pytest tests/kernels/cuda` takes the GPU of this machine.
"""

import os

import pytest

collect_ignore_glob = [] if "NUMBA_ENABLE_CUDASIM" in os.environ else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kernels warn of what they do with infinity and NaN, in threads of the simulator; MPI has no part in them."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
        item.add_marker(pytest.mark.without_mpi)
