"""Kills, one after the other, in one run whose members are replaced: its versions must be those of a quiet run.

Members, and processes that prepare to be members, are killed at random, by a seed: one when all are there, now and then
another one while the run recovers or a newcomer comes in. When there were as many kills as asked for, the run is
stopped, one rank trains as many steps undisturbed, and the digests of all versions are compared. The table says how
long it took from the version before a death or a join to the one after, and over the start of a process that came to
the model (the members wait for that); `beyond_step_s` leaves out a usual step. Below, the longest pauses of all, with
all that happened in them and in the second before.

    python benchmarks/soak.py [--kills N] [--seed N] [--json FILE] [--quick]         not under mpiexec; Open MPI
"""

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import Row, arguments, publish
from struck_run import StruckRun, kill

MEMBERS = 4
UNIT_SECONDS = 0.01
ANOTHER = 0.3
WORST = 5
LEAD_SECONDS = 1.0


def strike(run: StruckRun, kills: int, seed: int) -> int:
    """Kill processes of `run`; return how many."""
    draw = random.Random(seed)
    done = 0
    while done < kills:
        if not run.wait_for(MEMBERS):
            return done
        for seconds in [1.0, *([4.0] if draw.random() < ANOTHER and done + 1 < kills else [])]:
            time.sleep(draw.uniform(0, seconds))
            victims = run.processes()
            if len(run.members()) > 1 and len(victims) > 1:
                victim = draw.choice(victims)
                run.note(f"process {victim.pid} is killed")
                kill(victim)
                done += 1
        # What was struck down has been noticed when somebody goes on.
        before = len(run.versions)
        while run.running and len(run.versions) < before + 2:
            time.sleep(0.01)
    run.wait_for(MEMBERS)
    return done


def rows_of(run: StruckRun) -> list[Row]:
    """Return a row for usual steps, and one for those with each kind of event."""
    kinds = {
        "step": [pause.seconds for pause in run.pauses if pause.is_usual],
        "death": [pause.seconds for pause in run.pauses if "death" in pause.events],
        "start": [pause.seconds for pause in run.pauses if run.started_in(pause)],
        "join": [pause.seconds for pause in run.pauses if "join" in pause.events],
    }
    step = statistics.median(kinds["step"])
    return [
        Row(name, "pause", 0, MEMBERS, times, {"worst_s": max(times), "beyond_step_s": statistics.median(times) - step})
        for name, times in kinds.items()
        if times
    ]


def worst(run: StruckRun) -> list[str]:
    """Return lines that tell of the longest pauses."""
    lines = []
    for pause in sorted(run.pauses, key=lambda pause: -pause.seconds)[:WORST]:
        computed = ", ".join(f"{member}: {did['seconds']:.2f} s" for member, did in pause.after.members.items())
        lines.append(f"{pause.seconds:.2f} s before version {pause.after.line['version']}; members computed {computed}")
        lines += [
            f"    {moment.at - pause.before.at:+.2f} s  {moment.text}"
            for moment in sorted(run.moments, key=lambda moment: moment.at)
            if pause.before.at - LEAD_SECONDS <= moment.at <= pause.after.at
        ]
    return lines


def main() -> None:
    """Measure, compare, and publish."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, metavar="N", help="how many (100; with --quick 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of who is killed, and when")
    options = parser.parse_args()
    kills = options.kills or (2 if options.quick else 100)
    with tempfile.TemporaryDirectory() as folder:
        with StruckRun(Path(folder, "struck"), MEMBERS, UNIT_SECONDS) as run:
            done = strike(run, kills, options.seed)
            full = len(run.members()) == MEMBERS
            if run.running:
                run.stop()
        struck = [one.line["digest"] for one in run.versions]
        with StruckRun(Path(folder, "quiet"), 1, 0.0, steps=max(1, len(struck))) as quiet:
            pass
        same = struck == [one.line["digest"] for one in quiet.versions]
        verified = subprocess.run(
            [sys.executable, "-m", "hpcvol.cli", "verify", str(run.run_dir)],
            capture_output=True,
            text=True,
            check=False,
        )
    joins = sum("join" in pause.events for pause in run.pauses)
    print(f"{done} kills, {len(struck)} versions, {joins} joins; same digests: {same}")
    publish("soak", rows_of(run), options.json)
    print("The longest pauses:", *worst(run), sep="\n")
    if done < kills or not full or not same or verified.returncode:
        print(run.output[-5000:], verified.stdout, verified.stderr, sep="\n")
        raise SystemExit(f"soak: {done} of {kills} kills, all members back: {full}, same digests: {same}")


if __name__ == "__main__":
    main()
