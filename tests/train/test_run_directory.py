"""The run's folder: new, a run's, or something else that must not be touched."""

import os
from pathlib import Path

import pytest
from digits_project import Project

from hpcvol.comm import Group
from hpcvol.errors import ConfigError, HpcvolError
from hpcvol.train import run_directory


def test_a_file_is_refused(group: Group, shared_project: Project) -> None:
    path = shared_project.folder / "run"
    if group.rank == 0:
        path.write_text("precious")
    group.barrier()
    with pytest.raises(ConfigError, match=r"--run-dir .*run is a file: expected a folder") as caught:
        shared_project.train("run", group=group)
    assert caught.value.everywhere
    assert path.read_text() == "precious"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_something_else_is_refused_and_left_alone(project: Project, fresh: bool) -> None:
    path = project.folder / "thesis"
    path.mkdir()
    (path / "chapter").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds files and no config\.toml, so it is not a run"):
        project.train("thesis", fresh=fresh)
    assert [file.name for file in path.iterdir()] == ["chapter"]


def test_an_empty_folder_and_hidden_files_are_fine(project: Project) -> None:
    path = project.folder / "run"
    path.mkdir()
    (path / ".config.toml.123").write_text("left behind by a kill while it was written")
    assert project.train("run")
    assert (path / "config.toml").exists()


def test_a_folder_that_cannot_be_made_is_one_error(group: Group, shared_project: Project) -> None:
    with pytest.raises(HpcvolError) as caught:
        shared_project.train("job.toml/run", group=group)  # below a file: not even root can
    assert caught.value.everywhere
    assert "job.toml/run: Not a directory; make room or choose another --run-dir" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_error(project: Project) -> None:
    (project.folder / "locked").mkdir(mode=0o500)
    with pytest.raises(HpcvolError, match=r"cannot write .*locked/run: Permission denied"):
        project.train("locked/run")


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_a_kill_while_starting_over_leaves_a_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, deleted: int
) -> None:
    """Whatever --fresh had deleted when it was killed, the same command works again."""
    assert project.train("run")
    unlink, struck = Path.unlink, []

    class Killed(BaseException):
        pass

    def dying(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "run":
            struck.append(path.name)
            if len(struck) > deleted:
                raise Killed
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dying)
        with pytest.raises(Killed):
            run_directory.open_run_directory(project.folder / "run", project.config(), fresh=True)
    assert struck == ["summary.json", "metrics.jsonl", "config.toml"][: deleted + 1]
    assert project.train("run", fresh=True)
    assert project.summary("run")["completed"]
