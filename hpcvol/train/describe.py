"""What a checkpoint or a run is, in plain values, for people and for programs. Loads neither torch nor MPI."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hpcvol.errors import CheckpointError
from hpcvol.train.checkpoint_files import BEST, MODEL, STATE, checkpoints_in, read_state, trouble_with
from hpcvol.train.completion import SUMMARY_NAME
from hpcvol.train.config import Config, load_config
from hpcvol.train.ledger_account import credit, last_roles, read_account
from hpcvol.train.recipe import of_another_run
from hpcvol.train.run_directory import CHECKPOINTS_NAME, CONFIG_NAME, METRICS_NAME, is_at_work


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Return what the checkpoint in folder `path` holds, as values for JSON. Sizes are checked, digests are not. Local.

    Raises:
        CheckpointError: its description or its weights cannot be read.
    """
    try:
        state = read_state(path)
        progress, files = state["progress"], state["files"]
        described = {
            "kind": "checkpoint",
            "path": str(path),
            "step": state["run"]["step"],
            "epoch": progress["epoch"],
            "samples": progress["samples"],
            "seconds": progress["seconds"],
            "train_loss": progress["loss_total"] / progress["weight_total"] if progress["weight_total"] else None,
            "validation": progress["validation"] or None,
            "validated_step": progress["validated_step"],
            "best_val_loss": progress["best_loss"],
            "best": state["best"],
            "dataset": state["dataset"],
            "numerics": state["numerics"],
            "files": {name: nbytes for name, (nbytes, _) in files.items()},
            "trouble": trouble_with(path, read=False),
        }
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path / STATE} cannot be read as the description of a checkpoint ({type(error).__name__}: {error}): "
            "`hpcvol train` goes on from another one, and `hpcvol verify` of the run names those that are whole"
        ) from None
    return {**described, "tensors": _tensors(path / MODEL)}


def describe_run(path: Path) -> dict[str, Any]:
    """Return what the run in folder `path` trains and how far it is, as values for JSON. Local.

    Raises:
        ConfigError: its configuration cannot be read.
    """
    config = load_config(path / CONFIG_NAME)
    lines = list(metrics_lines(path))
    losses = [line for line in lines if "loss" in line]
    validations = [line for line in lines if isinstance(line.get("val"), dict)]
    scored = [line for line in validations if line["val"].get("loss") is not None]
    best = min(scored, key=lambda line: float(line["val"]["loss"]), default=None)
    summary, account = read_summary(path), read_account(path)
    return {
        "kind": "run",
        "path": str(path),
        "config": _essentials(config),
        "step": max((line["step"] for line in lines), default=0),
        "last": losses[-1] if losses else None,
        "last_validation": {"step": validations[-1]["step"], **validations[-1]["val"]} if validations else None,
        "best_validation": {"step": best["step"], **best["val"]} if best else None,
        "checkpoints": [_checkpoint_line(one, config) for one in checkpoints_in(path / CHECKPOINTS_NAME)],
        "best_checkpoint": _best_checkpoint(path),
        "roles": None if account is None else last_roles(account),
        "credit": {} if account is None else credit(account),
        "complete": summary is not None and summary.get("completed") is True,
        "summary": summary,
        "at_work": is_at_work(path),
    }


def metrics_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's metrics that are whole. Local."""
    try:
        text = (path / METRICS_NAME).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and isinstance(content.get("step"), int):
            yield content


def read_summary(path: Path) -> dict[str, Any] | None:
    """Return the summary of a run, None where there is none or it cannot be read. Local."""
    try:
        content = json.loads((path / SUMMARY_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _essentials(config: Config) -> dict[str, Any]:
    train = config.train
    length = {"steps": train.steps} if train.steps is not None else {"epochs": train.epochs}
    return {
        "model": config.model.build,
        "data": config.data.path,
        "optimizer": {"name": config.optimizer.name, **config.optimizer.args},
        **length,
        "batch_size": train.batch_size,
        "unit_size": train.unit_size,
        "sum": train.sum,
        "precision": train.precision,
        "seed": train.seed,
    }


def _checkpoint_line(path: Path, config: Config) -> dict[str, Any]:
    nbytes, trouble = 0, trouble_with(path, read=False)
    with suppress(OSError, ValueError):  # it is a file, or the job that is at work deletes it
        nbytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        trouble = trouble or of_another_run(path, config)
    return {"name": path.name, "nbytes": nbytes, "trouble": trouble}


def _best_checkpoint(path: Path) -> str | None:
    pointer = path / CHECKPOINTS_NAME / BEST
    return pointer.resolve().name if pointer.exists() else None


def _tensors(path: Path) -> dict[str, Any] | None:
    """Return number of tensors, of values, and the dtypes of a safetensors file; None where it cannot be read."""
    try:
        with safe_open(path, framework="np") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118  (it is no mapping)
            return {
                "count": len(slices),
                "values": sum(math.prod(one.get_shape()) for one in slices),
                "dtypes": sorted({str(one.get_dtype()) for one in slices}),
            }
    except (OSError, SafetensorError):
        return None
