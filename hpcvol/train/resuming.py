"""Going on from a checkpoint that one member has: it reads, and all others get what it read over MPI."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcvol.comm import Group, together
from hpcvol.errors import CheckpointError
from hpcvol.torch.run import Run
from hpcvol.torch.staging import spread
from hpcvol.train import checkpoint
from hpcvol.train.checkpoint import Checkpoints
from hpcvol.train.checkpoint_files import MODEL, read_state
from hpcvol.train.config import Config
from hpcvol.train.recipe import of_another_run

logger = logging.getLogger("hpcvol")


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint of all that members have.

    Attributes:
        owner: rank of the member that has it.
        path: where it is there.
        name: it in words for messages.
    """

    owner: int
    path: Path
    name: str


def find_newest(group: Group, checkpoints: Checkpoints | None, foreign: Callable[[Path], str | None]) -> Found | None:
    """Return the newest checkpoint of this run that is whole and that any member has, None where there is none.

    Collective. Those that are skipped are logged by name on the first member, each once.

    Args:
        group: the live ranks.
        checkpoints: those that this member can see, None on members that need not look.
        foreign: says of a whole checkpoint why it is not of this run, None where it is.

    Raises:
        CheckpointError: there are checkpoints and none will do; the same on every member.
    """
    mine: tuple[str, Path] | None = None
    trouble: CheckpointError | None = None
    with together(group, "looking for a checkpoint"):
        try:
            path = checkpoints.newest(foreign) if checkpoints is not None else None
            mine = None if path is None else (path.name, path)
        except CheckpointError as error:
            trouble = error
    everybody = group.gather_objects((mine, list(checkpoints.skipped.values()) if checkpoints is not None else []))
    found = [(int(one[0].removeprefix("step-")), -rank, one[1]) for rank, (one, _) in enumerate(everybody) if one]
    if not found:
        with together(group, "looking for a checkpoint"):
            if trouble is not None:
                raise trouble
        return None
    if group.rank == 0:
        for text in dict.fromkeys(text for _, skipped in everybody for text in skipped):
            logger.warning("skipping a checkpoint: %s", text)
    _, owner, path = max(found)
    where = f" of {group.name_of(-owner)}" if owner != 0 else ""
    return Found(-owner, path, f"{path}{where}")


def foreign_to(run: Run, config: Config, path: Path) -> str | None:
    """Say why the whole checkpoint `path` is not of this run, None where it is. Local.

    Its recipe tells, and the names, shapes and dtypes of its tensors. Other data do not: where the configuration still
    names the same, somebody has changed what the run learns from, and has to know.
    """
    misfit = of_another_run(path, config)
    if misfit is not None:
        return misfit
    misfit = checkpoint.another_model(path, run.model)
    return f"{path.name} is of another model: {misfit}" if misfit is not None else None


def receive_state(group: Group, found: Found) -> dict[str, Any]:
    """Return what the checkpoint holds besides model and optimizer, read by the member that has it. Collective."""
    state: dict[str, Any] = {}
    with together(group, f"loading {found.name}"):
        if group.rank == found.owner:
            state = read_state(found.path)
    received: dict[str, Any] = group.broadcast_object(state, found.owner)
    return received


def load(run: Run, found: Found) -> dict[str, torch.Tensor]:
    """Load model and optimizer of all members from the checkpoint that one of them has. Collective.

    That one reads the files, the others receive tensor by tensor, into the model and into what the optimizer keeps.

    Returns:
        The residuals that it holds.

    Raises:
        CheckpointError: it is of another model or optimizer; the same on every member.
    """
    group, path = run.group, found.path
    stored: dict[str, Any] = {}
    residuals: dict[str, torch.Tensor] = {}
    with together(group, f"loading {found.name}"):
        if group.rank == found.owner:
            checkpoint.load_weights(path / MODEL, run.model)
            stored = checkpoint.read_optimizer(path)
            residuals = checkpoint.read_residuals(path)
    run.broadcast_model(found.owner)
    stored = spread(group, stored, found.owner)
    residuals = spread(group, residuals, found.owner)
    with together(group, f"loading {found.name}"):
        checkpoint.load_optimizer(path, stored, run.optimizer)
    return residuals


def start_from(run: Run, weights: Path) -> None:
    """Give the models of all members the weights in a file that one of them has. Collective.

    Raises:
        CheckpointError: no member has it, or it is of another model; the same on every member.
    """
    has = run.group.gather_objects(weights.is_file())
    owner = has.index(True) if any(has) else 0
    with together(run.group, "loading model.weights"):
        if run.group.rank == owner:
            checkpoint.load_weights(weights, run.model)
    run.broadcast_model(owner)
