"""One line of what the doctor says."""

from dataclasses import asdict, dataclass
from enum import StrEnum


class Status(StrEnum):
    """How it is: good; worth knowing; or such that training will break."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    Args:
        topic: what it belongs to, such as `MPI`.
        name: of the thing.
        status: how it is.
        found: what was found, in words.
        remedy: what to type or to do, where something can be done.
    """

    topic: str
    name: str
    status: Status
    found: str
    remedy: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return it as values for JSON."""
        return asdict(self)


def ok(topic: str, name: str, found: str) -> Finding:
    """Return what is good."""
    return Finding(topic, name, Status.OK, found)


def note(topic: str, name: str, found: str, remedy: str | None = None) -> Finding:
    """Return what is worth knowing."""
    return Finding(topic, name, Status.NOTE, found, remedy)


def wrong(topic: str, name: str, found: str, remedy: str) -> Finding:
    """Return what will break training."""
    return Finding(topic, name, Status.WRONG, found, remedy)
