"""Views: who is in the run, numbered, each claimed before its first commit.

Members that cannot hear each other, as after a cut link, both agree among themselves that the others are gone. What
decides between them is outside of both: a file that can be created once.
"""

import json
import os
from collections.abc import Sequence
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

    def claim(self, number: int, members: Sequence[int], step: int) -> bool:
        """Make view `number` that of `members`; return whether it is now theirs. Durable when it returns.

        Only the view after the newest can be claimed, and only once: a file is written aside and linked to its name,
        which the file system does for one of those who try, over NFS too.

        Args:
            number: one more than that of the view that the members were in.
            members: ids of those who are in it.
            step: the last version that they have committed.

        Raises:
            OSError: the folder cannot be written.
        """
        self._folder.mkdir(exist_ok=True)
        if number != self.newest + 1:
            return False
        path = self._folder / f"{number:08}"
        aside = create_aside(path)
        try:
            aside.write_text(json.dumps({"members": list(members), "step": step}) + "\n", encoding="utf-8")
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
        return not (self._folder / f"{number + 1:08}").exists()
