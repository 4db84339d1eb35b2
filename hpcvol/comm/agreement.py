"""Errors that stop all members alike: after anything that can fail on one rank alone."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hpcvol.comm.doing import doing as now_doing
from hpcvol.comm.group import Group
from hpcvol.errors import CommError, HpcvolError, MemberError


@dataclass(frozen=True)
class _Failure:
    """An exception as it travels: others may lack its class, and some exceptions do not pickle."""

    kind: type[HpcvolError] | None
    message: str
    traceback: str
    interrupt: bool


def agree(group: Group, error: BaseException | None, doing: str) -> None:
    """Raise on every rank if `error` is set on any; return if all are well. Collective: one small exchange.

    Without it a rank that failed leaves while the others wait for it in their next collective.

    Args:
        group: all of its ranks call this.
        error: what this rank caught, or None.
        doing: as for `gather_agreed`.

    Raises:
        HpcvolError, KeyboardInterrupt: as `gather_agreed`.
    """
    gather_agreed(group, None, error, doing)


def gather_agreed(group: Group, obj: Any, error: BaseException | None, doing: str) -> list[Any]:
    """Return the `obj` of every rank, by rank, on all ranks, or raise on every rank if `error` is set on any.

    Collective, and no dearer than `Group.gather_objects`.

    Args:
        group: all of its ranks call this.
        obj: has to pickle.
        error: what this rank caught, or None.
        doing: what was being done, as in `member 2 (node07) failed while {doing}`.

    Raises:
        HpcvolError: of the class that the first failing rank has, where that is an HpcvolError. `everywhere` is set.
        MemberError: for any other exception, with its message and traceback. `everywhere` is set.
        KeyboardInterrupt: where a rank was interrupted.
    """
    group.calls.note = "" if error is None else "".join(traceback.format_exception_only(error)).strip()
    try:
        gathered = group.gather_objects(obj if error is None else _describe(error))
    except CommError:
        if error is not None:
            raise error from None  # which is why this rank is where no other is
        raise
    finally:
        group.calls.note = ""
    failures = {rank: one for rank, one in enumerate(gathered) if isinstance(one, _Failure)}
    if failures:
        raise _common_error(group, failures, doing) from error
    return gathered


@contextmanager
def together(group: Group, doing: str) -> Iterator[None]:
    """Run the body on every rank, then `agree`: if it raises on any rank, all ranks raise. Collective at its end.

    The body itself must not be collective: a rank that fails in it would leave the others waiting inside.
    """
    error: BaseException | None = None
    try:
        with now_doing(doing):
            yield
    except BaseException as caught:
        error = caught
    agree(group, error, doing)


def _describe(error: BaseException) -> _Failure:
    kind = type(error) if isinstance(error, HpcvolError) else None
    text = str(error) if kind is not None else "".join(traceback.format_exception_only(error)).strip()
    return _Failure(kind, text, "".join(traceback.format_exception(error)), isinstance(error, KeyboardInterrupt))


def _common_error(group: Group, failed: dict[int, _Failure], doing: str) -> BaseException:
    if any(failure.interrupt for failure in failed.values()):
        return KeyboardInterrupt()
    rank, first = next(iter(failed.items()))
    speaker = group.members[0]
    if len(failed) == group.size and len({failure.message for failure in failed.values()}) == 1:
        who = "" if group.size == 1 else "every member "
    else:
        who = f"{group.name_of(rank)} "
    others = [str(group.members[other]) for other in failed if other != rank]
    also = f"\n(members that failed too: {', '.join(others)})" if others and not who.startswith("every") else ""
    if first.kind is not None:
        said = first.message if who in ("", "every member ") else f"{who.strip()}, {doing}: {first.message}"
        return first.kind(said + also, everywhere=True, speaker=speaker)
    text = f"{who}failed while {doing}: {first.message}\n{first.traceback.rstrip()}{also}"
    return MemberError(text, everywhere=True, speaker=speaker)
