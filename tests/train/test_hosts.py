"""Training on hosts that share nothing: ranks of one machine play them, each with a project and a run of its own."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from digits_project import Project, first_ranks, make_project, what_decides, without_rates
from two_hosts import as_hosts

from hpcvol.comm import Group
from hpcvol.errors import CheckpointError, ConfigError
from hpcvol.train.config import load_config
from hpcvol.train.project import MAX_NBYTES, load_project
from hpcvol.train.run_copies import RunCopies
from hpcvol.train.trainer import Trainer

COPIES = ("checkpoint.copies=2", "checkpoint.every_steps=2", "train.validate_every_steps=3")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcvol.comm.sharing._PATIENCE_SECONDS", 0.05)


@pytest.fixture
def hosts(group: Group) -> Iterator[Group]:
    """Every rank on a host of its own."""
    with as_hosts(group, range(group.size)) as made:
        yield made


def own(project: Project, host: int) -> Project:
    """Return the project as it is on a host."""
    return Project(project.folder / f"host{host}")


@pytest.fixture
def projects(group: Group, shared_path: Path, request: pytest.FixtureRequest) -> Project:
    """A folder with a project for each host."""
    data = request.getfixturevalue("digits_data") if group.rank == 0 else None
    if data is not None:
        for host in range(group.size):
            make_project(shared_path / f"host{host}", data)
    group.barrier()
    return Project(shared_path)


def kept(project: Project, run: str) -> list[int]:
    return project.steps(run) if (project.folder / run).exists() else []


def alone(projects: Project, group: Group, *overrides: str) -> dict[str, object]:
    """Return what one member makes of the same run."""
    with first_ranks(group, 1) as one:
        if one is not None:
            assert own(projects, 0).train("alone", *overrides, group=one)
    return what_decides(own(projects, 0).summary("alone"))


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_by_default_the_first_host_keeps_the_run(
    hosts: Group, projects: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own(projects, hosts.rank).train("run", group=hosts)
    hosts.barrier()
    assert [(projects.folder / f"host{host}" / "run").exists() for host in range(3)] == [True, False, False]
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("hosts do not share")]
    assert len(lines) == (1 if hosts.rank == 0 else 0)
    for line in lines:
        assert "the run directory (kept on host0; checkpoint.copies = 2 would keep a copy on a second host)" in line
        assert f"the project {projects.folder}/host0 (the same files on each)" in line
        assert "the data" not in line  # one folder for all


def test_on_one_node_nothing_is_said(group: Group, shared_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert shared_project.train("run", "checkpoint.copies=2", group=group)
    assert "hosts do not share" not in capsys.readouterr().out


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_a_second_host_keeps_the_same_run(group: Group, hosts: Group, projects: Project) -> None:
    mine = own(projects, group.rank)
    assert mine.train("run", *COPIES, group=hosts)
    group.barrier()
    runs = [own(projects, host) for host in range(3)]
    assert [kept(run, "run") for run in runs] == [[4, 6], [4, 6], []]
    one, other = runs[0].folder / "run", runs[1].folder / "run"
    names = {str(path.relative_to(one)) for path in one.rglob("*")}
    assert names == {str(path.relative_to(other)) for path in other.rglob("*")}
    for name in ("model.safetensors", "optimizer.pt"):
        checkpoint = Path("checkpoints") / "step-00000006" / name
        assert (one / checkpoint).read_bytes() == (other / checkpoint).read_bytes()
    assert without_rates(runs[0].metrics("run")) == without_rates(runs[1].metrics("run"))
    assert (one / "ledger.jsonl").read_bytes() == (other / "ledger.jsonl").read_bytes()
    assert what_decides(runs[0].summary("run")) == what_decides(runs[1].summary("run"))
    assert what_decides(runs[0].summary("run")) == alone(projects, group, *COPIES)


@pytest.mark.parametrize("lost", ["run", "newest", "newest is torn"])
@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_the_run_goes_on_from_the_copy_when_the_first_host_has_lost_its_own(
    group: Group, hosts: Group, projects: Project, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    mine = own(projects, group.rank)
    assert mine.train("run", *COPIES, "train.steps=4", group=hosts)
    group.barrier()
    if group.rank == 0:
        path = mine.checkpoint("run", 4)
        if lost == "run":
            shutil.rmtree(mine.folder / "run")
        elif lost == "newest":
            shutil.rmtree(path)
        else:
            (path / "optimizer.pt").write_bytes(b"")
    group.barrier()
    assert mine.train("run", *COPIES, group=hosts)
    group.barrier()
    expected = alone(projects, group, *COPIES)
    for host in (0, 1):
        run = own(projects, host)
        assert what_decides(run.summary("run")) == expected
        assert [line["step"] for line in run.metrics("run")] == [1, 2, 3, 3, 4, 4, 5, 6, 6]
        assert 6 in run.steps("run")
    assert kept(own(projects, 2), "run") == []
    assert ("step-00000004/optimizer.pt has 0 bytes" in caplog.text) == (lost == "newest is torn" and group.rank == 0)


@pytest.mark.parametrize("left", [{0}, {0, 1}, {2}], ids=["the first", "all of the first host", "the copy"])
@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_the_run_directory_is_kept_on_while_anybody_sees_it(group: Group, projects: Project, left: set[int]) -> None:
    host = group.rank // 2
    mine = own(projects, host)
    with as_hosts(group, [0, 0, 1]) as hosts:
        copies = RunCopies(hosts, mine.folder / "run", load_config(mine.job, COPIES), fresh=False)
        copies.open()
        try:
            assert copies.keepers == [0, 2]
            copies.begin()
            if group.rank in left:
                copies.hand_over()
                copies.sees = False
            copies.renew()
            assert copies.keepers == [rank for rank in ([1, 2] if 0 in left else [0]) if rank not in left]
            assert copies.keeps == (group.rank in copies.keepers) == (copies.mine is not None)
        finally:
            copies.release()


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_hosts_change_places(group: Group, hosts: Group, projects: Project) -> None:
    """The first member of the next job is on a new host; the copy is on one that keeps nothing any more."""
    mine = own(projects, group.rank)
    assert mine.train("run", *COPIES, "train.steps=3", group=hosts)
    group.barrier()
    turned = group.split(0, key=(group.rank + 1) % 3)  # ranks 2, 0, 1
    with as_hosts(turned, range(3)) as others:
        assert mine.train("run", COPIES[2], group=others)
    turned.close()
    group.barrier()
    assert [kept(own(projects, host), "run") for host in range(3)] == [[2, 3], [2, 3], [6]]
    third = own(projects, 2)
    assert what_decides(third.summary("run")) == alone(projects, group, COPIES[2])
    assert [line["step"] for line in third.metrics("run")] == [1, 2, 3, 3, 4, 5, 6, 6]


@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_no_host_has_a_whole_one(group: Group, hosts: Group, projects: Project) -> None:
    mine = own(projects, group.rank)
    assert mine.train("run", *COPIES, "train.steps=2", group=hosts)
    group.barrier()
    if group.rank < 2:
        (mine.checkpoint("run", 2) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="whole and of this run: step-00000002") as caught:
        mine.train("run", *COPIES, group=hosts)
    assert caught.value.everywhere


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_another_configuration_on_the_second_host_is_refused(group: Group, hosts: Group, projects: Project) -> None:
    mine = own(projects, group.rank)
    with first_ranks(group, 1) as first:
        if first is not None:
            assert own(projects, 1).train("run", "train.seed=3", group=first)
    with pytest.raises(ConfigError, match=r"member 1 \(host1\)(.|\n)*train\.seed: 3 -> 0") as caught:
        mine.train("run", group=hosts)
    assert caught.value.everywhere
    assert mine.train("run", fresh=True, group=hosts)
    group.barrier()
    assert kept(own(projects, 0), "run") == [6]
    assert kept(own(projects, 1), "run") == []  # given up, so that no later start goes on from it


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_a_full_disk_on_the_second_host_is_one_error(
    group: Group, hosts: Group, projects: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = own(projects, group.rank)
    struck = []

    def full(*_: object) -> None:
        struck.append(group.rank)
        raise OSError(28, "No space left on device")

    if group.rank == 1:
        monkeypatch.setattr("hpcvol.train.checkpoint._write_parts", full)
    with pytest.raises(CheckpointError, match=r"member 1 \(host1\), writing a checkpoint: .*No space left") as caught:
        mine.train("run", *COPIES, group=hosts)
    assert caught.value.everywhere
    assert struck == ([1] if group.rank == 1 else [])


@pytest.mark.parametrize("owner", [0, 1])
@pytest.mark.parametrize("group", [3], indirect=True, ids=["3ranks"])
def test_configuration_and_python_files_come_from_who_has_them(
    group: Group, hosts: Group, projects: Project, owner: int
) -> None:
    mine = own(projects, owner)  # the same path everywhere; all but the owner lack it
    hidden = mine.folder.with_name("nowhere") / "job.toml"
    if group.rank == owner:
        mine.write("inner.py", "WIDTH = 12\n")
        mine.write(
            "model.py", "import digits\nfrom inner import WIDTH\ndef build(): return digits.Digits(WIDTH, 0.1)\n"
        )
        mine.write("augment.py", "def same(batch, rng): return batch\n")
    group.barrier()
    overrides = ("model.build=model.py:build", "model.args={}", "data.transform=augment.py:same")
    path = mine.job if group.rank == owner else hidden
    run_dir = projects.folder / f"run{group.rank}"
    with load_project(hosts, path, overrides) as config:
        assert config.folder == mine.folder
        assert config.model.build == f"{mine.folder}/model.py:build"
        here = Path(config.here().model.build.rpartition(":")[0]).parent
        assert (here == mine.folder) == (group.rank == owner)
        assert {file.name for file in here.glob("*.py")} == {"digits.py", "model.py", "inner.py", "augment.py"}
        assert Trainer(config, run_dir, group=hosts).fit()
        if group.rank == 0:
            resumed = (projects.folder / "run0" / "config.toml").read_text()
            assert str(here) not in resumed or owner == 0
        group.barrier()
    assert here.exists() == (group.rank == owner)
    group.barrier()
    with first_ranks(group, 1) as one:
        if one is not None:
            assert mine.train("alone", *overrides, group=one)
            summary = json.loads((projects.folder / "run0" / "summary.json").read_text())
            assert what_decides(summary) == what_decides(mine.summary("alone"))


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_a_configuration_that_nobody_has(hosts: Group, shared_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"no configuration file .*nothing\.toml") as caught,
        load_project(hosts, shared_path / "nothing.toml", ()),
    ):
        pass
    assert caught.value.everywhere


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_too_much_beside_the_configuration(group: Group, hosts: Group, projects: Project) -> None:
    mine = own(projects, group.rank)
    if group.rank == 0:
        (mine.folder / ".venv").mkdir()
        (mine.folder / ".venv" / "large.py").write_bytes(bytes(MAX_NBYTES))  # not counted
    else:
        mine.job.unlink()
    with load_project(hosts, mine.job, ()) as config:
        assert config.folder == own(projects, 0).folder
    if group.rank == 0:
        (mine.folder / "large.py").write_bytes(bytes(MAX_NBYTES))
    with (
        pytest.raises(ConfigError, match=r"take more than 16 MiB: keep job\.toml in a folder of its own") as caught,
        load_project(hosts, mine.job, ()),
    ):
        pass
    assert caught.value.everywhere


@pytest.mark.parametrize("group", [2], indirect=True, ids=["2ranks"])
def test_weights_come_from_who_has_them(group: Group, hosts: Group, projects: Project) -> None:
    mine = own(projects, group.rank)
    with first_ranks(group, 1) as one:
        if one is not None:
            assert own(projects, 1).train("first", group=one)
    if group.rank == 1:
        shutil.copy(mine.checkpoint("first", 6) / "model.safetensors", mine.folder)
    group.barrier()
    still = ("model.weights=model.safetensors", "optimizer.args.lr=1e-30", "train.steps=1")
    assert mine.train("second", *still, group=hosts)
    group.barrier()
    assert own(projects, 0).summary("second")["weights_sha256"] == own(projects, 1).summary("first")["weights_sha256"]
