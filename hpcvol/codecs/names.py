"""What `strategy.codec` says."""

import math
from dataclasses import is_dataclass
from typing import TypeAlias

from hpcvol.codecs.cast import Cast
from hpcvol.codecs.codec import Codec
from hpcvol.codecs.low_rank import LowRank
from hpcvol.codecs.momentum import Momentum
from hpcvol.codecs.quantise import Quantise
from hpcvol.codecs.sparsify import SELECTIONS, Sparsify
from hpcvol.errors import ConfigError

_CASTS = {"bf16": Cast("bfloat16"), "fp16": Cast("float16")}
_QUANTISERS = ("fp8", "int8", "int4", "sign", "ternary")

# Whatever costs less: see `hpcvol.strategies.automatic`.
AUTO = "auto"

AnyCodec: TypeAlias = Codec | LowRank | str
_MOMENTUM = "dgc"
_MEMBERS = ("residual_rows", "is_summable", "room", "encode", "accumulate")


def parse(text: AnyCodec) -> Codec | LowRank | None:
    """Return the codec that `strategy.codec` names, or that is given; None for "none" and "auto", which name none.

    Raises:
        ConfigError: there is no such one, or its number cannot be, or two do not go together; what is given is none.
    """
    if not isinstance(text, str):
        return _checked(text)
    if text in ("none", AUTO):
        return None
    first, *further = text.split("+")
    codec = _one(text, first)
    for part in further:
        if isinstance(codec, Sparsify) and part.partition(":")[0] == _MOMENTUM:
            codec = _with_momentum(text, codec, part)
            continue
        values = None if isinstance(codec, Momentum) else _one(text, part)
        if isinstance(codec, Sparsify) and codec.values is None and isinstance(values, Cast | Quantise):
            codec = Sparsify(codec.select, codec.amount, values)
        elif isinstance(codec, LowRank) and codec.values is None and isinstance(values, Cast):
            codec = LowRank(codec.rank, values)
        else:
            raise _refusal(
                text,
                "after a plus sign is what becomes of values of topk, randomk or threshold, and then dgc, or bf16 or "
                "fp16 after powersgd; nothing else goes together",
            )
    return codec


def encodes_alone(text: AnyCodec) -> bool:
    """Return whether a member can encode by itself what another decodes: not so where all have to do it together.

    Raises:
        ConfigError: as `parse`.
    """
    return text != AUTO and not isinstance(parse(text), LowRank)


def _checked(codec: Codec | LowRank) -> Codec | LowRank:
    """Refuse what is no codec before members disagree about it, or fail in the middle of a step."""
    if isinstance(codec, LowRank | Momentum):
        return codec
    missing = [name for name in _MEMBERS if not hasattr(codec, name)]
    if missing or isinstance(codec, type) or not is_dataclass(codec):
        raise ConfigError(
            f"codec = {codec!r}: expected a name, or an instance of a frozen dataclass with {', '.join(_MEMBERS)}"
            + (f"; it lacks {', '.join(missing)}" if missing else "")
        )
    if codec.residual_rows not in (0, 1):
        raise ConfigError(f"codec = {codec!r}: residual_rows is {codec.residual_rows}, expected 0 or 1")
    return codec


def _with_momentum(text: str, selection: Sparsify, part: str) -> Momentum:
    _, colon, number = part.partition(":")
    try:
        return Momentum(selection, warm_up_steps=int(number) if colon else 0)
    except ValueError as error:
        why = str(error) if "expected" in str(error) else f"{_MOMENTUM} takes the steps of its warm-up, as in dgc:200"
        raise _refusal(text, why) from None


def _one(text: str, part: str) -> Codec | LowRank:
    name, colon, number = part.partition(":")
    if name in _CASTS and not colon:
        return _CASTS[name]
    if name in _QUANTISERS and not colon:
        return Quantise(name)
    try:
        if name == "qsgd":
            return Quantise("qsgd", levels=int(number)) if colon else Quantise("qsgd")
        if name in SELECTIONS and math.isfinite(float(number)):
            return Sparsify(name, float(number))
        if name == "powersgd":
            return LowRank(int(number))
    except ValueError as error:
        if "expected" in str(error):
            raise _refusal(text, str(error)) from None
        raise _refusal(text, f"{name} takes a number after a colon, such as {_EXAMPLES[name]}") from None
    raise _refusal(text, f"no codec is called {part!r}")


_EXAMPLES = {
    "qsgd": "qsgd:7 (levels, 1 to 127)",
    "topk": "topk:0.01 (a share of the elements)",
    "randomk": "randomk:0.01 (a share of the elements)",
    "threshold": "threshold:0.001 (a magnitude)",
    "powersgd": "powersgd:4 (a rank)",
}


def _refusal(text: str, why: str) -> ConfigError:
    return ConfigError(
        f'strategy.codec = "{text}": {why}. Expected "none", "auto", "bf16", "fp16", "fp8", "int8", "int4", "sign", '
        '"ternary", "qsgd:LEVELS", "topk:SHARE", "randomk:SHARE", "threshold:MAGNITUDE", one of these three with what '
        'becomes of the values ("topk:0.01+int8"), topk or threshold with the momentum of Deep Gradient Compression '
        '("topk:0.001+dgc:STEPS", steps of warm-up), or "powersgd:RANK", also with "+bf16"'
    )
