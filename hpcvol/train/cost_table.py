"""What collectives cost on this machine, kept with the run: a run that goes on chooses as it did before.

Which algorithm adds up gradients decides the last bits of a float sum, so a choice that rests on measurements has to be
kept where bits are to be the same. The exact sum has the same bits by any algorithm.
"""

from pathlib import Path

from hpcvol.collectives import Algorithm, Table, table_of, use_table
from hpcvol.comm import Group, together
from hpcvol.durable import writing
from hpcvol.train.files import write_whole

COLLECTIVES_NAME = "collectives.json"


def recall_costs(group: Group, run_dir: Path, *, fresh: bool) -> None:
    """Let all members know the costs that the run was made with, where it has any. Collective: one gather.

    Args:
        group: the live ranks.
        run_dir: the run directory as this member sees it; the file of the first member that sees one holds.
        fresh: whether the run starts over, and what it was made with does not count.
    """
    if group.size == 1:
        return
    text = "" if fresh else _read(run_dir / COLLECTIVES_NAME)
    known = next((one for one in group.gather_objects(text) if one), None)
    if known is not None:
        use_table(Table.from_json(known))


def keep_costs(group: Group, run_dir: Path, algorithm: Algorithm, *, keeps: bool) -> None:
    """Write the costs by which the run chooses to its directory; measure what is not known yet. Collective.

    Args:
        group: the live ranks; where they share memory there is nothing to choose, and nothing is written.
        run_dir: the run directory as this member sees it.
        algorithm: where it is pinned nothing is measured or written.
        keeps: whether this member writes the run's files.
    """
    if group.size == 1 or algorithm not in ("auto", "hierarchical"):
        return
    table = table_of(group)
    if not table.costs:
        return
    text = table.to_json()
    with together(group, "writing the costs of collectives"):
        path = run_dir / COLLECTIVES_NAME
        if keeps and _read(path) != text:
            with writing(path):
                write_whole(path, text)


def _read(path: Path) -> str:
    """Return what a file holds that tells costs; nothing where there is none, or it cannot be read: it is made anew."""
    try:
        text = path.read_text(encoding="utf-8")
        Table.from_json(text)
    except (OSError, ValueError):
        return ""
    return text
