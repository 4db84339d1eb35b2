"""What no run can train is refused before it begins."""

import inspect

import torch

from hpcvol.codecs import AnyCodec, Momentum
from hpcvol.codecs import parse as parse_codec
from hpcvol.errors import ConfigError, ModelError


def check_parameters(model: torch.nn.Module) -> None:
    """Refuse a model that has nothing to train, or parameters that no sum can carry."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("the model has no parameter that requires a gradient: nothing to train")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.dtype.is_floating_point:
            raise ModelError(
                f"parameter {name!r} is {parameter.dtype}: gradients are summed as real numbers; keep its real and "
                "imaginary parts (torch.view_as_real)"
            )


def check_momentum(optimizer: torch.optim.Optimizer, codec: AnyCodec) -> None:
    """Refuse momentum of the optimizer where the codec has its own."""
    if isinstance(parse_codec(codec), Momentum):
        for parameters in optimizer.param_groups:
            if parameters.get("momentum") or "betas" in parameters:
                raise ConfigError(
                    f'strategy.codec = "{codec}" brings its own momentum along, and the optimizer, '
                    f"{type(optimizer).__name__}, has its own: choose SGD with momentum = 0, or leave out +dgc"
                )


def check_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that the step cannot drive, or one of parameters that no sum covers."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    wants_closure = closure is not None and closure.default is inspect.Parameter.empty
    if wants_closure or isinstance(optimizer, torch.optim.SparseAdam):
        needs = "a closure" if wants_closure else "sparse gradients"
        raise ConfigError(
            f"the optimizer is {type(optimizer).__name__}, which needs {needs}, and a step has none: choose another"
        )
    of_model = {id(parameter) for parameter in model.parameters()}
    for parameters in optimizer.param_groups:
        for parameter in parameters["params"]:
            if id(parameter) not in of_model:
                raise ConfigError(
                    f"the optimizer holds a parameter of shape {list(parameter.shape)} that is not the model's: make "
                    "whatever has it (a loss with weights, say) a part of the model, and the optimizer from "
                    "model.parameters()"
                )
