"""What `strategy.codec` says."""

import math

from hpcvol.codecs.cast import Cast
from hpcvol.codecs.codec import Codec
from hpcvol.codecs.low_rank import LowRank
from hpcvol.codecs.quantise import Quantise
from hpcvol.codecs.sparsify import SELECTIONS, Sparsify
from hpcvol.errors import ConfigError

_CASTS = {"bf16": Cast("bfloat16"), "fp16": Cast("float16")}
_QUANTISERS = ("fp8", "int8", "int4", "sign", "ternary")

# Whatever costs less: see `hpcvol.strategies.automatic`.
AUTO = "auto"


def parse(text: str) -> Codec | LowRank | None:
    """Return the codec that `strategy.codec` names; None for "none", and for "auto", which names none.

    Raises:
        ConfigError: there is no such one, or its number cannot be, or two do not go together.
    """
    if text in ("none", AUTO):
        return None
    name, plus, further = text.partition("+")
    first = _one(text, name)
    if not plus:
        return first
    values = _one(text, further)
    if isinstance(first, Sparsify) and isinstance(values, Cast | Quantise):
        return Sparsify(first.select, first.amount, values)
    if isinstance(first, LowRank) and isinstance(values, Cast):
        return LowRank(first.rank, values)
    raise _refusal(
        text,
        "after a plus sign is what becomes of values of topk, randomk or threshold, or bf16 or fp16 after powersgd; "
        "nothing else goes together",
    )


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
        'becomes of the values ("topk:0.01+int8"), or "powersgd:RANK", also with "+bf16"'
    )
