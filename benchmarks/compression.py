"""Compressing a gradient and adding what was compressed to another: one thread, beside torch, NumPy and a plain copy.

Every case is a vector of 25 million float32. The contenders of a case take turns; inputs and outputs rotate, so that
none finds in the cache what it is about to read. `of_memcpy` is the time beside that of copying the vector to another
one in the same turns. A case that ends with `_decode` adds a payload to a vector.

    python benchmarks/compression.py [--json FILE] [--quick] [--case NAME ...]         not under mpiexec
"""

import itertools
import time

import compression_dense
import compression_selected
import numpy as np
import numpy.typing as npt
import torch
from report import Row, arguments, publish

# Whole blocks of 256, because the peers are written for those only.
NUMEL, QUICK_NUMEL = 97_656 * 256, 3_906 * 256
REPETITIONS, QUICK_REPETITIONS = 15, 3

# By name: a function of the number of elements that returns the contenders, each a function of two vectors: the input,
# and the residual or, where it decodes, what it adds to.
CASES = {**compression_dense.CASES, **compression_selected.CASES}


def measure(case: str, inputs: list[npt.NDArray[np.float32]], repetitions: int) -> list[Row]:
    """Return a row for each contender of a case."""
    numel, nbytes = inputs[0].size, inputs[0].nbytes
    copy = np.zeros(numel, np.float32)
    contenders = {**CASES[case](numel), "memcpy": lambda x, _: np.copyto(copy, x)}
    vectors = itertools.cycle(inputs)
    others = itertools.cycle([np.zeros(numel, np.float32) for _ in range(2)])
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):
        for name, call in contenders.items():
            x, other = next(vectors), next(others)
            torch.set_num_threads(1)
            begin = time.perf_counter()
            call(x, other)
            if repetition:  # the first one compiles
                seconds[name].append(time.perf_counter() - begin)
    memcpy = Row("memcpy", case, nbytes, 1, seconds["memcpy"]).summary
    rows = []
    for name, times in seconds.items():
        summary = Row(name, case, nbytes, 1, times).summary
        ratios = {f"of_memcpy_{kind}": summary[kind] / memcpy[kind] for kind in ("p25", "median")}
        rows.append(Row(name, case, nbytes, 1, times, ratios))
    return rows


def main() -> None:
    """Measure, and publish."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), help="of all, those only")
    options = parser.parse_args()
    numel = QUICK_NUMEL if options.quick else NUMEL
    generator = np.random.default_rng(0)
    inputs = [generator.standard_normal(numel, np.float32) for _ in range(3)]
    repetitions = QUICK_REPETITIONS if options.quick else REPETITIONS
    rows = [row for case in options.case for row in measure(case, inputs, repetitions)]
    publish("compression", rows, options.json)


if __name__ == "__main__":
    main()
