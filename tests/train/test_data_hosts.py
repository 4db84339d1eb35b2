"""Data that some hosts do not have, and caches of their own: ranks of one machine play the hosts."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from digits_project import Project, first_ranks, what_decides
from two_hosts import as_hosts

from hpcvol.comm import Group
from hpcvol.data import build_dataset
from hpcvol.errors import ConfigError, DataError, HpcvolError

CACHE = "data.cache=$HPCVOL_TEST_SCRATCH/cache"


@pytest.fixture
def hosts(group: Group) -> Iterator[Group]:
    """Every rank on a host of its own."""
    with as_hosts(group, range(group.size)) as made:
        yield made


@pytest.fixture
def small_shards(tmp_path_factory: pytest.TempPathFactory, digits_data: Path) -> Path:
    """The digits in several shards a split."""
    from digits_project import EXAMPLES

    del digits_data
    path = tmp_path_factory.mktemp("shards") / "data"
    return build_dataset(
        "python",
        [f"{EXAMPLES / 'digits.py'}:samples"],
        path,
        split="train=.7,val=.3",
        options={"shard_nbytes": 120_000},
    )


@pytest.fixture
def project(group: Group, shared_project: Project, request: pytest.FixtureRequest) -> Project:
    """A project whose data the first host has, and the others have not."""
    if group.rank == 0:
        shutil.copytree(request.getfixturevalue("small_shards"), shared_project.folder / "host0")
    group.barrier()
    return shared_project


@pytest.fixture
def data(group: Group, project: Project, monkeypatch: pytest.MonkeyPatch) -> str:
    """The override that names this host's data; the variable names its own disk."""
    scratch = project.folder / f"scratch{group.rank}"
    scratch.mkdir()
    monkeypatch.setenv("HPCVOL_TEST_SCRATCH", str(scratch))
    monkeypatch.setattr("hpcvol.comm.sharing._PATIENCE_SECONDS", 0.05)
    return f"data.path={project.folder}/host{group.rank}"


def alone(project: Project, group: Group, data: str, *overrides: str) -> dict[str, object]:
    with first_ranks(group, 1) as one:
        if one is not None:
            assert project.train("alone", data, *overrides, group=one)
    return what_decides(project.summary("alone"))


def copies(project: Project, host: int) -> list[Path]:
    return sorted((project.folder / f"scratch{host}" / "cache").glob("*.h5"))


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_hosts_without_the_data_are_given_it(
    group: Group, hosts: Group, project: Project, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = len(list((project.folder / "host0").glob("*.h5")))
    assert shards > 3
    assert project.train("run", data, CACHE, group=hosts)
    group.barrier()
    said = capsys.readouterr().out
    if group.rank == 0:
        assert f"{shards} shards were passed to hosts that lack them" in said
        assert [len(copies(project, host)) for host in (1, 2)] == [shards, shards]
    assert what_decides(project.summary("run")) == alone(project, group, data)
    # The next run finds them there.
    assert project.train("again", data, CACHE, group=hosts)
    assert "were passed" not in capsys.readouterr().out
    group.barrier()


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_a_single_missing_shard_is_passed(
    group: Group, hosts: Group, project: Project, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if group.rank == 1:
        shutil.copytree(project.folder / "host0", project.folder / "host1")
        sorted((project.folder / "host1").glob("train-*.h5"))[1].unlink()
    group.barrier()
    assert project.train("run", data, CACHE, group=hosts)
    if group.rank == 0:
        assert "1 shards were passed" in capsys.readouterr().out
    assert what_decides(project.summary("run")) == alone(project, group, data)


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_without_a_cache_or_room_or_an_owner_it_is_refused(
    group: Group, hosts: Group, project: Project, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"host1.*there is no such folder"):
        project.train("run", data, group=hosts)
    with monkeypatch.context() as patch:
        patch.setattr("hpcvol.train.shard_passing.free_nbytes", lambda _: 1000)
        with pytest.raises(DataError, match=r"This host lacks .* and data\.cache = .*has room for"):
            project.train("run", data, CACHE, group=hosts)
    if group.rank == 0:
        next((project.folder / "host0").glob("train-*.h5")).unlink()
    group.barrier()
    with pytest.raises(HpcvolError, match="missing on every host"):
        project.train("run", data, CACHE, group=hosts)


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
@pytest.mark.usefixtures("data")
def test_a_window_changes_the_order_and_not_the_sameness(group: Group, project: Project) -> None:
    shared = f"data.path={project.folder}/host0"
    window = (shared, CACHE, "data.window=2", "train.epochs=2", "train.batch_size=200")
    assert project.train("two", *window, group=group)
    assert what_decides(project.summary("two")) == alone(project, group, *window)
    plain = ("train.epochs=2", "train.batch_size=200")
    assert project.train("shuffled", shared, *plain, group=group)
    assert project.summary("shuffled")["weights_sha256"] != project.summary("two")["weights_sha256"]
    with pytest.raises(ConfigError, match=r"data\.window"):
        project.train("two", shared, CACHE, "data.window=3", "train.epochs=2", "train.batch_size=200", group=group)


@pytest.mark.parametrize("group", [1], indirect=True, ids=["1rank"])
def test_a_variable_that_is_not_set_is_named(group: Group, project: Project, data: str) -> None:
    with pytest.raises(ConfigError, match=r"\$HPCVOL_NO_SUCH.* names a variable that is not set"):
        project.train("run", data, "data.cache=$HPCVOL_NO_SUCH/x", group=group)
