"""`python -m hpcvol.doctor.host_agent`: one process a host, which tries to reach the others and says what it found.

It speaks lines of JSON. First it says who and where it is, and on which port of each of its addresses it listens; then
it reads one line with the addresses of all hosts, tries each, and says how that went; then it says what this host
computes. It ends when its input does, and in any case after a minute and a half.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from hpcvol.comm.interfaces import interfaces

_LIFE_SECONDS = 90
_TRY_SECONDS = 3.0
_TORCH_SECONDS = 60.0
# More than fits one frame of any network: where hosts differ in the size of frames, small messages pass and large hang.
_PAYLOAD = bytes(range(256)) * 1024


def main() -> None:
    """Say, read, try, say."""
    signal.alarm(_LIFE_SECONDS)
    name, nonce = socket.gethostname(), os.urandom(8).hex()
    found, listeners = interfaces(), {}
    for one in found:
        listener = socket.create_server((one.address, 0), backlog=256)
        listeners[one.address] = listener.getsockname()[1]
        threading.Thread(target=_answer, args=(listener, nonce), daemon=True).start()
    facts = [{**asdict(one), "port": listeners[one.address]} for one in found]
    _tell(hello=nonce, host=name, interfaces=facts)
    plan = json.loads(sys.stdin.readline() or "[]")
    others = [one for one in plan if one["nonce"] != nonce and nonce in one["from"]]
    with ThreadPoolExecutor(32) as threads:
        _tell(nonce=nonce, tries=list(threads.map(lambda one: _try(one, one["from"][nonce]), others)))
    _tell(nonce=nonce, machine=_machine())
    sys.stdin.read()
    os._exit(0)


def _tell(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _answer(listener: socket.socket, nonce: str) -> None:
    """Serve connections, each in a thread."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, nonce), daemon=True).start()


def _serve(connection: socket.socket, nonce: str) -> None:
    """Say who this is and what time it is here, then send back what comes."""
    with connection:
        connection.settimeout(_TRY_SECONDS)
        try:
            connection.sendall(json.dumps({"nonce": nonce, "time": time.time()}).encode() + b"\n")
            received = 0
            while received < len(_PAYLOAD):
                piece = connection.recv(1 << 16)
                if not piece:
                    return
                received += len(piece)
            connection.sendall(_PAYLOAD)
        except OSError:
            return  # the other side says what happened


def _try(one: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Reach one address of another host from `source`, an address of ours; return how that went."""
    tried = {"candidate": one["candidate"], "to": one["nonce"]}
    began = time.monotonic()
    try:
        address = (one["address"], one["port"])
        with socket.create_connection(address, _TRY_SECONDS, source_address=(source, 0)) as connection:
            connection.settimeout(_TRY_SECONDS)
            before = time.time()
            with connection.makefile("rb") as reader:
                said = json.loads(reader.readline())
                if said["nonce"] != one["nonce"]:
                    return {**tried, "error": "another host answers at that address"}
                seconds = time.monotonic() - began
                ahead = said["time"] - (before + time.time()) / 2
                connection.sendall(_PAYLOAD)
                if reader.read(len(_PAYLOAD)) != _PAYLOAD:
                    return {**tried, "error": "the connection breaks when more than a little is sent"}
            return {**tried, "seconds": seconds, "ahead_seconds": ahead}
    except TimeoutError:
        return {**tried, "error": f"no answer within {_TRY_SECONDS:g} s"}
    except (OSError, ValueError, KeyError) as error:
        return {**tried, "error": str(getattr(error, "strerror", None) or error)}


def _machine() -> dict[str, Any]:
    """Return what torch says of this host, in a process of its own; with one thread, as members have."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "hpcvol.torch.machine"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        return {"error": f"torch does not load: {type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
