"""How gradients get smaller: four families, which are values, and what a codec is to those who carry its payloads.

`strategy.codec` names one: a preset, with its number after a colon, and for selections what becomes of the values after
a plus sign, as in "int8", "topk:0.01", "topk:0.01+int8" or "powersgd:4".
"""

from hpcvol.codecs.cast import Cast
from hpcvol.codecs.codec import Codec, Floats, Payload, Seeds
from hpcvol.codecs.low_rank import LowRank
from hpcvol.codecs.momentum import Momentum
from hpcvol.codecs.names import AUTO, AnyCodec, encodes_alone, parse
from hpcvol.codecs.quantise import Quantise
from hpcvol.codecs.sparsify import Sparsify

__all__ = [
    "AUTO",
    "AnyCodec",
    "Cast",
    "Codec",
    "Floats",
    "LowRank",
    "Momentum",
    "Payload",
    "Quantise",
    "Seeds",
    "Sparsify",
    "encodes_alone",
    "parse",
]
