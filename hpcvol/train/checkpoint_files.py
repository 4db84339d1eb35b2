"""The files of a checkpoint, and whether they are whole. Loads no torch, so that looking at a run costs little."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

FORMAT = 6
MODEL, OPTIMIZER, STATE, BEST = "model.safetensors", "optimizer.pt", "state.json", "best"
RESIDUALS = "residuals.safetensors"  # where `strategy.codec` leaves something out
_NAME = re.compile(r"step-\d{8,}")  # others in the folder are not ours: a copy that somebody keeps
_CHUNK_NBYTES = 1 << 24


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, whole or not, by step."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def seal(state: Mapping[str, Any]) -> str:
    """Return the text of STATE: `state`, and a digest of it."""
    plain = json.loads(json.dumps(state))  # as it will be read: keys are strings, sequences lists
    return json.dumps({**plain, "digest": _digest_of_state(plain)}, indent=1)


def read_state(path: Path) -> dict[str, Any]:
    """Return the description of checkpoint `path`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what was written.
    """
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"{STATE} is not the description of a checkpoint")
    if state["format"] != FORMAT:
        raise ValueError(f"it has format {state['format']}, expected {FORMAT}")
    if state.pop("digest", None) != _digest_of_state(state):
        raise ValueError(f"{STATE} does not match its own digest: it was changed or damaged")
    return state


def trouble_with(path: Path, *, read: bool = True) -> str | None:
    """Say what is wrong with the checkpoint `path`, or None where it is whole.

    Args:
        path: its folder.
        read: False compares sizes only, without the digests of what the files hold.
    """
    try:
        for name, (nbytes, digest) in read_state(path)["files"].items():
            found = (path / name).stat().st_size
            if found != nbytes:
                return f"{path.name}/{name} has {found} bytes, expected {nbytes}"
            if read and digest_of(path / name) != digest:
                return f"{path.name}/{name} has another digest than {STATE} says: it was changed or damaged"
    except (OSError, ValueError) as error:
        return f"{path.name} is not whole ({type(error).__name__}: {error})"
    return None


def _digest_of_state(state: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(state, sort_keys=True, separators=(",", ":")).encode())


def digest_of(path: Path) -> str:
    """Return the xxh3_64 of a file, 16 hexadecimal digits."""
    total = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_NBYTES):
            total.update(chunk)
    return total.hexdigest()
