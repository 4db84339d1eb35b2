"""A run's folder: whether it is new, goes on, is complete, or belongs to another configuration or another job."""

import fcntl
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from hpcvol.durable import writing
from hpcvol.elastic.ledger import LEDGER_NAME
from hpcvol.errors import ConfigError
from hpcvol.train.checkpoint_files import BEST, checkpoints_in
from hpcvol.train.completion import SUMMARY_NAME, Completion
from hpcvol.train.config import Config, differences, load_config, to_toml
from hpcvol.train.cost_table import COLLECTIVES_NAME
from hpcvol.train.files import write_whole

CONFIG_NAME = "config.toml"
METRICS_NAME = "metrics.jsonl"
TRACE_NAME = "trace.json"
PREVIOUS_TRACE_NAME = "trace.previous.json"
CHECKPOINTS_NAME = "checkpoints"
_LOCK_NAME = ".lock"
# The first line of CONFIG_NAME in a run: a configuration of the user's own may have that name too.
_MARK = "# The configuration of this run, with all defaults; written by hpcvol.\n"

# `is_at_work` holds the lock for a moment, which a busy machine can stretch.
_LOOK_SECONDS = 2.0

# Changing these cannot change a bit of the weights as far as the run went.
_FREE = (
    "checkpoint.",
    "comm.",
    "data.cache",
    "elastic.",
    "strategy.kind",
    "strategy.replicas",
    "strategy.servers",
    "train.log_every_steps",
    "train.on_metrics",
    "train.share_devices",
    "train.trace",
)
# A run may give up the promise of equal bits, knowingly; it cannot take it up.
_GIVES_UP_EXACT = 'train.sum: "exact" -> "float"'
_LENGTH = ("train.patience", "train.steps", "train.epochs")


class RunDirectory:
    """The folder of a run, held by one member while it trains.

    Args:
        path: the folder; it need not exist.
        config: what is to be trained.
        fresh: start over where there is a run already; nothing is deleted before `begin`.
        claimed: the run is this job's, by a view, though a member that is lost may still hold the folder.

    Raises:
        ConfigError: the folder is something else, a run of a configuration that would give other weights, or at work
            in another job.
        HpcvolError: the folder cannot be written.
    """

    def __init__(self, path: Path, config: Config, *, fresh: bool, claimed: bool = False) -> None:
        self.path = path
        self._config = config
        self._fresh = fresh
        self._claimed = claimed
        self._known = path / CONFIG_NAME
        self._lock: int | None = None
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--run-dir {path} is a file: expected a folder, or a name for a new one")
        with writing(path):
            self._check_contents()
            path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            try:
                self._longer = holds_run(path) and not fresh and self._check_agreement()
            except BaseException:
                self.release()
                raise

    @property
    def is_complete(self) -> bool:
        """Whether the run says that it is complete, and no more is asked of it now."""
        return not self._fresh and not self._longer and Completion(self.path).is_complete(0)

    def begin(self) -> None:
        """Make the folder that of this run: delete what `fresh` gives up, and write the configuration.

        Raises:
            HpcvolError: the folder cannot be written.
        """
        with writing(self.path):
            if self._fresh:
                self.give_up()
            (self.path / SUMMARY_NAME).unlink(missing_ok=True)
            write_whole(self._known, _MARK + to_toml(self._config, self.path))

    def give_up(self) -> None:
        """Delete the run that is in the folder.

        Raises:
            HpcvolError: the folder cannot be written.
        """
        with writing(self.path):
            (self.path / SUMMARY_NAME).unlink(missing_ok=True)
            self._empty()

    def release(self) -> None:
        """Let other jobs have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check_contents(self) -> None:
        """Refuse a folder that holds files of the names that a run's have; others, such as logs, are left alone."""
        if holds_run(self.path):
            return
        names = [CONFIG_NAME, METRICS_NAME, LEDGER_NAME, CHECKPOINTS_NAME, SUMMARY_NAME]
        names += [TRACE_NAME] * self._config.train.trace
        taken = [name for name in names if self._has(name)]
        if taken:
            raise ConfigError(
                f"--run-dir {self.path} holds {', '.join(taken)} and is not a run of hpcvol, which would overwrite it: "
                "choose another folder"
            )

    def _has(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def _take_lock(self) -> None:
        """Hold the folder as long as this process lives; where the file system knows no locks nothing is held."""
        self._lock = os.open(self.path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        until = time.monotonic() + _LOOK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.01)
                    continue
                if self._claimed:
                    self._take_lock_when_it_is_free(self._lock)
                    return
                self.release()
                raise ConfigError(
                    f"another job is at work in --run-dir {self.path}: wait for its end, or choose another folder"
                ) from None
            except OSError:
                pass
            return

    def _take_lock_when_it_is_free(self, lock: int) -> None:
        def take() -> None:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)

        threading.Thread(target=take, name="hpcvol-lock", daemon=True).start()

    def _check_agreement(self) -> bool:
        """Compare the configuration with that of the run; return whether the run is to take longer or shorter now.

        A run without a checkpoint has nothing to lose: another configuration may have its folder.
        """
        if not any((self.path / CHECKPOINTS_NAME).glob("step-*")):
            return False
        free = _FREE + _LENGTH if self._config.optimizer.schedule == "constant" else (*_FREE, "train.patience")
        all_changed = differences(load_config(self._known), self._config)
        changed = [line for line in all_changed if not line.startswith(free) and line != _GIVES_UP_EXACT]
        if changed:
            raise ConfigError(
                f"{self.path} is a run of another configuration; what differs (there -> now):\n  "
                + "\n  ".join(changed)
                + "\nGo on with its own values, choose another --run-dir, or start over with --fresh"
            )
        return any(line.startswith(_LENGTH) for line in all_changed)

    def _empty(self) -> None:
        """Delete a run; its configuration last, so that the folder is known for a run's until it is empty.

        What somebody keeps beside the checkpoints stays. The folder of checkpoints may be a link to another disk.
        """
        folder = self.path / CHECKPOINTS_NAME
        for path in [*checkpoints_in(folder), *folder.glob(".step-*.partial"), folder / BEST]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
        for name in (METRICS_NAME, LEDGER_NAME, TRACE_NAME, PREVIOUS_TRACE_NAME, COLLECTIVES_NAME, CONFIG_NAME):
            (self.path / name).unlink(missing_ok=True)


def holds_run(path: Path) -> bool:
    """Return whether there is a run in folder `path`. Local."""
    try:
        with (path / CONFIG_NAME).open(encoding="utf-8") as file:
            return file.readline() == _MARK
    except (OSError, UnicodeDecodeError):
        return False


def is_at_work(path: Path) -> bool:
    """Return whether a job holds the run in folder `path` now; False where the file system knows no locks. Local.

    It asks by taking a shared lock and giving it back at once, for which a job that starts in that instant waits.
    """
    try:
        lock = os.open(path / _LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
    return False
