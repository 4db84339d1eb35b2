"""A shard passed to a host that lacks it, on a link of 1 Gbit/s, against what the link and MPI give for the same bytes.

Two virtual hosts on this machine, whose two network stacks and switch share its cores with both ranks. Shares are of
the link's rate, frames' headers included, so that 0.94 to 0.97 is all that there is to have.

- tcp: a plain socket, one way, from and to memory.
- send: MPI_Send of 1 MiB pieces, one after the other, from and to memory.
- broadcast: MPI_Bcast of the same pieces.
- hpcvol: `pass_file`, from the file (in the page cache) to a file on disk, synchronised, under its name.

    python benchmarks/data_passed.py [--json FILE] [--quick]        as root; not under mpiexec; TMPDIR on the disk
"""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import Row, arguments, publish

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "lab"))
from virtual_hosts import virtual_hosts  # the path has to be there first

RATE, DELAY = 1e9, 5e-5
PIECE_NBYTES = 1 << 20
PORT = 29_999


def rank_program(folder: Path, nbytes: int, rounds: int) -> None:
    """Run on both hosts: time everything; rank 0 writes the seconds as one line of JSON."""
    from hpcvol.comm import start
    from hpcvol.comm.files import pass_file

    group = start()
    first, pieces = group.rank == 0, range(0, nbytes, PIECE_NBYTES)
    piece = np.ones(PIECE_NBYTES, np.uint8)
    source, target = folder / "source", folder / "target"
    if first:
        source.write_bytes(os.urandom(PIECE_NBYTES) * len(pieces))

    def tcp() -> None:
        if not first:
            group.barrier()
            with socket.create_connection((group.broadcast_object("", 0), PORT)) as reading:
                left = nbytes
                while left:
                    left -= reading.recv_into(piece)
                reading.sendall(b"x")
            return
        with socket.create_server(("", PORT)) as server:
            group.barrier()
            group.broadcast_object(socket.gethostbyname(socket.gethostname()), 0)
            with server.accept()[0] as writing:
                for _ in pieces:
                    writing.sendall(piece)
                writing.recv(1)

    def send() -> None:
        for _ in pieces:
            if first:
                group.communicator.Send(piece, 1)
            else:
                group.communicator.Recv(piece, 0)

    def broadcast() -> None:
        for _ in pieces:
            group.communicator.Bcast(piece, 0)

    contenders: dict[str, Callable[[], None]] = {
        "tcp": tcp,
        "send": send,
        "broadcast": broadcast,
        "hpcvol": lambda: pass_file(group, 0, source, None if first else target),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            group.barrier()
            began = time.perf_counter()
            run()
            group.barrier()
            seconds[name].append(time.perf_counter() - began)
    if first:
        sys.stdout.write(json.dumps({name: times[1:] for name, times in seconds.items()}) + "\n")


def main() -> None:
    options = arguments(str(__doc__)).parse_args()
    nbytes, rounds = (1 << 25, 2) if options.quick else (1 << 28, 8)
    with (
        tempfile.TemporaryDirectory(prefix="hpcvol-benchmark-") as folder,
        virtual_hosts(2, rate=RATE, delay=DELAY) as hosts,
    ):
        program = [sys.executable, __file__, "ranks", folder, str(nbytes), str(rounds)]
        launch = hosts.launch_command({"h0": 1, "h1": 1}, program)
        done = hosts.run("h0", launch.argv, variables=launch.environment, seconds=500)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    medians = {name: float(np.median(times)) for name, times in found.items()}
    publish(
        "data_passed",
        [
            Row(
                name,
                f"{nbytes >> 20} MiB",
                nbytes,
                2,
                times,
                {"of_link": nbytes * 8 / RATE / medians[name], "of_send": medians["send"] / medians[name]},
            )
            for name, times in found.items()
        ],
        options.json,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["ranks"]:
        rank_program(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
