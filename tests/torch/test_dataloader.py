"""hpcvol datasets under a stock DataLoader: every sample exactly once, whatever the workers and how they start."""

import contextlib
import gc
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, default_collate

from hpcvol.data import build_dataset
from hpcvol.errors import ConfigError, DataError
from hpcvol.torch.dataloader import IterableDataset, MapDataset

ROWS = 203
BATCH = 16
pytestmark = [
    pytest.mark.any_mpi,
    # Three workers on two cores: torch advises against it.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]
WORKERS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Row i is five times i, with label i; in several shards."""
    folder = tmp_path_factory.mktemp("rows")
    rows = np.arange(ROWS)
    np.savez(folder / "a.npz", x=np.repeat(rows, 5).reshape(ROWS, 5).astype("f4"), y=rows)
    return build_dataset("npz", [folder / "a.npz"], folder / "out", split="train=1", options={"shard_nbytes": 2000})


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Row i holds i % 7 times the number i."""
    folder = tmp_path_factory.mktemp("ragged")
    (folder / "rows.py").write_text(
        "import numpy as np\ndef rows():\n    return [{'x': np.full(i % 7, i, np.int64)} for i in range(50)]\n"
    )
    return build_dataset("python", [f"{folder / 'rows.py'}:rows"], folder / "out", split="train=1")


def loader(dataset: Any, workers: int, start: str = "fork", **settings: Any) -> DataLoader[Any]:
    context = {"multiprocessing_context": start} if workers else {}
    return DataLoader(dataset, num_workers=workers, timeout=60 if workers else 0, **context, **settings)


def labels(batches: Iterable[dict[str, torch.Tensor]]) -> list[list[int]]:
    """Return the label of every sample by batch, after a look at what belongs to it."""
    found = []
    for batch in batches:
        assert set(batch) == {"x", "y"}
        assert batch["x"].dtype == torch.float32
        assert torch.equal(batch["x"], batch["y"].float()[:, None].expand(-1, 5))
        found.append(batch["y"].tolist())
    return found


def flat(batches: list[list[int]]) -> list[int]:
    return [label for batch in batches for label in batch]


@pytest.mark.parametrize("workers", WORKERS)
def test_map_style_gives_every_sample_once(data: Path, workers: int) -> None:
    settings = {"batch_size": BATCH, "shuffle": True, "generator": torch.Generator().manual_seed(1)}
    batches = labels(loader(MapDataset(data), workers, **settings))
    assert sorted(flat(batches)) == list(range(ROWS))
    assert flat(batches) != list(range(ROWS))
    assert [len(batch) for batch in batches] == [BATCH] * 12 + [ROWS - 12 * BATCH]


@pytest.mark.parametrize("workers", WORKERS)
def test_iterable_gives_every_sample_once_in_one_order(data: Path, workers: int) -> None:
    dataset = IterableDataset(data, batch_size=BATCH, seed=3)
    expected = labels(dataset)
    assert sorted(flat(expected)) == list(range(ROWS))
    batches = loader(dataset, workers, batch_size=None)
    assert len(batches) == 13
    assert labels(batches) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_drop_last(data: Path, workers: int) -> None:
    by_map = labels(loader(MapDataset(data), workers, batch_size=BATCH, drop_last=True))
    assert flat(by_map) == list(range(12 * BATCH))
    by_iterable = labels(loader(IterableDataset(data, batch_size=BATCH, drop_last=True), workers, batch_size=None))
    assert [len(batch) for batch in by_iterable] == [BATCH] * 12
    assert len(set(flat(by_iterable))) == 12 * BATCH


def test_workers_that_are_spawned(data: Path) -> None:
    by_map = labels(loader(MapDataset(data), 2, "spawn", batch_size=BATCH))
    assert flat(by_map) == list(range(ROWS))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_persistent_workers_see_the_epoch(data: Path, start: str) -> None:
    dataset = IterableDataset(data, batch_size=BATCH, seed=5)
    batches = loader(dataset, 2, start, batch_size=None, persistent_workers=True)
    orders = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        orders.append(labels(batches))
        assert orders[-1] == labels(dataset)
        assert sorted(flat(orders[-1])) == list(range(ROWS))
    assert orders[0] != orders[1] != orders[2]


def test_an_epoch_that_is_left_early_costs_the_next_nothing(data: Path) -> None:
    dataset = IterableDataset(data, batch_size=4)
    batches = loader(dataset, 2, batch_size=None, persistent_workers=True)
    for _ in range(3):
        next(iter(batches))
    assert labels(batches) == labels(dataset)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_readers_share_out_the_samples(data: Path, workers: int, drop_last: bool) -> None:
    parts = [
        labels(
            loader(IterableDataset(data, batch_size=BATCH, drop_last=drop_last, part=(k, 3)), workers, batch_size=None)
        )
        for k in range(3)
    ]
    together = [label for part in parts for label in flat(part)]
    assert len(together) == len(set(together))
    if drop_last:
        assert [len(part) for part in parts] == [4, 4, 4]
    else:
        assert sorted(together) == list(range(ROWS))
    # The batches of all readers in turn are those of one.
    whole = labels(IterableDataset(data, batch_size=BATCH))
    assert [parts[k % 3][k // 3] for k in range(sum(map(len, parts)))] == whole[: sum(map(len, parts))]


def test_unshuffled(data: Path) -> None:
    assert flat(labels(IterableDataset(data, batch_size=BATCH, shuffle=False))) == list(range(ROWS))


def test_batches_that_are_kept_stay_as_they_were(data: Path) -> None:
    kept = list(loader(MapDataset(data), 2, batch_size=4, persistent_workers=True))
    views = [batch["x"][1:3] for batch in kept]
    assert flat(labels(kept)) == list(range(ROWS))
    del kept
    for number, view in enumerate(views[:-1]):  # a view keeps its memory alone
        assert view[:, 0].tolist() == [4 * number + 1, 4 * number + 2]


def test_memory_is_used_again(data: Path) -> None:
    batches = loader(MapDataset(data), 1, batch_size=4, persistent_workers=True)
    counts = []
    for _ in range(4):
        iterator = iter(batches)
        for batch in iterator:
            del batch
        gc.collect()
        (worker,) = iterator._workers
        files = [one.path for one in os.scandir(f"/proc/{worker.pid}/fd") if "hpcvol-batch" in os.readlink(one.path)]
        counts.append(len(files))
    assert counts[0] > 0
    assert counts[-1] - counts[0] < 51  # the batches of an epoch, of which each has two fields


def stacked(samples: Any) -> dict[str, torch.Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def rows_of_the_batch(samples: Any) -> list[torch.Tensor]:
    return [sample["x"] for sample in samples]  # views of one tensor


def changed(samples: Any) -> Any:
    batch = default_collate(samples)
    return {**batch, "x": batch["x"][1:], "y": batch["y"] + 1}


def extended(samples: Any) -> Any:
    batch = default_collate(samples)
    batch["twice"] = batch["x"] * 2
    batch["again"] = batch["x"]
    return batch


def only_a_number(samples: Any) -> int:
    return int(default_collate(samples)["y"][0])


def other_tensors(batch: dict[str, Any], _rng: np.random.Generator) -> dict[str, Any]:
    rows = batch["x"]
    return {"t": rows.t(), "grad": (rows + 1).requires_grad_(), "sparse": rows.to_sparse(), "none": rows[:0], "n": 3}


def descriptors(process: int) -> int:
    gc.collect()
    return len(os.listdir(f"/proc/{process}/fd"))


CASES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "default": (MapDataset, {"batch_size": 4}),
    "collate_fn": (MapDataset, {"batch_size": 4, "collate_fn": stacked}),
    "collate_fn that returns views": (MapDataset, {"batch_size": 4, "collate_fn": rows_of_the_batch}),
    "collate_fn that changes the batch": (MapDataset, {"batch_size": 4, "collate_fn": changed}),
    "collate_fn that adds to the batch": (MapDataset, {"batch_size": 4, "collate_fn": extended}),
    "collate_fn that drops the batch": (MapDataset, {"batch_size": 4, "collate_fn": only_a_number}),
    "ConcatDataset": (lambda data: ConcatDataset([MapDataset(data)]), {"batch_size": 4}),
    "Subset": (lambda data: Subset(MapDataset(data), range(ROWS)), {"batch_size": 4, "collate_fn": stacked}),
    "single samples": (MapDataset, {"batch_size": None}),
    "transform": (lambda data: MapDataset(data, transform=noisy), {"batch_size": 4}),
    "transform to other tensors": (
        lambda data: IterableDataset(data, batch_size=2, transform=other_tensors),
        {"batch_size": None},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_no_batch_costs_a_worker_memory_for_good(data: Path, case: str) -> None:
    dataset, settings = CASES[case]
    twice = {} if "other tensors" in case else {"sampler": list(range(ROWS)) * 2}
    here = descriptors(os.getpid())
    iterator = iter(loader(dataset(data), 1, **twice, **settings))
    counts = []
    for number, batch in enumerate(iterator):
        del batch
        if number in (20, 100):
            counts.append(descriptors(iterator._workers[0].pid))
    early, late = counts
    assert late - early < 16, counts  # what is on its way differs from moment to moment
    del iterator
    assert descriptors(os.getpid()) - here < 4


def test_a_collate_fn_gets_a_batch_it_can_change(data: Path) -> None:
    for workers in (0, 1):
        batches = list(loader(MapDataset(data), workers, batch_size=4, collate_fn=extended))
        for number, batch in enumerate(batches[:-1]):
            del batch["again"]  # its memory is that of x where no worker is between
            assert batch["x"][:, 0].tolist() == list(range(4 * number, 4 * number + 4))
            assert torch.equal(batch["twice"], batch["x"] * 2)
        assert set(batches[-1]) == {"x", "y", "twice", "again"}


def test_tensors_of_every_kind_arrive(data: Path) -> None:
    here, there = (
        next(iter(loader(IterableDataset(data, batch_size=4, transform=other_tensors), workers, batch_size=None)))
        for workers in (0, 1)
    )
    assert torch.equal(here["t"], there["t"])
    assert torch.equal(here["grad"], there["grad"])
    assert there["grad"].requires_grad
    assert torch.equal(here["sparse"].to_dense(), there["sparse"].to_dense())
    assert there["none"].shape == (0, 5)
    assert there["n"] == 3


def test_a_worker_keeps_what_it_still_refers_to(data: Path) -> None:
    """A collate_fn that remembers a batch finds it as it was, though the training process is done with it."""
    remembered: list[torch.Tensor] = []

    def remember(samples: Any) -> Any:
        batch = default_collate(samples)
        remembered.append(batch["x"])
        batch["first"] = [tensor[0, 0].item() for tensor in remembered]
        return batch

    for batch in loader(MapDataset(data), 1, batch_size=4, collate_fn=remember):
        last = batch["first"]
        del batch
    assert last == [float(4 * number) for number in range(51)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterator_that_is_dropped_leaves_nothing(data: Path, workers: int) -> None:
    before = descriptors(os.getpid())
    for _ in range(3):
        iterator = iter(loader(MapDataset(data), workers, batch_size=4, prefetch_factor=8 if workers else None))
        kept = [next(iterator) for _ in range(10)]
        del iterator
        assert flat(labels(kept)) == list(range(40))
        del kept
    assert descriptors(os.getpid()) - before < 4


def test_a_worker_that_dies_leaves_nothing(data: Path) -> None:
    before = descriptors(os.getpid())
    for _ in range(3):
        iterator = iter(loader(MapDataset(data), 1, batch_size=4, prefetch_factor=8))
        kept = [next(iterator) for _ in range(10)]
        (worker,) = iterator._workers
        # Idle: torch waits for ever for one that is killed as it looks whether all is done.
        wait_until(lambda loading=iterator: loading._worker_result_queue.qsize() == 8)
        with contextlib.suppress(RuntimeError):  # of torch's handler of SIGCHLD, where that comes before the join
            os.kill(worker.pid, signal.SIGKILL)
            worker.join(60)
        assert worker.exitcode == -signal.SIGKILL
        assert flat(labels(kept)) == list(range(40))
        del iterator, worker, kept
    assert descriptors(os.getpid()) - before < 4


def wait_until(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it has not come about in time"
        time.sleep(0.01)


def test_nothing_in_shared_memory_has_a_name(data: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    for _ in loader(MapDataset(data), 2, batch_size=BATCH):
        assert {name for name in set(os.listdir("/dev/shm")) - before if "hpcvol" in name or "torch" in name} == set()


@pytest.mark.parametrize("workers", [0, 2])
def test_ragged_fields(ragged: Path, workers: int) -> None:
    seen = 0
    for batch in loader(MapDataset(ragged), workers, batch_size=8):
        for row, length in zip(batch["x"], batch["x_length"].tolist(), strict=True):
            assert length == seen % 7
            assert row.tolist() == [seen] * length + [0] * (batch["x"].shape[1] - length)
            seen += 1
    assert seen == 50


def noisy(batch: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"x": batch["x"] + torch.from_numpy(rng.normal(size=batch["x"].shape)), "name": [str(i) for i in batch["y"]]}


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_transform_is_a_function_of_the_batch(data: Path, start: str) -> None:
    dataset = IterableDataset(data, batch_size=BATCH, seed=2, transform=noisy)
    expected = list(dataset)
    found = list(loader(dataset, 2, start, batch_size=None))
    assert len(found) == len(expected) == 13
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["x"], other["x"])
        assert one["name"] == other["name"]


def test_a_transform_of_map_style_draws_from_torchs_generator(data: Path) -> None:
    def once(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [batch["x"] for batch in loader(MapDataset(data, transform=noisy), 2, batch_size=BATCH)]

    assert torch.equal(torch.cat(once(1)), torch.cat(once(1)))
    assert not torch.equal(torch.cat(once(1)), torch.cat(once(2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_subsets_and_other_collating(data: Path, workers: int) -> None:
    subset = Subset(MapDataset(data), range(0, ROWS, 2))
    assert flat(labels(loader(subset, workers, batch_size=BATCH))) == list(range(0, ROWS, 2))
    batches = loader(
        MapDataset(data), workers, batch_size=50, collate_fn=lambda samples: [int(s["y"]) for s in samples]
    )
    assert flat(list(batches)) == list(range(ROWS))


def test_single_samples(data: Path) -> None:
    dataset = MapDataset(data)
    assert len(dataset) == ROWS
    assert dataset[7]["x"].tolist() == [7] * 5
    assert labels([torch.utils.data.default_collate([dataset[i] for i in (3, 5)])]) == [[3, 5]]
    assert [int(sample["y"]) for sample in dataset.__getitems__([4, 2])[::-1]] == [2, 4]


def test_they_pickle_small_and_open_again(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(data.parent)
    dataset = MapDataset(data.name)
    dataset[0]
    text = pickle.dumps(dataset)
    assert len(text) < 1000
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(text)[3]["y"] == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_is_raised(data: Path, workers: int) -> None:
    sampler = [[0, 1], [2, ROWS]]
    with pytest.raises(DataError, match=f"Sample {ROWS} was asked for"):
        list(loader(MapDataset(data), workers, batch_sampler=sampler))


@pytest.mark.parametrize("part", [(1, 1), (-1, 2), (0, 0)])
def test_parts_that_cannot_be(data: Path, part: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="expected \\(index, count\\)"):
        IterableDataset(data, batch_size=4, part=part)


def test_a_batch_of_nothing_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size = 0"):
        IterableDataset(data, batch_size=0)
