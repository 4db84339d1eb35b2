"""Spans that a process records of itself."""

import os
import threading
from collections.abc import Iterator

import pytest

from hpcvol import tracing


@pytest.fixture
def recording() -> Iterator[None]:
    tracing.start()
    yield
    tracing.stop()


def test_nothing_is_recorded_while_off() -> None:
    assert not tracing.is_on()
    with tracing.span("a", nbytes=1):
        tracing.record("b", 0)
    tracing.start()
    try:
        assert tracing.take() == []
    finally:
        tracing.stop()


def test_what_was_open_before_the_start_is_not_recorded() -> None:
    with tracing.span("a"):
        tracing.start()
    try:
        assert tracing.take() == []
    finally:
        tracing.stop()


@pytest.mark.usefixtures("recording")
def test_spans_nest_and_say_what_they_were_given() -> None:
    before = tracing.now()
    with tracing.span("outer", step=3), tracing.span("inner"):
        pass
    began = tracing.now()
    tracing.record("later", began, nbytes=8)
    tracing.record("known", before, began)
    inner, outer, later, known = tracing.take()
    assert [one[0] for one in (inner, outer, later, known)] == ["inner", "outer", "later", "known"]
    assert before <= outer[2] <= inner[2] <= inner[3] <= outer[3] <= began == later[2] <= later[3]
    assert known[2:4] == (before, began)
    assert [one[4] for one in (inner, outer, later, known)] == [{}, {"step": 3}, {"nbytes": 8}, {}]
    assert tracing.take() == []


@pytest.mark.usefixtures("recording")
def test_a_body_that_raises_is_recorded_with_its_error() -> None:
    with pytest.raises(KeyError), tracing.span("a"):
        raise KeyError
    assert [(one[0], one[4]) for one in tracing.take()] == [("a", {"error": "KeyError"})]


@pytest.mark.usefixtures("recording")
def test_every_thread_records_under_its_name() -> None:
    def work() -> None:
        with tracing.span("there"):
            pass

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()
    with tracing.span("here"):
        pass
    assert [(one[0], one[1]) for one in tracing.take()] == [("there", "worker"), ("here", "MainThread")]


@pytest.mark.usefixtures("recording")
def test_what_nobody_takes_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcvol.tracing._LIMIT", 10)
    tracing.start()
    for i in range(25):
        tracing.record("a", 0, i=i)
    assert [one[4]["i"] for one in tracing.take()] == list(range(15, 25))


@pytest.mark.usefixtures("recording")
def test_a_forked_process_records_nothing() -> None:
    child = os.fork()
    if child == 0:
        os._exit(int(tracing.is_on()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tracing.is_on()
