"""What holds together, and what is promised for it: one table, checked at construction and printed in the docs."""

from dataclasses import dataclass

from hpcvol.codecs import AnyCodec, Momentum, encodes_alone, parse
from hpcvol.errors import ConfigError
from hpcvol.strategies.parameter_server import ParameterServer
from hpcvol.strategies.supernodes import Supernodes


@dataclass(frozen=True)
class Guarantee:
    """A way to train, and what it promises.

    Attributes:
        loop: who owns a step: "run" (hpcvol.start, Trainer, `hpcvol train`) or "optimizer" (DistributedOptimizer).
        sum: how gradients are added, "exact" or "float".
        robust: whether they are combined so that outliers cannot decide (`strategy.combine`), rather than averaged.
        encoded: whether they are encoded before they are sent (`strategy.codec`).
        weights: what the trained weights depend on; empty where the combination is refused.
        samples: which samples an epoch takes.
        resume: what going on from a checkpoint gives.
        remedy: why the combination is refused, and what to do; empty where it holds.
    """

    loop: str
    sum: str
    robust: bool = False
    encoded: bool = False
    weights: str = ""
    samples: str = ""
    resume: str = ""
    remedy: str = ""


GUARANTEES = (
    Guarantee(
        "run",
        "exact",
        weights="the same bits at any number of ranks, on any hosts of one numerics class",
        samples="each exactly once an epoch",
        resume="the bits of a run that was never interrupted, at any number of ranks; refused in another numerics "
        "class",
    ),
    Guarantee(
        "run",
        "float",
        weights="equal up to rounding: the order of additions follows the number of ranks",
        samples="each exactly once an epoch",
        resume="goes on after the last checkpoint's step; equal up to rounding",
    ),
    Guarantee(
        "run",
        "float",
        robust=True,
        weights="depend on the number of ranks: each counts as one, and a few faulty ones do not decide",
        samples="each exactly once an epoch; those of outliers may count for nothing",
        resume="goes on after the last checkpoint's step",
    ),
    Guarantee(
        "run",
        "exact",
        robust=True,
        remedy='robust combinations leave outliers out, and the exact sum adds every unit; set train.sum = "float"',
    ),
    Guarantee(
        "run",
        "float",
        encoded=True,
        weights="depend on the number of ranks and on the codec; what a step leaves out is added to the next, and a "
        "member that dies takes along what it had not sent, one residual at most",
        samples="each exactly once an epoch",
        resume="goes on after the last checkpoint's step, with the sum of what members had not sent",
    ),
    Guarantee(
        "run",
        "float",
        robust=True,
        encoded=True,
        remedy="what members' gradients have in common is lost where each leaves out others; set strategy.codec = "
        '"none", or strategy.combine = "mean"',
    ),
    Guarantee(
        "run",
        "exact",
        encoded=True,
        remedy='a codec rounds, and the exact sum keeps every bit; set train.sum = "float", or strategy.codec = "none"',
    ),
    Guarantee(
        "optimizer",
        "float",
        weights="equal up to rounding, if every rank's portion is of the same size",
        samples="whatever the loop's own sampler gives",
        resume="the loop's own affair",
    ),
    Guarantee(
        "optimizer",
        "exact",
        remedy="it adds in floating point only, because the exact sum adds work units and this loop has none; use "
        "hpcvol.start() and `for unit in step`, which promise the same bits at any number of ranks",
    ),
)


def require(loop: str, sum: str, *, robust: bool = False, encoded: bool = False) -> Guarantee:
    """Return what is promised for a way to train.

    Raises:
        ConfigError: the combination cannot hold; says why and what to do. Or there is no such sum.
    """
    asked = loop, sum, robust, encoded and not (robust and sum == "exact")
    found = next((one for one in GUARANTEES if (one.loop, one.sum, one.robust, one.encoded) == asked), None)
    if found is None:
        raise ConfigError(f'sum = "{sum}": expected "exact" or "float"')
    if found.remedy:
        asked_for = ["a robust strategy.combine"] * found.robust + ["a strategy.codec"] * found.encoded
        what = "".join(f" and {one}" for one in asked_for)
        raise ConfigError(f'{_NAMES[loop]} with sum = "{sum}"{what}: {found.remedy}')
    return found


