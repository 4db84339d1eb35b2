"""Views: who is in the run, numbered, each claimed before its first commit.

Members that cannot hear each other, as after a cut link, both agree among themselves that the others are gone. What
decides between them is outside of both: a file that can be created once.
"""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from hpcvol.durable import create_aside, sync

VIEWS_NAME = "views"


class Views:
    """The views of a run that were claimed. Local, as all methods are; for the member that acts for its group.

    Args:
        run_dir: the folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / VIEWS_NAME

    @property
    def newest(self) -> int:
        """The number of the newest view, 0 where none was claimed."""
        names = os.listdir(self._folder) if self._folder.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=0)

    def begin(self, members: Sequence[int]) -> int:
        """Make the next view that of `members`, who have the run directory to themselves; return its number.

        Raises:
            OSError: the folder cannot be written.
        """
        while not self._take(number := self.newest + 1, members):
            continue
        return number

    def claim(self, members: Sequence[int], known: int, joining: Collection[int] = ()) -> int | None:
        """Make the next view that of `members`; return its number, None where it is not theirs to make.

        All of them but those that are `joining` have to be in the newest view: who is not was left behind by it. And
        each view can be claimed once: a file is written aside and linked to its name, which the file system does for
        one of those who try, over NFS too. What this returned is on disk.

        Args:
            members: their ids.
            known: a view that was claimed, theirs, though a listing may not show it yet.
            joining: who of them is new.

        Raises:
            OSError: the folder cannot be written.
        """
        newest = max(self.newest, known)
        if not set(members) - set(joining) <= set(self.members_of(newest)):
            return None
        return newest + 1 if self._take(newest + 1, members) else None

    def members_of(self, number: int) -> tuple[int, ...]:
        """Return the ids of the members of a view, none of one that was not claimed."""
        try:
            view = json.loads((self._folder / f"{number:08}").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ()
        return tuple(view["members"])

    def _take(self, number: int, members: Sequence[int]) -> bool:
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{number:08}"
        aside = create_aside(path)
        try:
            aside.write_text(json.dumps({"members": list(members)}) + "\n", encoding="utf-8")
            sync(aside)
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
            sync(self._folder)
        finally:
            aside.unlink()
        return True

    def is_newest(self, number: int) -> bool:
        """Return whether no later view was claimed than `number`: a member of an older one writes nothing any more."""
        # Not by the name of the next: an NFS client may remember that there was none, and asks when it opens a folder.
        return self.newest <= number
