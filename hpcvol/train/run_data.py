"""The data of a run: from the configuration to samples, the same on every member."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcvol import environment
from hpcvol.callables import load_callable
from hpcvol.comm import Group, together
from hpcvol.data import Dataset, build_dataset
from hpcvol.data.cache import copy_name, free_nbytes
from hpcvol.data.dataset import EpochOrder
from hpcvol.data.mixing import MixedOrder, check_same_fields, concatenate
from hpcvol.data.windowed import WindowedOrder
from hpcvol.errors import ConfigError
from hpcvol.torch.samples import Samples, Transform, open_samples
from hpcvol.train.config import Config, DataConfig, is_reference
from hpcvol.train.shard_passing import open_passed


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
        transforms = tuple(
            None if name is None else load_callable(name, config.folder)
            for name in (data.transform, data.eval_transform)
        )
        if isinstance(data.path, str) and is_reference(data.path):
            return _open_function(config, *transforms)
        cache = None if data.cache is None else _cache_folder(data.cache, config.folder)
    datasets, passed = _open_datasets(data, group, cache)
    with together(group, "opening the data"):
        opened = _open_splits(data, datasets, cache, *transforms)
    if cache is not None:
        _tell_of_cache(data, group, datasets, cache, passed)
    return opened


def _open_function(config: Config, transform: Transform | None, eval_transform: Transform | None) -> Data:
    data = config.data
    assert isinstance(data.path, str)
    give = load_callable(data.path, config.folder)
    val, test = (_optional(give(split), eval_transform) for split in (data.val_split, data.test_split))
    train = open_samples(give(data.train_split), transform=transform)
    return Data(train, val, test, f"{len(train)} samples of {data.path.rpartition(':')[2]}")


def _open_datasets(data: DataConfig, group: Group, cache: Path | None) -> tuple[list[Dataset], int]:
    """Open the datasets; with a cache, hosts that lack shards are given them. Collective."""
    if cache is not None:
        opened = [open_passed(group, Path(folder), cache) for folder in data.weights]
        return [dataset for dataset, _ in opened], sum(passed for _, passed in opened)
    datasets: list[Dataset] = []
    with together(group, "opening the data"):
        datasets += [Dataset.open(folder) for folder in data.weights]
    return datasets, 0


def _cache_folder(text: str, base: Path) -> Path:
    """Return data.cache on this node."""
    expanded = environment.expand(text)
    if "$" in expanded:
        raise ConfigError(f"data.cache = {text!r}: {expanded} names a variable that is not set on this host")
    return base / Path(expanded).expanduser()


def _tell_of_cache(data: DataConfig, group: Group, datasets: Sequence[Dataset], cache: Path, passed: int) -> None:
    """Say once what the cache holds on the node with the least room. Collective."""
    shards = [shard for dataset in datasets for _, shard in dataset.files(data.train_split)]
    largest = max(shard.nbytes for shard in shards)
    held = sum(shard.nbytes for shard in shards if (cache / copy_name(shard)).exists())
    fitting = min(group.gather_objects(min(len(shards), (free_nbytes(cache) + held) // largest)))
    if group.rank > 0:
        return
    said = f"caching the training data in {cache}: room for {fitting} of {len(shards)} shards"
    if passed:
        said += f"; {passed} shards were passed to hosts that lack them"
    if data.window is not None:
        said += f"; samples are shuffled within {data.window} shards at a time"
    elif fitting < len(shards):
        said += "; the others are read where they lie"
        said += f" (data.window = {max(1, fitting // 2)} would let the cache move along)"
    print(said, flush=True)


def _build(data: DataConfig) -> None:
    (folder,), source = data.weights, data.source
    if source is not None and not _exists(Path(folder)):
        print(f"building {folder} from {source.kind}", flush=True)
        build_dataset(source.kind, source.paths, folder, split=source.split, options=source.options)


def _open_splits(
    data: DataConfig,
    datasets: Sequence[Dataset],
    cache: Path | None,
    transform: Transform | None,
    eval_transform: Transform | None,
) -> Data:
    """Open the splits: those to train on mixed by weight and cached, the others one after the other."""
    check_same_fields(datasets)
    for dataset in datasets:
        _refuse_unknown("train_split", data, [dataset])
    split = concatenate(datasets, data.train_split, _order(data, datasets), cache)
    train = open_samples(split, transform=transform)

    def held_out(key: str) -> Samples | None:
        split: str = getattr(data, key)
        if split != DataConfig.model_fields[key].default:
            _refuse_unknown(key, data, datasets)
        having = [dataset for dataset in datasets if dataset.splits.get(split)]
        return open_samples(concatenate(having, split), transform=eval_transform) if having else None

    return Data(train, held_out("val_split"), held_out("test_split"), _id(data, datasets))


def _order(data: DataConfig, datasets: Sequence[Dataset]) -> EpochOrder | None:
    rows = [dataset.require(data.train_split) for dataset in datasets]
    if isinstance(data.path, dict):
        return MixedOrder(rows, list(data.weights.values()))
    if data.window is not None:
        return WindowedOrder([shard.rows for _, shard in datasets[0].files(data.train_split)], data.window)
    return None


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