def require_verifiable(sum: str, share: float) -> None:
    """Return if a share of the units of a run can be computed by two members and compared.

    Raises:
        ConfigError: it cannot; says why and what to do.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"elastic.verify_share = {share}: expected a share of units from 0 to 1")
    if share and sum != "exact":
        raise ConfigError(
            f'elastic.verify_share = {share} with sum = "{sum}": only under the exact sum two members come to the same '
            'bits; set train.sum = "exact", or strategy.combine = "median", which leaves outliers out'
        )


def require_units(combine: str, members: int, units: int) -> None:
    """Return if every step has a unit for each of the members whose gradients a combination needs.

    Args:
        combine: as `strategy.combine`.
        members: that it needs.
        units: of the step that has the fewest.

    Raises:
        ConfigError: it has not, on every member.
    """
    if units < members:
        raise ConfigError(
            f'strategy.combine = "{combine}" needs the gradients of {members} members, and the last step of an epoch '
            f"has only {units} {'unit' if units == 1 else 'units'}, each for one member: lower train.unit_size, choose "
            'a train.batch_size that leaves more samples to that step, or set strategy.combine = "mean"',
            everywhere=True,
        )


def require_dealing(sum: str, dealing: str, *, robust: bool) -> None:
    """Return if units can be dealt so under a sum, and where gradients are combined robustly.

    Raises:
        ConfigError: they cannot; says why and what to do.
    """
    if (sum, dealing) == ("float", "dynamic"):
        raise ConfigError(
            'elastic.dealing = "dynamic" with sum = "float": it computes all units of a member in one pass, so they '
            'have to be known when the step begins; use dealing = "static", or sum = "exact"'
        )
    if robust and dealing == "static":
        raise ConfigError(
            'elastic.dealing = "static" with strategy.combine: a slow member would get no units, and a combination '
            'needs the gradients of all; use dealing = "equal", or strategy.combine = "mean"'
        )


def require_sharing(
    sum: str,
    codec: AnyCodec,
    servers: ParameterServer | None,
    supernodes: Supernodes | None,
    *,
    robust: bool,
    share: float,
    weighed: bool,
) -> None:
    """Return if servers can hold the parameters of a run, and its members form such groups, if it has these.

    Args:
        sum: of gradients.
        codec: that they are encoded by, as `strategy.codec`.
        servers: who holds parameters; None: every member.
        supernodes: groups that members form, if any.
        robust: whether gradients are combined so that outliers cannot decide.
        share: of units that two members compute.
        weighed: whether members have priorities or limits.

    Raises:
        ConfigError: they cannot; says what is in the way.
    """
    stale = servers is not None and servers.is_asynchronous
    encoded, key = codec != "none", "strategy.codec"
    if supernodes is not None:
        average, coded = supernodes.average, supernodes.codec != "none"
        if average and sum == "exact":
            raise ConfigError(
                'strategy.between.period above 1 with sum = "exact": groups go apart for so many steps, and their '
                'number decides the weights; set train.sum = "float", or period = 1'
            )
        if coded:
            require("run", sum, encoded=True)
        if coded and not average and not stale and supernodes.groups != "node":
            raise ConfigError(
                f"strategy.between.codec with strategy.groups = {supernodes.groups!r} and period = 1: gradients of "
                'every step are encoded between nodes; set groups = "node", or period = 2 or more'
            )
        others = {
            "strategy.combine": robust,
            "strategy.codec": encoded,
            'strategy.kind = "parameter_server" with max_staleness = 0': average and servers is not None and not stale,
            "elastic.priorities or limits": weighed and not stale,
        }
        if (average or coded) and (found := [key for key, on in others.items() if on]):
            raise ConfigError(
                f"strategy.between does not go together with {' and '.join(found)} yet: leave one out, or set "
                'period = 1 and codec = "none"'
            )
        if coded:
            key, codec = "strategy.between.codec", supernodes.codec
    if servers is None:
        return
    others = {
        "strategy.combine": robust,
        "elastic.verify_share": bool(share),
    }
    if not encodes_alone(codec):
        raise ConfigError(
            f'{key} = "{codec}" with strategy.kind = "parameter_server": what is sent to each server is '
            'encoded by itself, and `auto` and `powersgd` take all members at once; name another codec, such as "int8" '
            'or "topk:0.01"'
        )
    if found := [key for key, on in others.items() if on]:
        raise ConfigError(
            f'strategy.kind = "parameter_server" does not go together with {" and ".join(found)} yet: leave one out'
        )
    if stale and sum == "exact":
        raise ConfigError(
            'strategy.max_staleness above 0 with sum = "exact": steps take effect in whatever order members are done, '
            'and nothing makes the same weights of that; set train.sum = "float", or max_staleness = 0'
        )
    if servers.elastic_averaging and isinstance(parse(codec), Momentum):
        raise ConfigError(
            f'{key} = "{codec}" with strategy.elastic_averaging: what is sent are differences of parameters, '
            "which have the optimizer's momentum: leave out +dgc"
        )
    if servers.compensation and supernodes is not None and supernodes.average:
        raise ConfigError(
            "strategy.compensation with strategy.between.period above 1: it corrects a gradient, and what groups push "
            "are changes of parameters by several; set compensation = 0, or period = 1"
        )


def require_replaceable(*, trace: bool, share: float, robust: bool) -> None:
    """Return if members that die can be replaced in a run.

    Raises:
        ConfigError: they cannot; says what is in the way.
    """
    others = {
        "train.trace": trace,
        "elastic.verify_share": share,
        "strategy.combine": robust,
    }
    if found := [key for key, on in others.items() if on]:
        raise ConfigError(
            f"elastic.spares and elastic.refill do not go together with {' and '.join(found)} yet: leave one out"
        )


_NAMES = {"run": "hpcvol.start", "optimizer": "DistributedOptimizer"}


def table() -> str:
    """Return all combinations as a Markdown table."""
    lines = ["| loop | sum | weights | samples | resume |", "|---|---|---|---|---|"]
    for one in GUARANTEES:
        told = f"refused: {one.remedy} | |" if one.remedy else f"{one.weights} | {one.samples} | {one.resume}"
        how = f"`{one.sum}`" + ", robust" * one.robust + ", encoded" * one.encoded
        lines.append(f"| `{_NAMES[one.loop]}` | {how} | {told} |")
    return "\n".join(lines) + "\n"
