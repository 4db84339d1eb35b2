"""Kernels for a GPU run in Numba's simulator, where `tests/kernels/test_cuda.py` starts these tests, or on a GPU.

Which of the two Numba decides when it is imported. So they are collected only where that was said before: the GPU of
this machine takes `NUMBA_ENABLE_CUDASIM=0 NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS=0 python -m pytest tests/kernels/cuda`.

In the simulator threads take turns here, in another order from each barrier to the next: an order that a kernel must
not depend on is found out, and the same in every run. Numba lets them run at once and asks all the time who has come to
a barrier, which takes thirty times as long, and two of them that ask for shared memory at once may be given two.
"""

import os
import random
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM")  # nothing, 0 or 1

collect_ignore_glob = ["test_*.py"] if SIMULATED is None else []


if SIMULATED == "1":
    from numba.cuda.simulator import kernel, kernelapi

    def lines_of_callers(frame: Any) -> list[Any]:
        """Return the line that asks for shared memory, by which it is known, and nothing of the source files."""
        return [(frame.f_back.f_code.co_filename, frame.f_back.f_lineno), None]

    kernelapi.traceback = SimpleNamespace(extract_stack=lines_of_callers)

    class Thread(kernel.BlockThread):
        """A thread that waits for its turn, which ends at a barrier."""

        def __init__(self, function: Any, manager: Any, block: Any, thread: Any, debug: bool) -> None:
            super().__init__(function, manager, block, thread, debug)
            self.turn, self.ended = threading.Lock(), False
            self.turn.acquire()

        def run(self) -> None:
            self.turn.acquire()
            super().run()
            self.ended = True
            self._manager.turn_is_over.release()

        def syncthreads(self) -> None:
            self._manager.turn_is_over.release()
            self.turn.acquire()

    class BlockInTurns(kernel.BlockManager):
        """A block of threads, of which one runs at a time."""

        def run(self, block: Any, *args: Any) -> None:
            self.turn_is_over, order = threading.Lock(), random.Random(0)
            self.turn_is_over.acquire()
            places = np.ndindex(*self._block_dim)
            threads = [Thread(lambda: self._f(*args), self, block, place, self._debug) for place in places]
            for thread in threads:
                thread.start()
            while threads:
                order.shuffle(threads)
                for thread in threads:
                    thread.turn.release()
                    self.turn_is_over.acquire()
                    if thread.exception:
                        raise thread.exception[0].with_traceback(thread.exception[1])
                threads = [thread for thread in threads if not thread.ended]

    kernel.BlockManager = BlockInTurns
