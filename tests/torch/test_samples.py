"""Samples and their loader: a unit's batch is a function of its name alone, whoever loads it and when."""

import random
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from training import Regression, Rows, assert_same_alone, built, digest, make_run, numbers, outcome, train

from hpcvol.comm import Group
from hpcvol.data import Dataset, build_dataset
from hpcvol.elastic.units import Batching, UnitSpan
from hpcvol.errors import DataError
from hpcvol.torch.loader import Loader
from hpcvol.torch.samples import MapSamples, Samples, ShardSamples
from hpcvol.torch.seeding import seed_generators
from hpcvol.torch.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """40 samples in shards."""
    fields = numbers(40).fields
    np.savez(tmp_path / "rows.npz", x=fields["x"].numpy(), y=fields["y"].numpy())
    build_dataset("npz", [tmp_path / "rows.npz"], tmp_path / "data", split={"train": 1.0})
    return Dataset.open(tmp_path / "data")


def noise(batch: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    shape = tuple(batch["x"].shape)
    return {**batch, "x": batch["x"] + torch.from_numpy(rng.standard_normal(shape, np.float32))}


class Augmented:
    """A map-style dataset with augmentation of its own, out of every global generator."""

    def __init__(self) -> None:
        self.fields = numbers(40).fields

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        factor = random.random() + float(np.random.random()) + float(torch.rand(()))
        return factor * self.fields["x"][index], self.fields["y"][index]


def spans(step: int = 1) -> list[UnitSpan]:
    return Batching(40, 16, 4).units(step)


def loaded(samples: Samples, order: list[UnitSpan], *, ahead: bool, seed: int = 5) -> dict[int, dict[str, str]]:
    """Load units in `order`, and return digests by index."""
    with closing(Loader(samples, seed, CPU)) as loader:
        if ahead:
            loader.prefetch(order)
        return {span.index: digest(loader.load(span)) for span in order}


@pytest.mark.parametrize("kind", ["shards", "map", "memory"])
def test_neither_order_nor_prefetching_nor_chance_changes_a_batch(dataset: Dataset, kind: str) -> None:
    def make() -> Samples:
        if kind == "shards":
            return ShardSamples(dataset.split("train"), noise)
        return MapSamples(Augmented(), noise) if kind == "map" else numbers(40)

    wanted = loaded(make(), spans(), ahead=False)
    assert len(set(map(str, wanted.values()))) == 4
    for seed in range(3):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        shuffled = random.sample(spans(), 4)
        assert loaded(make(), shuffled, ahead=seed % 2 == 0) == wanted
        assert loaded(make(), shuffled[:1], ahead=False)[shuffled[0].index] == wanted[shuffled[0].index]
    assert loaded(make(), spans(), ahead=True, seed=6) != wanted


def test_an_epoch_is_every_sample_once_in_an_order_of_its_own(dataset: Dataset) -> None:
    orders = []
    with closing(Loader(ShardSamples(dataset.split("train")), 5, CPU)) as loader:
        for epoch in range(2):
            batching = Batching(40, 16, 4)
            units = [span for step in range(3) for span in batching.units(epoch * 3 + step)]
            orders.append(torch.cat([loader.load(span)["x"] for span in units])[:, 0].tolist())
    stored = numbers(40).fields["x"][:, 0].tolist()
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(stored)
    assert orders[0] != orders[1]
    assert stored not in orders


def test_evaluation_reads_in_stored_order(dataset: Dataset) -> None:
    with closing(Loader(ShardSamples(dataset.split("train")), 5, CPU, shuffle=False)) as loader:
        found = torch.cat([loader.load(span)["x"] for span in Batching(40, 40, 7).units(0)])
    assert torch.equal(found, numbers(40).fields["x"])


def test_augmentation_gives_the_same_weights_at_any_number_of_ranks(group: Group, tmp_path: Path) -> None:
    fields = numbers(40).fields
    np.savez(tmp_path / "rows.npz", x=fields["x"].numpy(), y=fields["y"].numpy())
    build_dataset("npz", [tmp_path / "rows.npz"], tmp_path / "data", split={"train": 1.0})
    shards = Dataset.open(tmp_path / "data").split("train")

    def compute(ranks: Group) -> Any:
        found = []
        for samples in (ShardSamples(shards, noise), MapSamples(Augmented(), noise)):
            with closing(make_run(ranks, built(Regression), samples, Settings(16, 2))) as run:
                found.append(outcome(run, train(run, 4)))
        return found

    assert_same_alone(group, compute)


def test_a_transform_is_given_tensors_and_the_units_own_generator() -> None:
    seen: list[Any] = []

    def transform(batch: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
        seen.append((type(batch["x"]), rng.random()))
        return batch

    for index in (0, 1, 0):
        seed_generators(0, 0, index)
        loaded(MapSamples(Augmented(), transform), spans()[index : index + 1], ahead=False)
    assert seen[0] == seen[2] != seen[1]
    assert seen[0][0] is torch.Tensor


def test_what_a_transform_makes_in_numpy_becomes_tensors_even_backwards() -> None:
    def flipped(batch: Mapping[str, Any], _: np.random.Generator) -> dict[str, Any]:
        return {"x": batch["x"].numpy()[:, ::-1], "n": np.zeros((), np.int64), "names": ["one", "two"]}

    samples = MapSamples([(torch.arange(3.0), 0), (torch.arange(3.0) + 3, 1)], flipped)
    batch = samples.fetch(np.array([1, 0]), np.random.default_rng(0))
    assert batch["x"].tolist() == [[5, 4, 3], [2, 1, 0]]
    assert batch["n"].shape == ()
    assert batch["names"] == ["one", "two"]


def test_a_transform_that_returns_no_batch_is_refused() -> None:
    samples = MapSamples(Augmented(), lambda batch, _: batch["x"])
    with pytest.raises(DataError, match=r"data\.transform returned a Tensor"):
        samples.fetch(np.array([0]), np.random.default_rng(0))


def test_an_error_in_the_prefetch_thread_reaches_the_loop(group: Group) -> None:
    class Torn(Rows):
        def fetch(self, *_: Any) -> dict[str, Any]:
            raise DataError("shard 3 is torn")

    with (
        closing(make_run(group, built(Regression), Torn(**numbers(16).fields), Settings(8, 2))) as run,
        pytest.raises(DataError, match="shard 3 is torn"),
    ):
        train(run, 1)


def test_pairs_become_x_and_y_and_mappings_stay() -> None:
    indices, generator = np.array([2, 0]), np.random.default_rng(0)
    pair = MapSamples(TensorDataset(torch.arange(4), torch.arange(4) * 10)).fetch(indices, generator)
    assert {name: values.tolist() for name, values in pair.items()} == {"x": [2, 0], "y": [20, 0]}
    mapping = MapSamples([{"tokens": torch.tensor([i, i])} for i in range(3)]).fetch(indices, generator)
    assert mapping["tokens"].tolist() == [[2, 2], [0, 0]]


@pytest.mark.parametrize("samples", [TensorDataset(torch.arange(4)), [torch.arange(3)] * 4, [(1, 2, 3)] * 4])
def test_samples_of_other_shapes_are_refused(samples: Any) -> None:
    with pytest.raises(DataError, match="expected a mapping of field names to tensors, or a pair"):
        MapSamples(samples).fetch(np.array([0, 1]), np.random.default_rng(0))


def test_what_is_no_map_style_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="generator is not a map-style dataset"):
        MapSamples(value for value in range(3))


def test_batches_are_aligned_to_cache_lines(dataset: Dataset) -> None:
    """Alignment can change the bits of a product."""
    samples = ShardSamples(dataset.split("train"), lambda batch, _: {**batch, "copied": batch["x"].numpy() * 2})
    batch = samples.fetch(np.arange(7), np.random.default_rng(0))
    assert all(values.data_ptr() % 64 == 0 for values in batch.values())
