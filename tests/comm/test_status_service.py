"""Questions and answers between processes."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hpcvol.comm.status_service import Message, StatusService, ask

TOKEN = b"the run's"
SECONDS = 5.0


@contextmanager
def serving() -> Iterator[StatusService]:
    def answer(question: Message) -> Message:
        return {"heard": question["ask"]}

    service = StatusService(TOKEN, answer)
    try:
        yield service
    finally:
        service.close()


def test_a_question_is_answered() -> None:
    with serving() as service:
        found = ask(["127.0.0.1"], service.port, TOKEN, {"ask": "how are you"}, SECONDS)
    assert found == ("127.0.0.1", {"heard": "how are you"})


def test_only_those_who_know_the_token_are_answered() -> None:
    with serving() as service, pytest.raises(OSError, match="closed before the line was whole"):
        ask(["127.0.0.1"], service.port, b"guessed", {"ask": "how are you"}, SECONDS)


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"question": 1}\n', b"[]\n"])
def test_strangers_do_not_disturb(noise: bytes) -> None:
    with serving() as service:
        with socket.create_connection(("127.0.0.1", service.port)) as stranger:
            stranger.sendall(noise)
        assert ask(["127.0.0.1"], service.port, TOKEN, {"ask": 1}, SECONDS)[1] == {"heard": 1}


def test_a_question_that_cannot_be_answered_ends_nothing() -> None:
    with serving() as service:
        with pytest.raises(OSError, match="closed"):
            ask(["127.0.0.1"], service.port, TOKEN, {}, SECONDS)
        assert ask(["127.0.0.1"], service.port, TOKEN, {"ask": 2}, SECONDS)[1] == {"heard": 2}


def test_addresses_are_tried_in_turn() -> None:
    with serving() as service:
        # Nobody listens there: the service has all addresses of this host, but this one is nobody's port.
        found = ask(["0.0.0.1", "127.0.0.1"], service.port, TOKEN, {"ask": 3}, 0.2)
    assert found == ("127.0.0.1", {"heard": 3})


def test_who_has_ended_refuses() -> None:
    with serving() as service:
        port = service.port
    with pytest.raises(ConnectionRefusedError):
        ask(["127.0.0.1"], port, TOKEN, {"ask": 1}, SECONDS)
