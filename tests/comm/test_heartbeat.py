"""The thread that lets MPI work needs no lock of Python's."""

import ctypes
import time

import numpy as np

from hpcvol.comm import heartbeat
from hpcvol.comm.heartbeat import Heartbeat
from hpcvol.comm.startup import start
from hpcvol.kernels.calling import call_until


def test_a_c_function_is_called_until_it_is_enough() -> None:
    stop, count = np.zeros(1, np.int64), []

    @ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 5)
    def function(*arguments: int) -> int:
        count.append(arguments)
        stop[0] = len(count) == 3
        return 0

    address = ctypes.cast(function, ctypes.c_void_p).value
    usleep = ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value
    call_until(stop, address, np.array([1, -2, 2**40, 4, 5]), usleep, 1)
    assert count == [(1, -2, 2**40, 4, 5)] * 3


def test_it_goes_on_while_python_s_lock_is_held_and_ends() -> None:
    start()
    heartbeat.warm_up()
    beating = Heartbeat(0.001)
    held = ctypes.PyDLL(None)  # whose functions keep the lock
    before = thread_seconds()
    held.usleep(200_000)
    assert thread_seconds() > before
    beating.close()


def thread_seconds() -> float:
    return time.process_time() - time.thread_time()
