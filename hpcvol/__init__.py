"""hpcvol: distributed PyTorch training on whatever MPI nodes volunteer.

Importing this loads neither torch nor MPI; each public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcvol.data import Dataset, build_dataset
    from hpcvol.errors import (
        CheckpointError,
        CommError,
        ConfigError,
        DataError,
        HpcvolError,
        MemberError,
        ModelError,
    )
    from hpcvol.strategies.parameter_server import ParameterServer
    from hpcvol.strategies.supernodes import Supernodes
    from hpcvol.torch.codec_hook import codec_hook
    from hpcvol.torch.dataloader import IterableDataset, MapDataset
    from hpcvol.torch.loader import Unit
    from hpcvol.torch.optimizer import DistributedOptimizer
    from hpcvol.torch.run import Run
    from hpcvol.torch.start import start
    from hpcvol.torch.step import Step
    from hpcvol.train.config import Config, load_config
    from hpcvol.train.trainer import Trainer

_HOMES = {
    "CheckpointError": "hpcvol.errors",
    "CommError": "hpcvol.errors",
    "Config": "hpcvol.train.config",
    "ConfigError": "hpcvol.errors",
    "DataError": "hpcvol.errors",
    "Dataset": "hpcvol.data",
    "DistributedOptimizer": "hpcvol.torch.optimizer",
    "HpcvolError": "hpcvol.errors",
    "IterableDataset": "hpcvol.torch.dataloader",
    "MapDataset": "hpcvol.torch.dataloader",
    "MemberError": "hpcvol.errors",
    "ModelError": "hpcvol.errors",
    "ParameterServer": "hpcvol.strategies.parameter_server",
    "Run": "hpcvol.torch.run",
    "Step": "hpcvol.torch.step",
    "Supernodes": "hpcvol.strategies.supernodes",
    "Trainer": "hpcvol.train.trainer",
    "Unit": "hpcvol.torch.loader",
    "build_dataset": "hpcvol.data",
    "codec_hook": "hpcvol.torch.codec_hook",
    "load_config": "hpcvol.train.config",
    "start": "hpcvol.torch.start",
}

__all__ = [
    "CheckpointError",
    "CommError",
    "Config",
    "ConfigError",
    "DataError",
    "Dataset",
    "DistributedOptimizer",
    "HpcvolError",
    "IterableDataset",
    "MapDataset",
    "MemberError",
    "ModelError",
    "ParameterServer",
    "Run",
    "Step",
    "Supernodes",
    "Trainer",
    "Unit",
    "build_dataset",
    "codec_hook",
    "load_config",
    "start",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hpcvol' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
