"""A run's folder: whether it is new, goes on, is complete, or belongs to another configuration."""

import shutil
from pathlib import Path

from hpcvol.errors import ConfigError
from hpcvol.train.completion import SUMMARY_NAME, Completion
from hpcvol.train.config import Config, differences, load_config, to_toml
from hpcvol.train.files import write_whole, writing

CONFIG_NAME = "config.toml"
METRICS_NAME = "metrics.jsonl"
CHECKPOINTS_NAME = "checkpoints"

# Changing these cannot change a bit of the weights.
_FREE = ("checkpoint.", "comm.", "train.log_every_steps", "train.on_metrics", "train.share_devices")
_LENGTH = ("train.steps", "train.epochs")


def open_run_directory(path: Path, config: Config, *, fresh: bool) -> None:
    """Make `path` the folder of a run of `config`, or check that it is one. To be called by one member.

    Raises:
        ConfigError: the folder is something else, or a run of a configuration that would give other weights.
        HpcvolError: the folder cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--run-dir {path} is a file: expected a folder, or a name for a new one")
    with writing(path):
        known = path / CONFIG_NAME
        if path.is_dir() and not known.exists() and any(not file.name.startswith(".") for file in path.iterdir()):
            raise ConfigError(
                f"--run-dir {path} holds files and no {CONFIG_NAME}, so it is not a run: choose another folder"
            )
        if fresh:
            _empty(path)
        if known.exists():
            _check_agreement(known, config)
        path.mkdir(parents=True, exist_ok=True)
        write_whole(known, to_toml(config))


def is_complete(path: Path) -> bool:
    """Return whether the run in `path` says that it is complete."""
    return Completion(path).is_complete(0)


def _check_agreement(known: Path, config: Config) -> None:
    free = _FREE + _LENGTH if config.optimizer.schedule == "constant" else _FREE
    all_changed = differences(load_config(known), config)
    changed = [line for line in all_changed if not line.startswith(free)]
    if changed:
        raise ConfigError(
            f"{known.parent} is a run of another configuration; what differs (there -> now):\n  "
            + "\n  ".join(changed)
            + "\nGo on with its own values, choose another --run-dir, or start over with --fresh"
        )
    if any(line.startswith(_LENGTH) for line in all_changed):
        (known.parent / SUMMARY_NAME).unlink(missing_ok=True)


def _empty(path: Path) -> None:
    """Delete a run; its configuration last, so that the folder is known for a run's until it is empty."""
    (path / SUMMARY_NAME).unlink(missing_ok=True)
    if (path / CHECKPOINTS_NAME).exists():
        shutil.rmtree(path / CHECKPOINTS_NAME)
    for name in (METRICS_NAME, CONFIG_NAME):
        (path / name).unlink(missing_ok=True)
