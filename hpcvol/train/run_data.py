"""The data of a run: from the configuration to samples, the same on every member."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcvol.callables import load_callable
from hpcvol.comm import Group, together
from hpcvol.data import Dataset, build_dataset
from hpcvol.data.mixing import MixedOrder, check_same_fields, concatenate
from hpcvol.errors import ConfigError
from hpcvol.torch.samples import Samples, Transform, open_samples
from hpcvol.train.config import Config, DataConfig, is_reference


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
        if group.rank == 0 and data.source is not None:
            _build(data)
    with together(group, "opening the data"):
        transform, eval_transform = (
            None if name is None else load_callable(name, config.folder)
            for name in (data.transform, data.eval_transform)
        )
        if isinstance(data.path, str) and is_reference(data.path):
            give = load_callable(data.path, config.folder)
            val, test = (_optional(give(split), eval_transform) for split in (data.val_split, data.test_split))
            train = open_samples(give(data.train_split), transform=transform)
            return Data(train, val, test, f"{len(train)} samples of {data.path.rpartition(':')[2]}")
        return _open_folders(data, transform, eval_transform)
    raise AssertionError("together() raises where its body did not return")


def _build(data: DataConfig) -> None:
    (folder,), source = data.weights, data.source
    if source is not None and not _exists(Path(folder)):
        print(f"building {folder} from {source.kind}", flush=True)
        build_dataset(source.kind, source.paths, folder, split=source.split, options=source.options)


def _open_folders(data: DataConfig, transform: Transform | None, eval_transform: Transform | None) -> Data:
    """Open the datasets of `data.path`: the training splits mixed by weight, the others one after the other."""
    datasets = [Dataset.open(path) for path in data.weights]
    check_same_fields(datasets)
    for dataset in datasets:
        _refuse_unknown("train_split", data, [dataset])
    rows = [dataset.require(data.train_split) for dataset in datasets]
    order = MixedOrder(rows, list(data.weights.values())) if isinstance(data.path, dict) else None
    train = open_samples(concatenate(datasets, data.train_split, order), transform=transform)

    def held_out(key: str) -> Samples | None:
        split: str = getattr(data, key)
        if split != DataConfig.model_fields[key].default:
            _refuse_unknown(key, data, datasets)
        having = [dataset for dataset in datasets if dataset.splits.get(split)]
        return open_samples(concatenate(having, split), transform=eval_transform) if having else None

    return Data(train, held_out("val_split"), held_out("test_split"), _id(data, datasets))


def _refuse_unknown(key: str, data: DataConfig, datasets: Sequence[Dataset]) -> None:
    split = getattr(data, key)
    if not any(split in dataset.splits for dataset in datasets):
        have = "; ".join(f"{dataset.path} has the splits {', '.join(dataset.splits)}" for dataset in datasets)
        raise ConfigError(f"data.{key} = {split!r}: {have}")


def _id(data: DataConfig, datasets: Sequence[Dataset]) -> str:
    """Return what tells other training samples: the dataset's id, or a digest of all of them and their weights."""
    if isinstance(data.path, str):
        return datasets[0].id
    weighted = [f"{dataset.id} {weight!r}" for dataset, weight in zip(datasets, data.path.values(), strict=True)]
    return hashlib.sha256("\n".join(weighted).encode()).hexdigest()[:32]


def _optional(dataset: Any, transform: Transform | None) -> Samples | None:
    if dataset is None:
        return None
    samples = open_samples(dataset, transform=transform)
    return samples if len(samples) else None


def _exists(path: Path) -> bool:
    """Whether there is something at `path`; hidden folders are what a killed build left, which a new one clears."""
    return path.is_file() or (path.is_dir() and any(not file.name.startswith(".") for file in path.iterdir()))
