"""How a command ends when something is wrong: one message, a status that is not 0, no traceback unless asked for."""

import functools
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hpcvol import environment
from hpcvol.errors import HpcvolError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def reported(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return `command` such that an HpcvolError, or Ctrl-C, ends the process as `hpcvol.comm.fail` does.

    The variable HPCVOL_TRACEBACK, set to anything, prints the traceback before the message.
    """

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except (HpcvolError, KeyboardInterrupt) as error:
            from hpcvol.comm import fail

            if environment.variable("HPCVOL_TRACEBACK"):
                traceback.print_exception(error)
            fail(error)

    return run
