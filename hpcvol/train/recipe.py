"""What the configuration says of where weights come from: a checkpoint of another recipe is of another run."""

import json
from pathlib import Path
from typing import Any

from hpcvol.train import toml
from hpcvol.train.checkpoint_files import read_state
from hpcvol.train.config import Config

# All of these stay as they are for the life of a run, and none is a path, which may be another on another host.
_PARTS = (
    "model.args",
    "data.train_split",
    "data.window",
    "optimizer.",
    "train.batch_size",
    "train.precision",
    "train.seed",
    "train.unit_size",
)


def recipe(config: Config) -> dict[str, Any]:
    """Return what has to be the same in a checkpoint and in the run that goes on from it, by key, as JSON has it."""
    leaves = toml.flatten(config.model_dump())
    chosen = {key: value for key, value in leaves.items() if key.startswith(_PARTS)}
    kept: dict[str, Any] = json.loads(json.dumps(chosen, default=str))
    return kept


def of_another_run(path: Path, config: Config) -> str | None:
    """Say in what the whole checkpoint `path` is of another recipe than `config`, None where it is of the same."""
    there, here = read_state(path).get("recipe", {}), recipe(config)
    differ = [
        f"{key} is {toml.value_text(there.get(key))} there and {toml.value_text(here.get(key))} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]
    return f"{path.name} is of another run: {'; '.join(differ)}" if differ else None
