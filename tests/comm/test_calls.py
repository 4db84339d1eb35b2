"""Calls by number, fingerprints, and boards that peers read."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcvol.comm import Group, calls
from hpcvol.comm.calls import ALGORITHMS, DTYPES, MAX_NUMEL, NAMES, OPS, Call
from hpcvol.comm.stacks import Frame, Stack
from hpcvol.errors import MemberError, MismatchError

FLOAT32 = np.dtype(np.float32)


@given(
    st.sampled_from(NAMES[1:]),
    st.sampled_from(("", *DTYPES[1:])),
    st.integers(0, MAX_NUMEL),
    st.sampled_from(OPS),
    st.sampled_from(ALGORITHMS),
)
def test_fingerprints_can_be_read_back(name: str, dtype: str, numel: int, op: str, algorithm: str) -> None:
    call = Call.of(name, np.dtype(dtype) if dtype else None, numel, op, algorithm)
    assert Call.from_fingerprint(call.fingerprint) == call
    assert 0 < call.fingerprint < 2**63


def test_calls_in_words() -> None:
    assert str(Call.of("allreduce", FLOAT32, 25000, "sum")) == "allreduce sum float32[25000]"
    assert str(Call.of("allreduce", FLOAT32, 3, "max", "ring")) == "allreduce max float32[3] by ring"
    assert str(Call.of("broadcast", np.dtype(ml_dtypes.bfloat16), 3)) == "broadcast bfloat16[3]"
    assert str(Call.of("barrier")) == "barrier"


def test_there_is_room_for_all_kinds() -> None:
    assert len(NAMES) <= 32
    assert max(len(DTYPES), len(OPS), len(ALGORITHMS)) <= 16


def test_unknown_names_and_lengths_are_refused() -> None:
    for wrong in (("dance", None, 0, ""), ("allreduce", np.dtype(np.complex64), 1, "sum"), ("allreduce", FLOAT32, -1)):
        with pytest.raises(ValueError):  # noqa: PT011
            Call.of(*wrong)


def test_boards_tell_what_each_rank_does(group: Group) -> None:
    own = group.split(0)
    own.calls.begin(Call.of("allreduce", FLOAT32, 7, "sum"))
    own.calls.end()
    if group.rank == 0:
        own.calls.begin(Call.of("barrier"))
    group.barrier()
    seen = [own.calls.progress(rank) for rank in range(group.size)]
    assert [one.sequence for one in seen] == [2] + [1] * (group.size - 1)
    assert [one.inside for one in seen] == [True] + [False] * (group.size - 1)
    assert str(seen[0].call) == "barrier"
    assert {str(one.left) for one in seen} == {"allreduce sum float32[7]"}
    assert all(one.entered_ns > 0 for one in seen)
    assert seen[-1].entered_ns <= seen[-1].left_ns or group.size == 1
    own.calls.poll()
    group.barrier()
    own.close()


def test_poll_shows_both_sides_of_a_mismatch(group: Group) -> None:
    own = group.split(0)
    last = group.rank == group.size - 1
    own.calls.begin(Call.of("allreduce", FLOAT32, 8 if last else 7, "sum"))
    group.barrier()
    if group.size == 1:
        own.calls.poll()
    else:
        with pytest.raises(MismatchError) as caught:
            own.calls.poll()
        text = str(caught.value)
        assert "collective call 1 " in text
        assert f"{own.name_of_me} calls allreduce sum float32[{8 if last else 7}]" in text
        assert f"calls allreduce sum float32[{7 if last else 8}]" in text
    group.barrier()
    own.close()


def test_poll_raises_what_the_watch_found(group: Group) -> None:
    own = group.split(0)
    own.calls.poll()
    own.calls.begin(Call.of("barrier"))
    own.calls.fail(2, MemberError("somebody left"))
    own.calls.poll()  # the watch may be late: that was said of another call
    own.calls.end()
    own.calls.begin(Call.of("barrier"))
    with pytest.raises(MemberError, match="somebody left"):
        own.calls.poll()
    own.close()


def test_the_place_of_who_gave_up_while_its_stack_was_taken(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    own = group.split(0)

    def late_stack() -> Stack:
        own.calls.place = "train.py:7 step"
        return [Frame("report.py", 99, "write")]

    assert "test_calls.py" in own.calls.seen_at()
    monkeypatch.setattr(calls, "main_stack", late_stack)
    assert own.calls.seen_at() == "train.py:7 step"
    own.close()
