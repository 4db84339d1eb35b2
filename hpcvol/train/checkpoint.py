"""Checkpoints: folders that are there whole or not at all.

`checkpoints/step-00000120/` holds `model.safetensors` (parameters and buffers), `optimizer.pt` (the optimizer's state,
loadable with `weights_only=True`) and `state.json` (everything else, and the size and digest of the other two). It is
written as `.step-00000120.partial`, synced and renamed. `checkpoints/best` points to the one with the lowest validation
loss.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import xxhash

from hpcvol.errors import CheckpointError
from hpcvol.train.files import sync, write_whole

logger = logging.getLogger("hpcvol")

FORMAT = 1
MODEL, OPTIMIZER, STATE, BEST = "model.safetensors", "optimizer.pt", "state.json", "best"
_CHUNK_NBYTES = 1 << 24


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made when the first is written.
        keep: how many to keep, besides the best.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def write(
        self,
        step: int,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        *,
        best: bool,
    ) -> Path:
        """Write the checkpoint of `step`, make it the best one if `best`, and delete those no longer kept. Local.

        Raises:
            CheckpointError: it could not be written (a full disk); earlier checkpoints are as they were.
        """
        final = self._folder / f"step-{step:08d}"
        partial = self._folder / f".{final.name}.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop_partial()
            if final.exists() and _trouble_with(final) is not None:
                shutil.rmtree(final)
            if not final.exists():
                partial.mkdir()
                _write_parts(partial, model, optimizer, state)
                partial.rename(final)
                sync(self._folder)
            if best:
                self._point_best_at(final)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            free = shutil.disk_usage(self._folder if self._folder.exists() else "/").free
            raise CheckpointError(
                f"checkpoint {final} could not be written: {error} ({free / 2**20:.0f} MiB free there); checkpoints "
                "written before "
                "are whole. Make room and start the same command again: it goes on from the last one"
            ) from error
        self._prune()
        return final

    def newest(self) -> Path | None:
        """Return the newest checkpoint that is whole, or None where there is none; those skipped are logged by name.

        Raises:
            CheckpointError: there are checkpoints and none is whole; says what is wrong with each.
        """
        troubles = []
        for path in sorted(self._all(), reverse=True):
            trouble = _trouble_with(path)
            if trouble is None:
                return path
            logger.warning("skipping a checkpoint: %s", trouble)
            troubles.append(trouble)
        if troubles:
            raise CheckpointError("no checkpoint is whole: " + "; ".join(troubles) + "; --fresh starts over")
        return None

    def _all(self) -> Iterator[Path]:
        return self._folder.glob("step-*")

    def _drop_partial(self) -> None:
        for path in self._folder.glob(".step-*.partial"):
            shutil.rmtree(path)

    def _point_best_at(self, path: Path) -> None:
        aside = self._folder / ".best"
        aside.unlink(missing_ok=True)
        aside.symlink_to(path.name)
        aside.replace(self._folder / BEST)

    def _prune(self) -> None:
        best = (self._folder / BEST).resolve()
        for path in sorted(self._all())[: -self._keep]:
            if path.resolve() != best:
                shutil.rmtree(path)


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into model and optimizer, in place, and return the rest of its state. Local.

    Raises:
        CheckpointError: it is of another model.
    """
    load_weights(path / MODEL, model)
    try:
        optimizer.load_state_dict(torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path / OPTIMIZER} is not of this optimizer and model: {error}") from None
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return state


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Load parameters and buffers from a safetensors file, in place. Local.

    Raises:
        CheckpointError: no such file, not safetensors, or names, shapes or dtypes that are not the model's; names the
            first.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            _check_fit(path, {name: file.get_slice(name) for name in file.keys()}, model)  # noqa: SIM118 (not a mapping)
        safetensors.torch.load_model(model, str(path))
    except FileNotFoundError:
        raise CheckpointError(f"no weights at {path}: expected a {MODEL} file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from None


def _check_fit(path: Path, stored: Mapping[str, Any], model: torch.nn.Module) -> None:
    own = model.state_dict()
    shared = {name for name in own if name not in stored}
    for name in stored:
        if name not in own:
            raise CheckpointError(f"{path} is of another model: it holds {name!r}, which this model does not have")
        if list(stored[name].get_shape()) != list(own[name].shape):
            raise CheckpointError(
                f"{path} is of another model: {name!r} is {list(stored[name].get_shape())} there and "
                f"{list(own[name].shape)} here"
            )
    # Tensors that share memory with a stored one (tied weights) are stored once.
    pointers = {own[name].data_ptr() for name in stored}
    missing = [name for name in own if name in shared and own[name].numel() and own[name].data_ptr() not in pointers]
    if missing:
        raise CheckpointError(f"{path} is of another model: it lacks {missing[0]!r}, which this model has")


def _write_parts(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    safetensors.torch.save_model(model, str(folder / MODEL))
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    for name in (MODEL, OPTIMIZER):
        sync(folder / name)
    files = {name: [(folder / name).stat().st_size, _digest(folder / name)] for name in (MODEL, OPTIMIZER)}
    write_whole(folder / STATE, json.dumps({"format": FORMAT, "files": files, **state}, indent=1))


def _trouble_with(path: Path) -> str | None:
    """Say what is wrong with a checkpoint, or None where it is whole."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            return f"{path.name} has format {state['format']}, expected {FORMAT}"
        for name, (nbytes, digest) in state["files"].items():
            found = (path / name).stat().st_size
            if found != nbytes:
                return f"{path.name}/{name} has {found} bytes, expected {nbytes}"
            if _digest(path / name) != digest:
                return f"{path.name}/{name} has another digest than {STATE} says: it was changed or damaged"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path.name} is not whole ({type(error).__name__}: {error})"
    return None


def _digest(path: Path) -> str:
    total = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_NBYTES):
            total.update(chunk)
    return total.hexdigest()
