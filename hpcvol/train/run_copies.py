"""Where a run is kept: the first member's run directory, and copies on hosts that do not see that one."""

from pathlib import Path

from hpcvol.comm import ABSENT, Group, shared, together
from hpcvol.comm.files import pass_file
from hpcvol.elastic.ledger import LEDGER_NAME
from hpcvol.errors import MemberError
from hpcvol.train.config import Config, is_reference
from hpcvol.train.run_directory import METRICS_NAME, RunDirectory, holds_run


class RunCopies:
    """The directories of one run on all hosts; `open` opens them. Its methods are collective but for `release`.

    The first member keeps the run in its directory. Where that is not shared by all hosts, `checkpoint.copies` says on
    how many of them it is kept: a member on each writes the same files from its own replica, so that nothing is sent.
    Directories of the run that are on still other hosts, from an earlier start, are read but not written.

    Args:
        group: the live ranks.
        path: the run directory as this member sees it.
        config: what is to be trained.
        fresh: start over where there is a run already.

    Attributes:
        path: the run directory.
        mine: the directory that this member has opened; None on members that leave that to another one.
        keeps: whether this member writes to it.
        keepers: ranks of the members that do.
        sees: whether this member sees the directory of the first of them; a newcomer does not know that yet.
        is_complete: whether the first member's run says that it is complete, and no more is asked of it.
    """

    def __init__(self, group: Group, path: Path, config: Config, *, fresh: bool, sees: bool = True) -> None:
        self.path = path
        self.mine: RunDirectory | None = None
        self.keepers: list[int] = []
        self.keeps = self.is_complete = False
        self.sees = sees
        self._group = group
        self._config = config
        self._fresh = fresh

    def open(self) -> None:
        """Open the directories of a run that begins. A newcomer leaves them to the members that were there before it.

        Raises:
            ConfigError, HpcvolError: as `RunDirectory` does; the same on every member.
        """
        group, path, config = self._group, self.path, self._config
        self._leaders = [rank for rank, one in enumerate(group.gather_objects(group.node.rank == 0)) if one]
        try:
            self._open(group.rank == 0)
            self.keepers = [0]
            (self._sharing,) = shared(group, [path])
            while len(self.keepers) < config.checkpoint.copies and (place := self._next_place()) is not None:
                self._open(group.rank == place)
                self.keepers.append(place)
                (self._sharing,) = shared(group, [path])  # others may see what was made just now
            self._open(group.rank in self._other_places() and holds_run(path))
            self.keeps = group.rank in self.keepers
            self.sees = self._sharing.same(group.rank, self.keepers[0])
            self.is_complete = group.any(group.rank == 0 and self.mine is not None and self.mine.is_complete)
        except BaseException:
            self.release()
            raise

    def begin(self) -> None:
        """Make the directories those of this run: see `RunDirectory.begin`."""
        with together(self._group, "opening the run directory"):
            if self.mine is not None and self.keeps:
                self.mine.begin()
            elif self.mine is not None and self._fresh:
                self.mine.give_up()

    def renew(self) -> None:
        """Have members that are here keep the run, where those that kept it have died or left.

        The run directory itself is kept again as long as anybody sees it, though copies of it may be kept elsewhere.

        Raises:
            MemberError: none of them sees its directory.
        """
        group = self._group
        self.keepers = [rank for rank, keeps in enumerate(group.gather_objects(self.keeps)) if keeps]
        if not group.any(self.keeps and self.sees):
            able = [rank for rank, sees in enumerate(group.gather_objects(self.sees)) if sees]
            if able:
                self._fresh = False
                self._open(group.rank == able[0] and self.mine is None, claimed=True)
                self.keepers = sorted({*self.keepers, able[0]})
            elif not self.keepers:
                raise MemberError(f"no member that lives sees the run directory {self.path}", everywhere=True)
        self.keeps = group.rank in self.keepers

    def meet_newcomer(self) -> None:
        """Let a newcomer find out whether it sees the run directory. Collective over the members and the newcomer."""
        able = [rank for rank, sees in enumerate(self._group.gather_objects(self.sees)) if sees]
        (sharing,) = shared(self._group, [self.path])
        self.sees = bool(able) and sharing.same(self._group.rank, able[0])

    def can_spare(self, leaving: set[int]) -> bool:
        """Return whether a member that is not among those `leaving` sees the run directory."""
        return self._group.any(self.sees and self._group.members[self._group.rank] not in leaving)

    def hand_over(self) -> None:
        """Let another member keep the run. Local."""
        self.release()
        self.mine, self.keeps = None, False

    def take_lines(self, owner: int) -> None:
        """Give metrics and ledger of the member at rank `owner` to all that keep the run elsewhere."""
        wanted = self.keeps and not self._sharing.same(self._group.rank, owner)
        if not self._group.any(wanted):
            return
        for path in (self.path / METRICS_NAME, self.path / LEDGER_NAME):
            if self._group.broadcast_object(path.exists(), owner):
                pass_file(self._group, owner, path, path if wanted else None)

    def what_is_not_shared(self) -> str | None:
        """Return one line that says what hosts do not share, and what follows; None where they share all."""
        config = self._config
        datasets = [path for path in config.data.weights if not is_reference(path)]
        project, *data = shared(self._group, [config.folder, *map(Path, datasets)])
        copied = self._group.any(config.here() is not config)
        found = []
        if not self._sharing.by_all:
            hosts = " and ".join(self._group.hosts[rank] for rank in self.keepers)
            advice = "; checkpoint.copies = 2 would keep a copy on a second host" if len(self.keepers) == 1 else ""
            found.append(f"the run directory (kept on {hosts}{advice})")
        if not project.by_all:
            files = "those without are given its Python files" if copied else "the same files on each"
            found.append(f"the project {config.folder} ({files})")
        found += [
            f"the data {path} (each host reads its own)"
            for path, one in zip(datasets, data, strict=True)
            if not one.by_all
        ]
        return f"hosts do not share {'; '.join(found)}" if found else None

    def release(self) -> None:
        """Let other jobs have the directories. Local."""
        if self.mine is not None:
            self.mine.release()

    def _open(self, here: bool, *, claimed: bool = False) -> None:
        with together(self._group, "opening the run directory"):
            if here:
                self.mine = RunDirectory(self.path, self._config, fresh=self._fresh, claimed=claimed)

    def _next_place(self) -> int | None:
        """Return a rank that sees none of the directories that are open; one that has a directory already first."""
        others = self._other_places()
        absent = [rank for rank in self._leaders if self._sharing.first[rank] == ABSENT]
        return next(iter(others + absent), None)

    def _other_places(self) -> list[int]:
        """Return the lowest rank of each directory that is not open."""
        first = self._sharing.first
        taken = {first[rank] for rank in self.keepers}
        return [rank for rank in self._leaders if first[rank] == rank and rank not in taken]
