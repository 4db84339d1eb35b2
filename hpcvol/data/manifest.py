"""The manifest of a dataset: what its shards hold, where in each file, and the checksum of every block."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xxhash

from hpcvol.errors import DataError

FILE_NAME = "dataset.json"
FORMAT = "hpcvol dataset"
VERSION = 1

# The first touch of a block reads and hashes all of it, so a shuffled first batch of 256 rows costs up to 64 MiB of
# hashing (6 ms); much smaller blocks make the manifest long (64 bytes a MiB now) and the call dearer than its hash.
BLOCK_SHIFT = 18
BLOCK_NBYTES = 1 << BLOCK_SHIFT


def offsets_name(field: str) -> str:
    """Return the name, in shards, of the array that holds the row offsets of ragged `field`."""
    return f"{field}_offsets"


@dataclass(frozen=True)
class Field:
    """One named part of every sample.

    Args:
        dtype: of the values, little-endian.
        shape: of one sample; of one item where ragged, whose samples are (length, *shape).
        ragged: True where samples differ in their first dimension.
        classes: names of the values 0, 1, ... of a field of labels, where the input has names for them.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    ragged: bool = False
    classes: tuple[str, ...] = ()

    @property
    def item_nbytes(self) -> int:
        """Bytes of one sample, or of one item of a ragged sample."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One immutable HDF5 file of contiguous arrays.

    Args:
        file: name in the dataset's folder; the absolute path of a file that is linked.
        rows: number of samples.
        nbytes: size of the file.
        offsets: where in the file the data of each array begins, in bytes.
        items: number of items of each ragged field.
        digest: of the contents of all arrays, hexadecimal; does not depend on the HDF5 library.
        blocks: xxh3_64 of each block of BLOCK_NBYTES of the file (the last is shorter), 16 hexadecimal digits each.
        modified_ns: of a linked file, the time of its last change (tells why it differs); else 0.
    """

    file: str
    rows: int
    nbytes: int
    offsets: Mapping[str, int]
    items: Mapping[str, int]
    digest: str
    blocks: str
    modified_ns: int = 0

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the file."""
        return -(-self.nbytes // BLOCK_NBYTES)


@dataclass(frozen=True)
class Manifest:
    """What a dataset is.

    Args:
        fields: by name.
        splits: the shards of each split, in the order of their rows.
        build: names the build that made it: input, options and, where given, the caller's own id. Not part of `id`.
        recipe: how it was built, for people: kind, paths, split, options. Not part of `id`.
    """

    fields: Mapping[str, Field]
    splits: Mapping[str, tuple[Shard, ...]]
    build: str = ""
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def id(self) -> str:
        """Digest of the content, 32 hexadecimal digits.

        It follows from fields, splits, the order of rows, their values and the cut into shards (option shard_nbytes);
        not from time, machine, the number of parts that built it, or the HDF5 library.
        """
        content = {
            "fields": fields_to_json(self.fields),
            "splits": {name: [(s.rows, s.digest) for s in shards] for name, shards in self.splits.items()},
        }
        return hashlib.sha256(_canonical(content)).hexdigest()[:32]

    def rows(self, split: str) -> int:
        """Number of samples of `split`."""
        return sum(shard.rows for shard in self.splits[split])

    def to_json(self) -> str:
        """Return the text of the manifest file."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "id": self.id,
            "build": self.build,
            "recipe": dict(self.recipe),
            "block_nbytes": BLOCK_NBYTES,
            "fields": fields_to_json(self.fields),
            "splits": {name: [asdict(shard) for shard in shards] for name, shards in self.splits.items()},
        }
        content["checksum"] = xxhash.xxh3_64_hexdigest(_canonical(content))
        return json.dumps(content, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of the dataset in `folder`.

    Raises:
        DataError: there is none, or it is damaged, or of another version.
    """
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(_why_no_dataset(folder)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Restore the file or build the dataset again.") from error
    return parse_manifest(text, path)


def parse_manifest(text: str, path: Path) -> Manifest:
    """Check and parse the `text` of a manifest; `path` names it in errors."""

    def damaged(what: str) -> NoReturn:
        raise DataError(f"{path} is not an intact manifest: {what}. Restore the file or build the dataset again.")

    try:
        content = json.loads(text)
    except ValueError as error:
        damaged(f"it is not JSON ({error})")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        damaged(f'it lacks "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise DataError(
            f"{path} is a dataset of version {content.get('version')!r}, this hpcvol reads version {VERSION}. "
            "Build the dataset again with this hpcvol, or install the one that built it."
        )
    checksum = content.pop("checksum", None)
    if checksum != xxhash.xxh3_64_hexdigest(_canonical(content)):
        damaged("its contents do not match its own checksum, it was edited or damaged")
    if content["block_nbytes"] != BLOCK_NBYTES:
        damaged(f"blocks of {content['block_nbytes']} bytes, expected {BLOCK_NBYTES}")
    fields = fields_from_json(content["fields"])
    splits = {name: tuple(Shard(**shard) for shard in shards) for name, shards in content["splits"].items()}
    manifest = Manifest(fields, splits, content["build"], content.get("recipe", {}))
    if manifest.id != content["id"]:
        damaged(f"its id is {content['id']}, its contents have the id {manifest.id}")
    return manifest


def _why_no_dataset(folder: Path) -> str:
    if not folder.exists():
        return f"No dataset at {folder}: there is no such folder. Check the path or run `hpcvol data build`."
    if not folder.is_dir():
        return f"No dataset at {folder}: it is a file, expected the folder that `hpcvol data build --out` made."
    if (folder / ".building").exists():
        return (
            f"No dataset at {folder}: a build was begun there and is not complete. "
            "Wait for it, or if it was stopped run the same build again."
        )
    return f"No dataset at {folder}: the folder has no {FILE_NAME}. Build one there with `hpcvol data build`."


def fields_from_json(content: Mapping[str, Any]) -> dict[str, Field]:
    """Return the fields that `fields_to_json` described."""
    return {
        name: Field(np.dtype(field["dtype"]), tuple(field["shape"]), field["ragged"], tuple(field.get("classes", ())))
        for name, field in content.items()
    }


def fields_to_json(fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return `fields` as plain values for JSON."""
    return {
        name: {"dtype": field.dtype.str, "shape": list(field.shape), "ragged": field.ragged}
        | ({"classes": list(field.classes)} if field.classes else {})
        for name, field in fields.items()
    }


def fields_in_words(fields: Mapping[str, Field]) -> str:
    """Return `fields` as one line for people."""
    texts = []
    for name, field in fields.items():
        classes = f" of the classes {', '.join(field.classes)}" if field.classes else ""
        texts.append(f"{name} ({field.dtype}{list(field.shape)}{', ragged' if field.ragged else ''}{classes})")
    return ", ".join(texts)


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
