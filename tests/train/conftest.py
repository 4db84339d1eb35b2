"""Projects to train: one for tests of one process, one that the ranks of a group share."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from digits_project import EXAMPLES, Project, make_project

from hpcvol.comm import Group
from hpcvol.data import build_dataset


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the example digits."""
    path = tmp_path_factory.mktemp("digits") / "data"
    split = {"train": 0.7, "val": 0.1, "test": 0.2}
    build_dataset("python", [f"{EXAMPLES / 'digits.py'}:samples"], path, split=split, options={})
    return path


@pytest.fixture
def project(tmp_path: Path, digits_data: Path) -> Project:
    """A project for a test of one process."""
    return make_project(tmp_path / "project", digits_data)


@pytest.fixture
def shared_project(group: Group, shared_path: Path, request: pytest.FixtureRequest) -> Project:
    """A project that all ranks of the group share."""
    if group.rank == 0:
        make_project(shared_path / "project", request.getfixturevalue("digits_data"))
    group.barrier()
    return Project(shared_path / "project")


@pytest.fixture(autouse=True)
def _no_handler_left() -> Iterator[None]:
    """A Trainer gives its logger a handler, which would outlive the test's captured output."""
    yield
    logging.getLogger("hpcvol").handlers.clear()
