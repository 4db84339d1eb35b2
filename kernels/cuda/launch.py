"""How kernels are launched: arrays in the GPU's memory, and over how many threads."""

import warnings
from typing import Any

import numpy as np
from numba import config, cuda

# Numba's advice: what adds up the counts of all blocks is one block, and must be.
warnings.filterwarnings("ignore", r"Grid size \d+ will likely result in GPU under-utilization")

# Threads of a block, and blocks of a kernel whose threads go on to further elements: more would not run at once. In the
# simulator threads are Python's, and few elements have to do.
THREADS, _MOST_BLOCKS = (32, 2) if config.ENABLE_CUDASIM else (128, 1 << 13)  # type: ignore[attr-defined]


def on_device(array: Any) -> Any:
    """Return `array` as Numba sees it: the same memory.

    Args:
        array: has `__cuda_array_interface__`, or is a device array of Numba.

    Raises:
        TypeError: it is somewhere else.
    """
    if getattr(array, "__cuda_ndarray__", False):
        return array
    if not hasattr(array, "__cuda_array_interface__"):
        raise TypeError(f"expected an array in the GPU's memory, found a {type(array).__name__}: move it there")
    return cuda.as_cuda_array(array)


def blocks_for(numel: int) -> int:
    """Return how many blocks of THREADS threads work on `numel` elements, at least 1, each thread on one or more."""
    return max(1, min(-(-numel // THREADS), _MOST_BLOCKS))


def zeros(numel: int, dtype: Any) -> Any:
    """Return a device array of `numel` zeros."""
    return cuda.to_device(np.zeros(numel, dtype))
