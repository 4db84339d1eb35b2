"""Asking a process how it is: a socket that each listens on, and a thread that answers while the others are busy.

One question is one connection: the service sends a random number, the asker its question and a keyed digest of both,
so that only those answer or are answered who were told the run's token through MPI; the answer is one JSON object.
"""

import hashlib
import hmac
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

Message = dict[str, Any]

_NONCE_NBYTES = 16
_MAX_LINE_NBYTES = 1 << 20
# A question is one line that is there at once; a peer that does not send it must not keep the others waiting.
_PATIENCE_SECONDS = 1.0


class StatusService:
    """Answers questions in a thread of its own.

    Args:
        token: what every asker has to know.
        answer: makes the answer to a question; called in the thread.

    Attributes:
        port: where it listens, on all addresses of the host.

    Raises:
        OSError: there is no network at all.
    """

    def __init__(self, token: bytes, answer: Callable[[Message], Message]) -> None:
        self._token = token
        self._answer = answer
        self._socket = socket.create_server(("", 0), backlog=256)
        self.port: int = self._socket.getsockname()[1]
        # A child process would hold the port, and never answer.
        os.register_at_fork(after_in_child=self._socket.close)
        self._thread = threading.Thread(target=self._serve, name="hpcvol-watch-service", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # closing alone would leave the thread in accept()
        self._socket.close()
        self._thread.join(_PATIENCE_SECONDS)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            with connection:
                connection.settimeout(_PATIENCE_SECONDS)
                try:
                    self._serve_one(connection)
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # it went away, or is none of ours

    def _serve_one(self, connection: socket.socket) -> None:
        nonce = secrets.token_hex(_NONCE_NBYTES)
        connection.sendall(nonce.encode() + b"\n")
        said = json.loads(_read_line(connection))
        if not hmac.compare_digest(_digest(self._token, nonce, said["question"]), said["digest"]):
            return
        answer = self._answer(json.loads(said["question"]))
        connection.sendall(json.dumps(answer).encode() + b"\n")


def ask(
    addresses: Sequence[str], port: int, token: bytes, question: Mapping[str, Any], seconds: float
) -> tuple[str, Message]:
    """Ask the service at the first of `addresses` that answers. Local.

    Args:
        addresses: to be tried in this order.
        port: of the service.
        token: of the run.
        question: values for JSON.
        seconds: for each address.

    Returns:
        The address that answered, and the answer.

    Raises:
        ConnectionRefusedError: where the last address that was reached says that nobody listens.
        OSError: nobody answers.
    """
    refused: ConnectionRefusedError | None = None
    failure: OSError = TimeoutError("no address to ask at")
    for address in addresses:
        try:
            return address, _ask_one(address, port, token, question, seconds)
        except ConnectionRefusedError as error:
            refused = error
        except OSError as error:
            failure = error
        except (ValueError, KeyError):
            failure = OSError(f"something else answers at {address}:{port}")
    raise refused or failure


def _ask_one(address: str, port: int, token: bytes, question: Mapping[str, Any], seconds: float) -> Message:
    with socket.create_connection((address, port), seconds) as connection:
        connection.settimeout(seconds)
        nonce = _read_line(connection).decode("ascii", errors="replace")
        text = json.dumps(dict(question))
        said = {"question": text, "digest": _digest(token, nonce, text)}
        connection.sendall(json.dumps(said).encode() + b"\n")
        answer: Message = json.loads(_read_line(connection))
        return answer


def _digest(token: bytes, nonce: str, question: str) -> str:
    return hmac.new(token, f"{nonce}\n{question}".encode(), hashlib.sha256).hexdigest()


def _read_line(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        piece = connection.recv(1 << 16)
        if not piece:
            raise ConnectionResetError("the connection was closed before the line was whole")
        received += piece
        if len(received) > _MAX_LINE_NBYTES:
            raise ValueError("the line is too long")
    return received[:-1]
