"""What holds together, and what is promised for it: one table, checked at construction and printed in the docs."""

from dataclasses import dataclass

from hpcvol.errors import ConfigError


@dataclass(frozen=True)
class Guarantee:
    """A way to train, and what it promises.

    Attributes:
        loop: who owns a step: "run" (hpcvol.start, Trainer, `hpcvol train`) or "optimizer" (DistributedOptimizer).
        sum: how gradients are added, "exact" or "float".
        weights: what the trained weights depend on; empty where the combination is refused.
        samples: which samples an epoch takes.
        resume: what going on from a checkpoint gives.
        remedy: why the combination is refused, and what to do; empty where it holds.
    """

    loop: str
    sum: str
    weights: str = ""
    samples: str = ""
    resume: str = ""
    remedy: str = ""


GUARANTEES = (
    Guarantee(
        "run",
        "exact",
        "the same bits at any number of ranks, on any hosts of one numerics class",
        "each exactly once an epoch",
        "the bits of a run that was never interrupted, at any number of ranks; refused in another numerics class",
    ),
    Guarantee(
        "run",
        "float",
        "equal up to rounding: the order of additions follows the number of ranks",
        "each exactly once an epoch",
        "goes on after the last checkpoint's step; equal up to rounding",
    ),
    Guarantee(
        "optimizer",
        "float",
        "equal up to rounding, if every rank's portion is of the same size",
        "whatever the loop's own sampler gives",
        "the loop's own affair",
    ),
    Guarantee(
        "optimizer",
        "exact",
        remedy="it adds in floating point only, because the exact sum adds work units and this loop has none; use "
        "hpcvol.start() and `for unit in step`, which promise the same bits at any number of ranks",
    ),
)


def require(loop: str, sum: str) -> Guarantee:
    """Return what is promised for a way to train.

    Raises:
        ConfigError: the combination cannot hold; says why and what to do. Or there is no such sum.
    """
    found = next((one for one in GUARANTEES if (one.loop, one.sum) == (loop, sum)), None)
    if found is None:
        raise ConfigError(f'sum = "{sum}": expected "exact" or "float"')
    if found.remedy:
        raise ConfigError(f'{_NAMES[loop]} with sum = "{sum}": {found.remedy}')
    return found


_NAMES = {"run": "hpcvol.start", "optimizer": "DistributedOptimizer"}


def table() -> str:
    """Return all combinations as a Markdown table."""
    lines = ["| loop | sum | weights | samples | resume |", "|---|---|---|---|---|"]
    for one in GUARANTEES:
        told = f"refused: {one.remedy} | |" if one.remedy else f"{one.weights} | {one.samples} | {one.resume}"
        lines.append(f"| `{_NAMES[one.loop]}` | `{one.sum}` | {told} |")
    return "\n".join(lines) + "\n"
