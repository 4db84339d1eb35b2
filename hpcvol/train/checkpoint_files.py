"""The files of a checkpoint, and whether they are whole. Loads no torch, so that looking at a run costs little."""

import json
import re
from pathlib import Path

import xxhash

FORMAT = 2
MODEL, OPTIMIZER, STATE, BEST = "model.safetensors", "optimizer.pt", "state.json", "best"
_NAME = re.compile(r"step-\d{8,}")  # others in the folder are not ours: a copy that somebody keeps
_CHUNK_NBYTES = 1 << 24


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, whole or not, by step."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def trouble_with(path: Path, *, read: bool = True) -> str | None:
    """Say what is wrong with the checkpoint `path`, or None where it is whole.

    Args:
        path: its folder.
        read: False compares sizes only, without the digests of what the files hold.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            return f"{path.name} has format {state['format']}, expected {FORMAT}"
        for name, (nbytes, digest) in state["files"].items():
            found = (path / name).stat().st_size
            if found != nbytes:
                return f"{path.name}/{name} has {found} bytes, expected {nbytes}"
            if read and digest_of(path / name) != digest:
                return f"{path.name}/{name} has another digest than {STATE} says: it was changed or damaged"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path.name} is not whole ({type(error).__name__}: {error})"
    return None


def digest_of(path: Path) -> str:
    """Return the xxh3_64 of a file, 16 hexadecimal digits."""
    total = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_NBYTES):
            total.update(chunk)
    return total.hexdigest()
