"""Checkpoints: folders that are there whole or not at all.

`checkpoints/step-00000120/` holds `model.safetensors` (parameters and buffers), `optimizer.pt` (the optimizer's state,
loadable with `weights_only=True`), where gradients are encoded `residuals.safetensors` (the sums of what members had
not sent), and `state.json` (everything else, and the size and digest of the others). It is written as
`.step-00000120.RANDOM.partial`, synced and renamed. `checkpoints/best` points to the one with the lowest validation
loss.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from hpcvol.durable import sync
from hpcvol.errors import CheckpointError, HpcvolError
from hpcvol.train.checkpoint_files import (
    BEST,
    FORMAT,
    MODEL,
    OPTIMIZER,
    RESIDUALS,
    STATE,
    checkpoints_in,
    digest_of,
    seal,
    trouble_with,
)
from hpcvol.train.files import write_whole
from hpcvol.train.snapshot import Snapshot


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made when the first is written.
        keep: how many to keep, besides the best.
        check: raises where this member must not write any more; called before anything is deleted or takes effect.

    Attributes:
        skipped: what `newest` found that this run cannot go on from, and why.
    """

    def __init__(self, folder: Path, keep: int, check: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._check = check
        self._keep = keep
        self.skipped: dict[Path, str] = {}

    def write(self, step: int, content: Snapshot, state: Mapping[str, Any], *, best: bool) -> Path:
        """Write the checkpoint of `step`, make it the best one if `best`, and delete those no longer kept. Local.

        Args:
            step: how many steps were made.
            content: model and optimizer.
            state: everything else, for JSON.
            best: whether no other has a lower validation loss.

        Raises:
            CheckpointError: it could not be written (a full disk); earlier checkpoints are as they were.
            HpcvolError: what `check` raises; nothing of this member is left.
        """
        final = self._folder / f"step-{step:08d}"
        # A name of its own: a member that was taken for dead may still be at work on the one of the same step.
        partial = self._folder / f".{final.name}.{os.urandom(4).hex()}.partial"
        try:
            self._check()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop_partial()
            if final.exists() and (final in self.skipped or trouble_with(final) is not None):
                _put_aside(final)
            if not final.exists():
                partial.mkdir()
                _write_parts(partial, content, state)
                self._check()
                partial.rename(final)
                sync(self._folder)
            self.skipped.pop(final, None)
            self._check()
            if best:
                self.make_best(final)
        except HpcvolError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            self._check()  # the others clear what a member that they left behind was writing
            free = shutil.disk_usage(self._folder if self._folder.exists() else "/").free
            raise CheckpointError(
                f"checkpoint {final} could not be written: {_reason(error)} ({free / 2**20:.0f} MiB free there); "
                "checkpoints written before are whole. Make room and start the same command again: it goes on from the "
                "last one"
            ) from error
        self._prune()
        return final

    def newest(self, foreign: Callable[[Path], str | None] = lambda _path: None) -> Path | None:
        """Return the newest checkpoint that is whole and of this run, or None where there is none. Fills `skipped`.

        Args:
            foreign: says of a whole checkpoint why it is not of this run, None where it is.

        Raises:
            CheckpointError: there are checkpoints and none will do; says what is wrong with each.
        """
        self.skipped.clear()
        for path in reversed(checkpoints_in(self._folder)):
            trouble = trouble_with(path) or foreign(path)
            if trouble is None:
                return path
            self.skipped[path] = trouble
        if self.skipped:
            raise CheckpointError(
                f"no checkpoint in {self._folder} is whole and of this run: {'; '.join(self.skipped.values())}; "
                "--fresh starts over"
            )
        return None

    def make_best(self, path: Path) -> None:
        """Let `best` point to the checkpoint `path`. Local."""
        aside = self._folder / ".best"
        aside.unlink(missing_ok=True)
        aside.symlink_to(path.name)
        aside.replace(self._folder / BEST)

    def _drop_partial(self) -> None:
        for path in self._folder.glob(".step-*.partial"):
            shutil.rmtree(path, ignore_errors=True)  # somebody may write on in it, until it finds out

    def _prune(self) -> None:
        best = (self._folder / BEST).resolve()
        # Those skipped, which are newer than where the run goes on, must not push out its own.
        for path in sorted(set(checkpoints_in(self._folder)) - self.skipped.keys())[: -self._keep]:
            if path.resolve() != best:
                _delete(path)


def read_optimizer(path: Path) -> dict[str, Any]:
    """Return the optimizer's state that checkpoint `path` holds, its tensors on the CPU. Local."""
    stored: dict[str, Any] = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    return stored


def read_residuals(path: Path) -> dict[str, torch.Tensor]:
    """Return the residuals that checkpoint `path` holds, none where there are none. Local."""
    file = path / RESIDUALS
    return safetensors.torch.load_file(file) if file.exists() else {}


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
    misfit = _misfit(stored, model)
    if misfit is not None:
        raise CheckpointError(f"{path} is of another model: {misfit}")
    model.load_state_dict(stored, strict=False)  # tied weights are stored once


def another_model(path: Path, model: torch.nn.Module) -> str | None:
    """Say why the weights of the whole checkpoint `path` are not of `model`, None where they are. Local; reads no data.

    Names, shapes and dtypes of parameters and buffers are what tells.
    """
    with safetensors.safe_open(path / MODEL, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    return _misfit(stored, model)


def _misfit(stored: Mapping[str, torch.Tensor], model: torch.nn.Module) -> str | None:
    own = model.state_dict()
    for name in stored:
        if name not in own:
            return f"it holds {name!r}, which this model does not have"
        there, here = _describe(stored[name]), _describe(own[name])
        if there != here:
            return f"{name!r} is {there} there and {here} here"
    # Tensors that share memory with a stored one (tied weights) are stored once.
    pointers = {own[name].data_ptr() for name in stored}
    missing = [
        name for name in own.keys() - stored.keys() if own[name].numel() and own[name].data_ptr() not in pointers
    ]
    return f"it lacks {min(missing)!r}, which this model has" if missing else None


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _reason(error: BaseException) -> str:
    """Return the system's own words where torch hides them behind its own."""
    told: BaseException | None = error
    while told is not None and not isinstance(told, OSError):
        told = told.__context__
    return str(told or error)


def _put_aside(path: Path) -> None:
    """Give the name of a checkpoint free: what is damaged goes, what is another run's stays beside it."""
    foreign = path.with_name(f"{path.name}-foreign")
    if trouble_with(path) is None and not foreign.exists():
        path.rename(foreign)
    else:
        _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write_parts(folder: Path, content: Snapshot, state: Mapping[str, Any]) -> None:
    safetensors.torch.save_file(content.model, folder / MODEL, metadata={"format": "pt"})
    with (folder / OPTIMIZER).open("wb") as file:  # given a path, torch does not say why it cannot write
        torch.save(content.optimizer, file)
    names = [MODEL, OPTIMIZER]
    if content.residuals:
        safetensors.torch.save_file(content.residuals, folder / RESIDUALS)
        names.append(RESIDUALS)
    for name in names:
        sync(folder / name)
    files = {name: [(folder / name).stat().st_size, digest_of(folder / name)] for name in names}
    write_whole(folder / STATE, seal({"format": FORMAT, "files": files, **state}))
