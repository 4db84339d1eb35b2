"""The run's folder: new, a run's, or something else that must not be touched."""

import fcntl
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from digits_project import Project

from hpcvol.comm import Group
from hpcvol.errors import ConfigError, HpcvolError, MemberError


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
@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "ledger.jsonl", "checkpoints", "summary.json"])
def test_a_folder_that_holds_what_a_run_would_overwrite_is_refused_and_left_alone(
    project: Project, name: str, fresh: bool
) -> None:
    path = project.folder / "thesis"
    path.mkdir()
    (path / name).write_text("precious")
    with pytest.raises(ConfigError, match=rf"holds {re.escape(name)} and is not a run of hpcvol"):
        project.train("thesis", fresh=fresh)
    assert [(file.name, file.read_text()) for file in path.iterdir()] == [(name, "precious")]


def test_other_files_such_as_a_job_s_log_are_left_alone(project: Project) -> None:
    path = project.folder / "run"
    path.mkdir()
    (path / "slurm-7.out").write_text("precious")
    assert project.train("run")
    assert project.train("run", fresh=True)
    assert (path / "slurm-7.out").read_text() == "precious"


@pytest.mark.parametrize("linked", [False, True])
def test_starting_over_deletes_the_run_and_nothing_else(project: Project, tmp_path: Path, linked: bool) -> None:
    checkpoints = project.folder / "run" / "checkpoints"
    if linked:  # to another disk, as on clusters
        checkpoints.parent.mkdir()
        (tmp_path / "scratch").mkdir()
        checkpoints.symlink_to(tmp_path / "scratch")
        # The folder is not a run yet, and this name in it is one that a run has.
        with pytest.raises(ConfigError, match="holds checkpoints and is not a run"):
            project.train("run")
        checkpoints.unlink()
    assert project.train("run")
    if linked:
        (tmp_path / "scratch").rmdir()
        shutil.move(checkpoints, tmp_path / "scratch")
        checkpoints.symlink_to(tmp_path / "scratch")
    (checkpoints / "the-good-one").mkdir()
    (checkpoints / ".step-00000099.partial").mkdir()
    assert project.train("run", "train.seed=1", fresh=True)
    assert {path.name for path in checkpoints.iterdir()} == {"best", "step-00000006", "the-good-one"} | {
        path.resolve().name for path in [checkpoints / "best"]
    }
    assert checkpoints.is_symlink() == linked


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


@pytest.mark.parametrize("deleted", range(7))
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
        with pytest.raises(MemberError, match="Killed"):
            project.trainer("run", fresh=True)
    files = ["summary.json", "metrics.jsonl", "ledger.jsonl", "trace.json", "trace.previous.json", "collectives.json"]
    files.append("config.toml")
    assert struck == files[: deleted + 1]
    assert project.train("run", fresh=True)
    assert project.summary("run")["completed"]


def test_a_second_job_in_the_folder_is_refused(project: Project) -> None:
    first = project.trainer("run")
    with pytest.raises(ConfigError, match=r"another job is at work in --run-dir .*run: wait for its end"):
        project.train("run")
    assert first.fit()
    assert project.train("run")  # complete; and free again


def test_somebody_who_only_looks_is_waited_for(project: Project) -> None:
    """`hpcvol show` is interrupted between taking the lock and giving it back."""
    assert project.train("run")
    lock = os.open(project.folder / "run" / ".lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    looking = threading.Timer(0.5, os.close, (lock,))
    looking.start()
    assert project.train("run")
    looking.join()


def test_a_run_that_cannot_begin_gives_the_folder_back(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"there is no file"):
        project.train("run", "model.build=nowhere.py:build")
    assert project.train("run", fresh=True)


def test_fresh_deletes_nothing_before_model_and_data_are_there(project: Project) -> None:
    assert project.train("run")
    before = project.summary("run")
    with pytest.raises(ConfigError, match=r"there is no file"):
        project.train("run", "model.build=nowhere.py:build", fresh=True)
    assert project.summary("run") == before
    assert project.steps("run")
    assert project.train("run")  # still the run of its own configuration


def test_a_project_that_moved_goes_on(project: Project) -> None:
    assert project.train("run", "train.steps=3", "checkpoint.every_steps=1")
    moved = Project(project.folder.parent / "elsewhere")
    project.folder.rename(moved.folder)
    assert moved.train("run", "train.steps=5")
    assert moved.summary("run")["steps"] == 5


def test_patience_may_change(project: Project) -> None:
    """A learning rate of nothing makes no validation better than the first."""
    still = ("optimizer.args={lr=0.0}", "train.validate_every_steps=1")
    assert project.train("run", *still, "train.patience=1")
    assert project.summary("run")["steps"] == 2
    assert project.train("run", *still, "train.patience=3")
    assert project.summary("run")["steps"] == 4


@pytest.mark.parametrize("override", ["optimizer.name=lbfgs", "data.path=nowhere", "model.args.width=wide"])
def test_what_is_refused_leaves_a_complete_run_as_it_was(project: Project, override: str) -> None:
    assert project.train("run")
    before = project.summary("run"), project.steps("run"), project.metrics("run")
    with pytest.raises(HpcvolError):
        project.train("run", override, fresh=True)
    assert (project.summary("run"), project.steps("run"), project.metrics("run")) == before


def test_fewer_steps_than_made_leave_a_complete_run_as_it_was(project: Project) -> None:
    assert project.train("run")
    before = project.summary("run")
    with pytest.raises(ConfigError, match="is past the 2 steps"):
        project.train("run", "train.steps=2")
    assert project.summary("run") == before
    assert project.train("run")
    assert project.summary("run") == before


def test_a_source_is_built_where_a_killed_build_left_its_parts(project: Project) -> None:
    (project.folder / "data" / ".building" / "abc" / "part-0").mkdir(parents=True)
    source = "data.source={kind='python', paths=['digits.py:samples'], split={train=0.9, val=0.1}}"
    assert project.train("run", f"data.path={project.folder / 'data'}", source)


def test_a_held_out_split_that_is_asked_for_must_exist(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"data\.val_split = 'vall': .* has the splits train, val, test"):
        project.train("run", "data.val_split=vall")


def test_patience_takes_validation(project: Project) -> None:
    project.write("mine.py", "def data(split): return [{'x': [0.0] * 64, 'y': 1}] * 16 if split == 'train' else None\n")
    with pytest.raises(ConfigError, match=r"train\.patience = 2 stops by the validation loss"):
        project.train("run", "data.path=mine.py:data", "train.patience=2")


def test_a_run_without_a_checkpoint_gives_way_to_another_configuration(project: Project) -> None:
    with pytest.raises(HpcvolError):
        project.train("run", "optimizer.args.lr=1e30")
    assert project.steps("run") == []
    assert project.train("run")
