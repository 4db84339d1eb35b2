"""From a configuration to what is trained: data, model, optimizer."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hpcvol.callables import load_callable
from hpcvol.errors import ConfigError, ModelError
from hpcvol.torch.seeding import seed_generators
from hpcvol.train.config import Config, is_reference
from hpcvol.train.optimizers import make_optimizer


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
    data = config.data
    named = (config.model.build, *data.weights, data.transform, data.eval_transform, config.train.on_metrics)
    return sorted({Path(text.rpartition(":")[0]) for text in named if text is not None and is_reference(text)})


def _check_arguments(build: Callable[..., Any], config: Config) -> None:
    try:
        inspect.signature(build).bind(**config.model.args)
    except TypeError as error:
        raise ConfigError(
            f"model.args = {config.model.args} do not fit {config.model.build}{inspect.signature(build)}: {error}"
        ) from None
