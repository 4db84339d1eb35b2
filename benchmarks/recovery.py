"""What it costs a run that a member dies, that a new one joins, and that a host is cut off.

On one host four members train on units that sleep. One of them, the first included, is killed at a random moment, and
the next when the last has been replaced. All times are of versions, as their lines come into the ledger.

- dies: from the last version before the kill to the first one that was made without the member. Subtracted are a usual
  step for each version that came meanwhile, which has the unit in hand in it, and the units redone: by how many more
  units than before the most loaded of the others computed, times the median seconds of a unit. Both are taken from the
  ledger's usual versions: same members as the version before, no event, no process started.
- starts: over the start of the process that is to join, for which the members wait in MPI, less a usual step.
- joins: from the version before it is a member to the first one with it, less a usual step.
- cut: on two virtual hosts with two members each, `elastic.detect_seconds = 1`: from the cut to the next version of the
  side that goes on. Nothing is subtracted. Each cut has a run of its own; where that ends before, as it may on a busy
  machine, what it said last is printed, and another one begins.

`over` is the share of times above the target, where there is one.

    python benchmarks/recovery.py [--json FILE] [--quick]       not under mpiexec; Open MPI; as root, for the hosts
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from report import Row, arguments, publish
from struck_run import Seen, StruckRun, kill

from hpcvol.elastic.ledger import from_ranges

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "lab"))
from virtual_hosts import VirtualHosts, virtual_hosts  # the path has to be there first

MEMBERS = 4
UNIT_SECONDS = 0.01
# Some versions, so that dealing and what a usual step takes have settled.
SETTLED = 20
# Runs a cut: with so short a time a host that is busy while programs start is taken for a lost one.
ATTEMPTS = 3
TARGETS = {"dies": 0.5, "joins": 0.3, "cut": 3.0}


def strike(run: StruckRun, deaths: int) -> list[float]:
    """Kill one member after the other, each when all are there; return when."""
    draw, killed = random.Random(0), []
    for _ in range(deaths):
        if not settle(run):
            raise SystemExit(f"recovery: {MEMBERS} members were to train, and do not:\n{run.output}")
        time.sleep(draw.uniform(0, 1))
        victim = draw.choice(run.processes())
        killed.append(time.monotonic())
        kill(victim)
        run.wait_for(MEMBERS - 1)
    run.wait_for(MEMBERS)
    return killed


def settle(run: StruckRun) -> bool:
    """Return whether all members have come to make versions together; when they have made some."""
    there = run.wait_for(MEMBERS)
    until = len(run.versions) + SETTLED
    while there and run.running and len(run.versions) < until:
        time.sleep(0.01)
    return there and run.running


def usual(run: StruckRun, members: int) -> float:
    """Return the seconds of a step of so many members in which nothing happens."""
    found = [one for one in run.pauses if one.is_usual and not run.started_in(one)]
    return statistics.median(one.seconds for one in found if len(one.after.members) == members)


def unit_seconds(run: StruckRun) -> float:
    """Return what a unit takes a member."""
    return statistics.median(
        did["seconds"] / num_units(did)
        for pause in run.pauses
        if pause.is_usual
        for did in pause.after.members.values()
        if num_units(did)
    )


def num_units(did: dict[str, str]) -> int:
    return len(from_ranges(did["units"]))


def after_death(run: StruckRun, killed: float) -> float:
    """Return how much longer the versions around a death took than they usually do, and the units redone."""
    versions = run.versions
    before = [one for one in versions if one.at <= killed][-1]
    after = next(one for one in versions if one.at > killed and len(one.members) < MEMBERS)
    steps = after.line["version"] - before.line["version"]
    return after.at - before.at - steps * usual(run, MEMBERS) - most_redone(before, after) * unit_seconds(run)


def most_redone(before: Seen, after: Seen) -> int:
    """Return how many more units than before a member computed, of that with the most."""
    return max(num_units(did) - num_units(before.members[member]) for member, did in after.members.items())


def on_one_host(folder: Path, deaths: int) -> dict[str, list[float]]:
    """Return the seconds of deaths, of starts of processes that joined, and of joins."""
    with StruckRun(folder, MEMBERS, UNIT_SECONDS) as run:
        killed = strike(run, deaths)
        settle(run)
        run.stop()
    starts = [one for one in run.pauses if run.started_in(one)]
    joins = [one for one in run.pauses if "join" in one.events]
    return {
        "dies": [after_death(run, at) for at in killed],
        "starts": [one.seconds - usual(run, len(one.after.members)) for one in starts],
        "joins": [one.seconds - usual(run, len(one.after.members)) for one in joins],
    }


def cut(folder: Path, hosts: VirtualHosts) -> float | None:
    """Return the seconds from a cut to the next version; None where the run did not come as far as that."""
    first, second = hosts.names
    hostfile = folder.with_suffix(".hosts")
    hostfile.write_text(f"{first} slots={MEMBERS // 2}\n{second} slots={MEMBERS // 2}\n")
    variables = {
        "PRTE_MCA_prte_default_hostfile": str(hostfile),
        "PRTE_MCA_plm_ssh_agent": str(hosts.remote_shell),
    }
    settings = ("elastic.enabled=true", "elastic.detect_seconds=1")
    prefix = hosts.enter(first, [])
    with StruckRun(folder, MEMBERS, UNIT_SECONDS, settings=settings, prefix=prefix, variables=variables) as run:
        trains = settle(run)
        began = time.monotonic()
        hosts.cut(second)
        went_on = run.wait_for(MEMBERS // 2)
        hosts.kill_all()
    if not trains:
        print(f"recovery: a run ended before its host was cut off: ...{run.output[-300:]}")
        return None
    if not went_on:
        raise SystemExit(f"recovery: nobody went on after the cut:\n{run.output}")
    return next(one.at for one in run.versions if len(one.members) == MEMBERS // 2) - began


def on_two_hosts(folder: Path, cuts: int) -> list[float]:
    """Return the seconds of cuts; none, and say why, where there can be no virtual hosts."""
    found = []
    for number in range(ATTEMPTS * cuts):
        if len(found) == cuts:
            break
        with ExitStack() as stack:
            try:
                hosts = stack.enter_context(virtual_hosts(2))
            except (OSError, RuntimeError) as error:
                print(f"recovery: no host is cut off, since virtual hosts cannot be made here: {error}")
                break
            if (seconds := cut(folder / str(number), hosts)) is not None:
                found.append(seconds)
    return found


def row(name: str, seconds: Sequence[float]) -> Row:
    """Return what is published of some pauses."""
    extra: dict[str, float] = {"worst_s": max(seconds)}
    if target := TARGETS.get(name):
        extra |= {"target_s": target, "over": sum(one > target for one in seconds) / len(seconds)}
    return Row("hpcvol", name, 0, MEMBERS, seconds, extra)


def main() -> None:
    """Measure, and publish."""
    options = arguments(str(__doc__).splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = on_one_host(Path(folder, "one"), 1 if options.quick else 10)
        found["cut"] = on_two_hosts(Path(folder), 1 if options.quick else 5)
    publish("recovery", [row(name, seconds) for name, seconds in found.items() if seconds], options.json)


if __name__ == "__main__":
    main()
