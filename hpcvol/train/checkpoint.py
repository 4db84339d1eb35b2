"""Checkpoints: folders that are there whole or not at all.

`checkpoints/step-00000120/` holds `model.safetensors` (parameters and buffers), `optimizer.pt` (the optimizer's state,
loadable with `weights_only=True`) and `state.json` (everything else, and the size and digest of the other two). It is
written as `.step-00000120.partial`, synced and renamed. `checkpoints/best` points to the one with the lowest validation
loss.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from hpcvol.durable import sync
from hpcvol.errors import CheckpointError
from hpcvol.train.checkpoint_files import (
    BEST,
    FORMAT,
    MODEL,
    OPTIMIZER,
    STATE,
    checkpoints_in,
    digest_of,
    seal,
    trouble_with,
)
from hpcvol.train.files import write_whole
from hpcvol.train.snapshot import Snapshot

logger = logging.getLogger("hpcvol")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made when the first is written.
        keep: how many to keep, besides the best.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._damaged: set[Path] = set()

    def write(self, step: int, content: Snapshot, state: Mapping[str, Any], *, best: bool) -> Path:
        """Write the checkpoint of `step`, make it the best one if `best`, and delete those no longer kept. Local.

        Args:
            step: how many steps were made.
            content: model and optimizer.
            state: everything else, for JSON.
            best: whether no other has a lower validation loss.

        Raises:
            CheckpointError: it could not be written (a full disk); earlier checkpoints are as they were.
        """
        final = self._folder / f"step-{step:08d}"
        partial = self._folder / f".{final.name}.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop_partial()
            if final.exists() and trouble_with(final) is not None:
                _delete(final)
            if not final.exists():
                partial.mkdir()
                _write_parts(partial, content, state)
                partial.rename(final)
                sync(self._folder)
            self._damaged.discard(final)
            if best:
                self.make_best(final)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            free = shutil.disk_usage(self._folder if self._folder.exists() else "/").free
            raise CheckpointError(
                f"checkpoint {final} could not be written: {_reason(error)} ({free / 2**20:.0f} MiB free there); "
                "checkpoints written before are whole. Make room and start the same command again: it goes on from the "
                "last one"
            ) from error
        self._prune()
        return final

    def newest(self) -> Path | None:
        """Return the newest checkpoint that is whole, or None where there is none; those skipped are logged by name.

        Raises:
            CheckpointError: there are checkpoints and none is whole; says what is wrong with each.
        """
        troubles = []
        for path in reversed(checkpoints_in(self._folder)):
            trouble = trouble_with(path)
            if trouble is None:
                return path
            logger.warning("skipping a checkpoint: %s", trouble)
            troubles.append(trouble)
            self._damaged.add(path)
        if troubles:
            raise CheckpointError("no checkpoint is whole: " + "; ".join(troubles) + "; --fresh starts over")
        return None

    def make_best(self, path: Path) -> None:
        """Let `best` point to the checkpoint `path`. Local."""
        aside = self._folder / ".best"
        aside.unlink(missing_ok=True)
        aside.symlink_to(path.name)
        aside.replace(self._folder / BEST)

    def _drop_partial(self) -> None:
        for path in self._folder.glob(".step-*.partial"):
            shutil.rmtree(path)

    def _prune(self) -> None:
        best = (self._folder / BEST).resolve()
        # Damaged ones, which are newer than where the run goes on, must not push out whole ones.
        for path in sorted(set(checkpoints_in(self._folder)) - self._damaged)[: -self._keep]:
            if path.resolve() != best:
                _delete(path)


def read_optimizer(path: Path) -> dict[str, Any]:
    """Return the optimizer's state that checkpoint `path` holds, its tensors on the CPU. Local."""
    stored: dict[str, Any] = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    return stored


def load_optimizer(path: Path, stored: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Load what `read_optimizer(path)` returned, in place. Local.

    Raises:
        CheckpointError: it is of another optimizer or model.
    """
    try:
        optimizer.load_state_dict(stored)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path / OPTIMIZER} is not of this optimizer and model: {error}") from None


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Load parameters and buffers from a safetensors file, in place. Local.

    Raises:
        CheckpointError: no such file, not safetensors, or names, shapes or dtypes that are not the model's; names the
            first.
    """
    try:
        stored = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no weights at {path}: expected a {MODEL} file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from None
    _check_fit(path, stored, model)
    model.load_state_dict(stored, strict=False)  # tied weights are stored once


def _check_fit(path: Path, stored: Mapping[str, torch.Tensor], model: torch.nn.Module) -> None:
    own = model.state_dict()
    shared = {name for name in own if name not in stored}
    for name in stored:
        if name not in own:
            raise CheckpointError(f"{path} is of another model: it holds {name!r}, which this model does not have")
        there, here = _describe(stored[name]), _describe(own[name])
        if there != here:
            raise CheckpointError(f"{path} is of another model: {name!r} is {there} there and {here} here")
    # Tensors that share memory with a stored one (tied weights) are stored once.
    pointers = {own[name].data_ptr() for name in stored}
    missing = [name for name in own if name in shared and own[name].numel() and own[name].data_ptr() not in pointers]
    if missing:
        raise CheckpointError(f"{path} is of another model: it lacks {missing[0]!r}, which this model has")


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _reason(error: BaseException) -> str:
    """Return the system's own words where torch hides them behind its own."""
    told: BaseException | None = error
    while told is not None and not isinstance(told, OSError):
        told = told.__context__
    return str(told or error)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write_parts(folder: Path, content: Snapshot, state: Mapping[str, Any]) -> None:
    safetensors.torch.save_file(content.model, folder / MODEL, metadata={"format": "pt"})
    with (folder / OPTIMIZER).open("wb") as file:  # given a path, torch does not say why it cannot write
        torch.save(content.optimizer, file)
    for name in (MODEL, OPTIMIZER):
        sync(folder / name)
    files = {name: [(folder / name).stat().st_size, digest_of(folder / name)] for name in (MODEL, OPTIMIZER)}
    write_whole(folder / STATE, seal({"format": FORMAT, "files": files, **state}))
