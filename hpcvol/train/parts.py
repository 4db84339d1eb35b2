"""From a configuration to what is trained: data, model, optimizer."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcvol.callables import load_callable
from hpcvol.comm import Group, together
from hpcvol.data import Dataset, build_dataset
from hpcvol.errors import ConfigError, ModelError
from hpcvol.torch.samples import Samples, Transform, open_samples
from hpcvol.torch.seeding import seed_generators
from hpcvol.train.config import Config, DataConfig, is_reference
from hpcvol.train.optimizers import make_optimizer


@dataclass(frozen=True)
class Data:
    """Samples to train on, to validate with and to test with; `id` tells other content, as far as that can be known."""

    train: Samples
    val: Samples | None
    test: Samples | None
    id: str


def open_data(config: Config, group: Group) -> Data:
    """Open the data; the first member builds it where `data.source` says how and it does not exist yet. Collective.

    One member builds; what is too much for one is built beforehand, by `mpiexec hpcvol data build`.

    Raises:
        DataError, ConfigError: the same on every member.
    """
    data = config.data
    with together(group, f"building the dataset {data.path}"):
        if group.rank == 0 and data.source is not None and not _exists(Path(data.path)):
            source = data.source
            print(f"building {data.path} from {source.kind}", flush=True)
            build_dataset(source.kind, source.paths, data.path, split=source.split, options=source.options)
    with together(group, "opening the data"):
        transform, eval_transform = (
            None if name is None else load_callable(name, config.folder)
            for name in (data.transform, data.eval_transform)
        )
        if is_reference(data.path):
            give = load_callable(data.path, config.folder)
            val, test = (_optional(give(split), eval_transform) for split in (data.val_split, data.test_split))
            train = open_samples(give(data.train_split), transform=transform)
            return Data(train, val, test, f"{len(train)} samples of {data.path.rpartition(':')[2]}")
        return _open_folder(data, transform, eval_transform)
    raise AssertionError("together() raises where its body did not return")


def build_model(config: Config) -> torch.nn.Module:
    """Call the model's builder, seeded. Local.

    Raises:
        ConfigError: the function is missing. ModelError: it raises, or returns something else than a module.
    """
    build = load_callable(config.model.build, config.folder)
    seed_generators(config.train.seed, 0, 0)
    _check_arguments(build, config)
    model = build(**config.model.args)
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"model.build = {config.model.build!r} returned a {type(model).__name__}: expected a torch.nn.Module"
        )
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"the model's state_dict holds {name!r}, a {type(value).__name__} (get_extra_state): checkpoints hold "
                "tensors only; keep it in a buffer"
            )
    return model


def build_optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters that require a gradient. Local."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ModelError("the model has no parameter that requires a gradient: nothing to train")
    return make_optimizer(config.optimizer, trained)


def load_hook(config: Config) -> Callable[[int, dict[str, Any]], None] | None:
    """Return `train.on_metrics`, or None. Local."""
    return None if config.train.on_metrics is None else load_callable(config.train.on_metrics, config.folder)


def user_files(config: Config) -> list[Path]:
    """Return the files of the functions that the configuration names: the user's code, which all members must share."""
    named = (
        config.model.build,
        config.data.path,
        config.data.transform,
        config.data.eval_transform,
        config.train.on_metrics,
    )
    return sorted({Path(text.rpartition(":")[0]) for text in named if text is not None and is_reference(text)})


def _check_arguments(build: Callable[..., Any], config: Config) -> None:
    try:
        inspect.signature(build).bind(**config.model.args)
    except TypeError as error:
        raise ConfigError(
            f"model.args = {config.model.args} do not fit {config.model.build}{inspect.signature(build)}: {error}"
        ) from None


def _open_folder(data: DataConfig, transform: Transform | None, eval_transform: Transform | None) -> Data:
    dataset = Dataset.open(data.path)
    if data.train_split not in dataset.splits:
        raise ConfigError(
            f"data.train_split = {data.train_split!r}: {data.path} has the splits {', '.join(dataset.splits)}"
        )

    def held_out(key: str) -> Samples | None:
        split: str = getattr(data, key)
        if split not in dataset.splits and split != DataConfig.model_fields[key].default:
            raise ConfigError(f"data.{key} = {split!r}: {data.path} has the splits {', '.join(dataset.splits)}")
        return open_samples(dataset.split(split), transform=eval_transform) if dataset.splits.get(split) else None

    train = open_samples(dataset.split(data.train_split), transform=transform)
    return Data(train, held_out("val_split"), held_out("test_split"), dataset.id)


def _optional(dataset: Any, transform: Transform | None) -> Samples | None:
    if dataset is None:
        return None
    samples = open_samples(dataset, transform=transform)
    return samples if len(samples) else None


def _exists(path: Path) -> bool:
    """Whether there is something at `path`; hidden folders are what a killed build left, which a new one clears."""
    return path.is_file() or (path.is_dir() and any(not file.name.startswith(".") for file in path.iterdir()))
