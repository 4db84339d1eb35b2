"""How all-reduce scales with hosts: the cost model, fitted to few hosts, against more hosts that it has not seen.

Virtual hosts on this machine, one rank each, joined by a network of 20 Mbit/s and 10 ms, slow enough for the network
and not the shared cores to decide; ranks wait without spinning, so that the switch, a program too, has its core. On 2,
3 and 4 hosts every algorithm is timed at several lengths, and alpha and beta of `hpcvol.collectives.table` are fitted
to that. Then 8 hosts are measured, and compared with what the model said of them. Last it predicts more hosts: up to 8
times the largest measured that is a claim, further on it is marked as an extrapolation.

The interval is the middle 90 % of measured over predicted, of the fit and of the hosts that it had not seen.

    python benchmarks/scaling.py [--json FILE] [--quick]        as root; not under mpiexec
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from report import Row, arguments, publish

from hpcvol.collectives.algorithms import CANDIDATES
from hpcvol.collectives.table import Cost, Measurement, fit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "lab"))
from virtual_hosts import virtual_hosts  # the path has to be there first

FITTED = (2, 3, 4)
UNSEEN = 8
CLAIMED = 8 * UNSEEN
BEYOND = (256, 1024)
RATE, DELAY = 20e6, 0.01
NBYTES = (1 << 10, 1 << 14, 1 << 17, 1 << 19)
# The MPI library changes its algorithm with length and ranks as it likes: its terms are not known.
ALGORITHMS = ("ring", "recursive_doubling", "halving_doubling")


@dataclass(frozen=True)
class Timing:
    """One algorithm at one length over so many hosts."""

    algorithm: str
    nbytes: int
    hosts: int
    seconds: Sequence[float]

    @property
    def measurement(self) -> Measurement:
        """As what the model is fitted to."""
        candidate = CANDIDATES[self.algorithm]
        traffic = candidate.traffic(self.hosts) * self.nbytes
        return Measurement(candidate.rounds(self.hosts), traffic, float(np.median(self.seconds)))


def rank_program(repetitions: int) -> None:
    """Run on every host: time everything; rank 0 writes the timings as one line of JSON."""
    from hpcvol.collectives import allreduce
    from hpcvol.comm import start
    from hpcvol.strategies.in_turn import Unhurried

    group = start()
    group.waiting = Unhurried()
    found = []
    for nbytes in NBYTES:
        vector = np.zeros(nbytes // 4, np.float32)
        for algorithm in ALGORITHMS:
            seconds = []
            for _ in range(repetitions + 1):
                group.barrier()
                vector.fill(0.0)
                began = time.perf_counter()
                allreduce(group, vector, "sum", algorithm)
                seconds.append(max(group.gather_objects(time.perf_counter() - began)))
            found.append({"algorithm": algorithm, "nbytes": nbytes, "hosts": group.size, "seconds": seconds[1:]})
    if group.rank == 0:
        sys.stdout.write(json.dumps(found) + "\n")


def measure(num_hosts: int, repetitions: int) -> list[Timing]:
    with virtual_hosts(num_hosts, rate=RATE, delay=DELAY) as hosts:
        program = [sys.executable, __file__, "--rank", str(repetitions)]
        launch = hosts.launch_command(dict.fromkeys(hosts.names, 1), program)
        done = hosts.run(hosts.names[0], launch.argv, variables=launch.environment, seconds=600)
    if done.returncode != 0:
        raise RuntimeError(f"{num_hosts} hosts: {done.stdout}{done.stderr}")
    return [Timing(**one) for one in json.loads(done.stdout.splitlines()[-1])]


def predict(costs: dict[str, Cost], algorithm: str, nbytes: int, hosts: int) -> float:
    candidate = CANDIDATES[algorithm]
    return costs[algorithm].seconds(candidate.rounds(hosts), candidate.traffic(hosts) * nbytes)


def rows_of(timings: list[Timing], unseen: list[Timing]) -> Iterator[Row]:
    by_algorithm = defaultdict(list)
    for timing in timings:
        by_algorithm[timing.algorithm].append(timing.measurement)
    costs = {algorithm: fit(measurements) for algorithm, measurements in by_algorithm.items()}
    ratios = []
    for timing in [*timings, *unseen]:
        said = predict(costs, timing.algorithm, timing.nbytes, timing.hosts)
        ratio = timing.measurement.seconds / said
        ratios.append(ratio)
        kind = "fitted" if timing.hosts != UNSEEN else "not seen"
        extra = {"predicted ms": said * 1e3, "error": abs(1 / ratio - 1), "kind": kind}
        yield Row(timing.algorithm, name(timing.nbytes), timing.nbytes, timing.hosts, timing.seconds, extra)
    low, high = np.percentile(ratios, [5, 95])
    more = [hosts for hosts in (16, 32, CLAIMED, *BEYOND)]
    for hosts in more:
        for algorithm in ALGORITHMS:
            for nbytes in NBYTES:
                said = predict(costs, algorithm, nbytes, hosts)
                kind = "predicted" if hosts <= CLAIMED else "extrapolated"
                extra = {"predicted ms": said * 1e3, "low ms": said * low * 1e3, "high ms": said * high * 1e3}
                yield Row(algorithm, name(nbytes), nbytes, hosts, [said], {**extra, "kind": kind})


def name(nbytes: int) -> str:
    return f"{nbytes >> 10} KiB"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, metavar="REPETITIONS", help="for the ranks that this starts")
    options = parser.parse_args()
    if options.rank:
        rank_program(options.rank)
        return
    repetitions = 3 if options.quick else 9
    timings = [timing for hosts in FITTED for timing in measure(hosts, repetitions)]
    rows = list(rows_of(timings, measure(UNSEEN, repetitions)))
    publish("scaling", rows, options.json)
    errors = [row.extra["error"] for row in rows if row.extra["kind"] == "not seen"]
    print(f"median error on {UNSEEN} hosts that the model had not seen: {np.median(errors):.1%}")


if __name__ == "__main__":
    main()
