"""Members that are struck at named points: what a program imports to have itself killed at the n-th time it gets there.

Points are the names of the spans that every room records for the trace. STRIKES is JSON: a list of
[member, point, n], or [member, point, n, "SIGTERM"] for another signal than SIGKILL. A member that is struck leaves
a file `struck-MEMBER-POINT` in the folder STRUCK first: a test asserts that it is there. Members do not measure
themselves, so that each gets to a point as often whatever the machine does meanwhile.
With ON_TWO_HOSTS the first half of the members is as if on another host than the others.
Who reaches the point "ready", where a newcomer waits to be let in, leaves `ready-MEMBER`.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcvol import environment, tracing
from hpcvol.comm.newcomer import invitation
from hpcvol.elastic.speed import Stopwatch

_INVITED = invitation()
MEMBER = int(environment.variable("OMPI_COMM_WORLD_RANK") or 0) if _INVITED is None else _INVITED.member


def install() -> None:
    """From now on die where STRIKES says."""
    Stopwatch.count = lambda *_: None  # type: ignore[method-assign]
    strikes = json.loads(environment.variable("STRIKES") or "[]")
    plan = {
        (point, nth): signal.Signals[(*other, "SIGKILL")[0]]
        for member, point, nth, *other in strikes
        if member == MEMBER
    }
    folder = Path(environment.variable("STRUCK") or ".")
    seen: Counter[str] = Counter()

    def reached(name: str) -> None:
        seen[name] += 1
        if name == "ready":
            (folder / f"ready-{MEMBER}").touch()
        if (name, seen[name]) in plan:
            (folder / f"struck-{MEMBER}-{name.replace(' ', '_')}").touch()
            os.kill(os.getpid(), plan[name, seen[name]])

    def striking(function: Callable[..., Any]) -> Callable[..., Any]:
        def struck(name: str, *args: Any, **kwargs: Any) -> Any:
            reached(name)
            return function(name, *args, **kwargs)

        return struck

    tracing.span, tracing.record = striking(tracing.span), striking(tracing.record)
    if environment.variable("ON_TWO_HOSTS"):
        import two_hosts

        import hpcvol.torch.start  # noqa: F401 - all that asks which host this is

        two_hosts.pretend(MEMBER, int(environment.variable("OMPI_COMM_WORLD_SIZE") or 1))
