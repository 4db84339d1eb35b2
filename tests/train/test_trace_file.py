"""A JSON array that several processes fill at once: whole at every moment, of a fixed size, the first and last kept."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import until

from hpcvol.train.trace_file import BLOCK_NBYTES, Place, compact, create

ROOM = 16 * BLOCK_NBYTES


def element(number: int, width: int = 100) -> str:
    return json.dumps({"n": number, "text": "a b\n".ljust(width)})


def numbers(path: Path) -> list[Any]:
    content = json.loads(path.read_bytes())
    return [one["n"] if isinstance(one, dict) else one for one in content]


def make(path: Path, num_places: int, nbytes: int = ROOM) -> list[Place]:
    places = create(path, ['"known"'], num_places, nbytes)
    for place in places:
        place.open(path)
    return places


def test_it_is_whole_from_the_start_and_after_each_flush(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    one, other = make(path, 2)
    assert numbers(path) == ["known"]
    size = path.stat().st_size
    for i in range(0, 1000, 2):
        one.add(element(i))
        other.add(element(i + 1))
        if i % 7 == 0:
            one.flush()
            other.flush()
            assert {0, 1} <= set(numbers(path)[1:])
            assert path.stat().st_size == size
    assert {entry.name for entry in tmp_path.iterdir()} == {"trace.json"}
    for place in (one, other):
        place.close()
        place.close()


@pytest.mark.parametrize("known", [1, 200])
def test_compacting_drops_nothing_but_spaces(tmp_path: Path, known: int) -> None:
    path, second = tmp_path / "trace.json", tmp_path / "second.json"
    first = [element(-i - 1) for i in range(known)]
    for i, file in enumerate((path, second)):
        places = create(file, first, 2, ROOM)
        for j, place in enumerate(places):
            place.open(file)
            place.label([element(10 * i + j)])
            for k in range(100):
                place.add(element(1000 * i + 100 * j + k))
            place.flush()
            place.close()
    before = [numbers(path), numbers(second)]
    compact(path)
    assert numbers(path) == before[0]
    assert path.stat().st_size < 140 * (len(before[0]) + 1)
    compact(path, [second])
    assert numbers(path) == before[0] + before[1]
    compact(path)
    assert numbers(path) == before[0] + before[1]


@pytest.mark.parametrize("total", [0, 1, 200, 300, 5000])
def test_the_first_and_the_last_are_kept(tmp_path: Path, total: int) -> None:
    path = tmp_path / "trace.json"
    (place,) = make(path, 1)
    for i in range(total):
        place.add(element(i))
    place.flush()
    size = path.stat().st_size
    kept = numbers(path)[1:]
    per_block = BLOCK_NBYTES // (len(element(1000)) + 2)
    gaps = [i for i, (a, b) in enumerate(zip(sorted(kept), sorted(kept)[1:], strict=False)) if b != a + 1]
    assert place.has_dropped == (len(kept) < total) == (len(gaps) == 1)
    assert place.has_kept_first == (total > 7 * (per_block + 1))
    assert len(kept) >= min(total, 14 * (per_block - 1))
    assert size == ROOM + 2 * BLOCK_NBYTES
    if total:
        assert min(kept) == 0
        assert max(kept) == total - 1
    for gap in gaps:
        assert gap + 1 >= 7 * per_block  # of the first
        assert len(kept) - gap - 1 >= 6 * per_block  # of the last
    place.close()


def test_labels_stay_while_there_is_room_for_them(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    (place,) = make(path, 1)
    for i in range(100):
        place.label([element(-i - 1)])
    for i in range(5000):
        place.add(element(i))
    place.flush()
    place.close()
    labels = [one for one in numbers(path)[1:] if one < 0]
    assert labels == [-i - 1 for i in range(len(labels))]
    assert 30 <= len(labels) < 40


def test_a_place_has_room_for_both_halves() -> None:
    with pytest.raises(ValueError, match="expected 32768 or more"):
        Place(0, 7 * BLOCK_NBYTES)


WRITER = """
import json, pickle, sys
from pathlib import Path
place, path = pickle.loads(bytes.fromhex(sys.argv[1])), Path(sys.argv[2])
place.open(path)
number = 0
while True:
    place.add(json.dumps({"n": number, "text": "x" * (number % 1500)}))
    place.flush()
    number += 1
"""


def test_a_kill_leaves_it_whole(tmp_path: Path) -> None:
    """Two processes write as fast as they can, and are killed one after the other, at any moment."""
    path, draw = tmp_path / "trace.json", random.Random(5)
    for _ in range(5):
        places = create(path, ['"known"'], 2, ROOM)
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, pickle.dumps(place).hex(), str(path)]) for place in places
        ]
        try:
            for i, writer in enumerate(writers):
                wanted = draw.randrange(200, 3000)
                assert until(lambda place=places[i], wanted=wanted: newest(path, place) >= wanted)
                os.kill(writer.pid, signal.SIGKILL)
                assert writer.wait(20) == -signal.SIGKILL
        finally:
            for writer in writers:
                writer.kill()
                writer.wait()
        kept = numbers(path)[1:]
        assert len(kept) > 20
        assert kept.count(0) == 2


def newest(path: Path, place: Place) -> int:
    """Return the highest number in a place that somebody writes to at this moment."""
    with path.open("rb") as file:
        file.seek(place.start)
        lines = file.read(ROOM).split(b"\n,")
    found = [int(line.split(b":")[1].split(b",")[0]) for line in lines if line.startswith(b'{"n": ') and b", " in line]
    return max(found, default=-1)
