"""`hpcvol.start`: from a model, an optimizer and data to a run, in a loop of the user's own."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from training import Regression, built, numbers, sgd

import hpcvol
from hpcvol.errors import ConfigError, DataError, HpcvolError


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(data: object) -> list[float]:
    model = built(Regression)
    losses = []
    with closing(hpcvol.start(model, sgd(model.parameters()), data=data, batch_size=16, device="cpu")) as run:
        assert run.settings.unit_size == 2
        for step in run.steps(6):
            for unit in step:
                step.backward(model(unit["x"], unit["y"]))
            losses.append(step.loss)
    return losses


def test_a_folder_a_split_and_a_torch_dataset_are_the_same_samples(tmp_path: Path) -> None:
    fields = numbers(40).fields
    np.savez(tmp_path / "rows.npz", x=fields["x"].numpy(), y=fields["y"].numpy())
    hpcvol.build_dataset("npz", [tmp_path / "rows.npz"], tmp_path / "data", split={"train": 1.0})
    folder = trained(tmp_path / "data")
    assert folder[-1] < folder[0]
    assert trained(str(tmp_path / "data")) == folder
    assert trained(hpcvol.Dataset.open(tmp_path / "data").split("train")) == folder
    assert trained(torch.utils.data.TensorDataset(fields["x"], fields["y"])) == folder


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"data": "no/such/folder"}, DataError, "no/such/folder"),
        ({"data": []}, ConfigError, "0 samples"),
        ({"data": iter([1])}, DataError, "not a map-style dataset"),
        ({"batch_size": 0}, ConfigError, "batch_size = 0"),
        ({"unit_size": 0}, ConfigError, "unit_size = 0"),
        ({"sum": "exakt"}, ConfigError, "exakt"),
        ({"device": "tpu"}, ConfigError, "tpu"),
        ({"threads": 0}, ConfigError, r"threads = 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused(arguments: dict[str, object], error: type[HpcvolError], said: str) -> None:
    model = built(Regression)
    good: dict[str, object] = {"data": [(torch.zeros(6), torch.zeros(1))] * 4, "batch_size": 4, "device": "cpu"}
    with pytest.raises(error, match=said):
        hpcvol.start(model, sgd(model.parameters()), **{**good, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "needs"), [("LBFGS", "a closure"), ("SparseAdam", "sparse gradients")])
def test_optimizers_that_a_step_cannot_drive_are_refused(kind: str, needs: str) -> None:
    model = built(Regression)
    optimizer = getattr(torch.optim, kind)(model.parameters())
    with pytest.raises(ConfigError, match=f"the optimizer is {kind}, which needs {needs}"):
        hpcvol.start(model, optimizer, data=torch.utils.data.TensorDataset(torch.zeros(4)), batch_size=2, device="cpu")
