"""Files of tokens that somebody made from text already, such as the train.bin of nanoGPT."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hpcvol.data.sources.files import find_files, unused_name
from hpcvol.data.sources.options import Options
from hpcvol.data.sources.sequences import SequenceSource
from hpcvol.data.sources.source import Source, shard_nbytes

_DTYPES = ("uint8", "uint16", "uint32", "int32", "int64")


def tokens_source(paths: Sequence[str], shares: Mapping[str, float], options: Options) -> Source:
    """Return the tokens in the files at `paths`: bare little-endian integers, without a header.

    Samples have the shape of kind text: field `tokens`, [sequence_length]. See `SequenceSource` for which token goes to
    which split and sequence.

    Options: dtype ("uint16", or uint8, uint32, int32, int64); sequence_length (257); vocab_size (tokens have to be
    below it, which finds a wrong dtype; 0, the default, does not look); shard_nbytes.
    """
    dtype = np.dtype(options.text("dtype", "uint16", among=_DTYPES)).newbyteorder("<")
    length = options.integer("sequence_length", 257, least=1)
    vocab_size = options.integer("vocab_size", 0, least=0)
    files = find_files(paths, (".bin",), "a file of tokens")
    documents: dict[str, Path] = {}
    for path in files:
        documents[unused_name(path.name, documents)] = path
    return SequenceSource(documents, dtype, shares, length, shard_nbytes(options), vocab_size)
