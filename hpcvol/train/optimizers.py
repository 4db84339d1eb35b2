"""Optimizers and learning-rate schedules by name."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable

import torch

from hpcvol.errors import ConfigError
from hpcvol.train.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of `torch.optim` that `optimizer.name` names, in any case.

    Raises:
        ConfigError: no such optimizer (names the nearest), or arguments that it does not take.
    """
    kinds = {name.lower(): kind for name, kind in vars(torch.optim).items() if _is_optimizer(kind)}
    kind = kinds.get(config.name.lower())
    if kind is None:
        near = difflib.get_close_matches(config.name.lower(), kinds, 1)
        hint = f"; did you mean {kinds[near[0]].__name__}?" if near else ""
        raise ConfigError(f"optimizer.name = {config.name!r}: torch.optim has no such optimizer{hint}")
    try:
        optimizer: torch.optim.Optimizer = kind(parameters, **config.args)
    except (TypeError, ValueError) as error:
        known = [name for name in inspect.signature(kind).parameters if name not in ("self", "params")]
        raise ConfigError(f"optimizer.args: {kind.__name__} says: {error}; it takes {', '.join(known)}") from None
    return optimizer


def learning_rate_factor(config: OptimizerConfig, total_steps: int) -> Callable[[int], float]:
    """Return the schedule: the factor of the base learning rate at step t (from 0), a pure function of t.

    With w = `warmup_steps`, f = `final_lr_ratio` and r = (t - w) / (T - 1 - w), clamped to [0, 1]:
    (t + 1) / w while t < w; then 1 (constant), 1 - (1 - f)·r (linear) or f + (1 - f)·(1 + cos πr) / 2 (cosine).

    References:
        Cosine: Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, equation 5.
    """
    warmup, final = config.warmup_steps, config.final_lr_ratio
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda r: 1.0 - (1.0 - final) * r,
        "cosine": lambda r: final + (1.0 - final) * (1.0 + math.cos(math.pi * r)) / 2.0,
    }
    shape = shapes[config.schedule]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return shape(min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup)))

    return factor


def _is_optimizer(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
