"""SIGKILL at random moments: `PYTHONPATH=tests python -m faults.kills [--rounds N] [--local]`.

Each round begins a sweep of its own, kills it once or twice when a random number of its cells is
done (with --local: the driver, a worker or all), runs the command again and compares every run bit
for bit with an undisturbed one.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.killed import check_equal_runs, check_readable
from support.processes import finished_cells, start_pml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
from faults.rounds import forked, import_everything

CELLS = ("rank=1,2,4", "seqlen=24,36", "train.steps=60", "train.log_every=20", "train.batch=1")
SAVING = ("data=phonebook", "launch.checkpoint_minutes=0.002", "launch.pack_tokens=80")
CELL_COUNT = 6

# Seconds until a round is killed whatever is done.
MAX_WAIT = 90
SWEEP = ("sweep", *CELLS, *SAVING, "model.device=cpu", "out=runs")


def main() -> int:
    """Play the rounds; 1 where a run was lost or differs."""
    parser = argparse.ArgumentParser(prog="python -m faults.kills", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=0, help="no round begins later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--local", action="store_true", help="with two worker processes")
    options = parser.parse_args()
    rng = random.Random(options.seed)

    with tempfile.TemporaryDirectory(prefix="pml-kills-") as name:
        place = Path(name)
        os.environ["PML_CACHE"] = str(place / "cache")
        import_everything()
        begin = time.monotonic()
        assert forked(SWEEP, place / "undisturbed").wait() == 0
        whole = time.monotonic() - begin

        lost = 0
        hits = []
        begin = time.monotonic()
        for number in range(options.rounds):
            if options.minutes and time.monotonic() - begin > 60 * options.minutes:
                break
            play = _local_round if options.local else _inline_round
            try:
                hits.append(play(place, rng, whole))
            except AssertionError as error:
                lost += 1
                print(f"round {number}: {error}", flush=True)
    in_training = sum(0 < done < CELL_COUNT for done in hits)
    print(
        f"{time.strftime('%Y-%m-%d')}: {len(hits) + lost} rounds of SIGKILL "
        f"({'local' if options.local else 'inline'}), lost: {lost}; cells done at the kill: "
        f"mean {statistics.mean(hits or [0]):.1f} of 6, some but not all in {in_training} rounds"
    )
    return int(lost > 0)


def _inline_round(place: Path, rng: random.Random, whole: float) -> int:
    """Kill a sweep once or twice; how many cells were done at the last kill."""
    folder = place / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    for _ in range(rng.choice((1, 2))):
        running = forked(SWEEP, folder)
        _wait(folder, rng, whole)
        running.kill()
        done = _checked(folder)
    assert forked(SWEEP, folder).wait() == 0, "the command given again fails"
    _compare(folder, place / "undisturbed")
    return done


def _local_round(place: Path, rng: random.Random, whole: float) -> int:
    """The same with a driver and two workers."""
    folder = place / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    local = (*SWEEP, "launch=local", "launch.devices=2", "launch.threads=1")
    running = start_pml(folder, *local, start_new_session=True)
    _wait(folder, rng, whole)
    # The driver and a worker are killed by their numbers, all by their session.
    victims = _workers(running.pid)
    choice = rng.choice(("driver", "worker", "all"))
    if choice == "all" or not victims:
        os.killpg(running.pid, signal.SIGKILL)
    else:
        victim = running.pid if choice == "driver" else rng.choice(victims)
        os.kill(victim, signal.SIGKILL)
    done = _checked(folder)
    if choice == "worker":
        # What waits for a lost worker would wait for twenty seconds; a second command helps.
        running.kill()
    running.communicate(timeout=120)
    assert forked(SWEEP, folder).wait() == 0, "the command given again fails"
    _compare(folder, place / "undisturbed")
    return done


def _wait(folder: Path, rng: random.Random, whole: float) -> None:
    """Until a random moment: some cells are done, and a little longer.

    By the clock alone nearly all kills would fall into the start of a busy machine's processes.
    """
    wanted = rng.randrange(CELL_COUNT)
    deadline = time.monotonic() + MAX_WAIT
    out = folder / "runs"
    while time.monotonic() < deadline:
        if not wanted or (out.exists() and len(finished_cells(out)) >= wanted):
            break
        time.sleep(0.01)
    time.sleep(rng.uniform(0, whole / CELL_COUNT))


def _workers(driver: int) -> list[int]:
    """Numbers of the processes that a driver has started."""
    command = ["ps", "--ppid", str(driver), "-o", "pid="]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def _checked(folder: Path) -> int:
    """How many cells are done; whatever lies under its final name is whole."""
    out = folder / "runs"
    if not out.exists():
        return 0
    try:
        check_readable(out)
    except FileNotFoundError:
        # Of a worker that lives on.
        return 0
    return len(finished_cells(out))


def _compare(folder: Path, undisturbed: Path) -> None:
    cells = finished_cells(undisturbed / "runs")
    assert finished_cells(folder / "runs") == cells, "not the same cells"
    for cell in cells:
        check_equal_runs(folder / "runs" / cell, undisturbed / "runs" / cell)


if __name__ == "__main__":
    sys.exit(main())
