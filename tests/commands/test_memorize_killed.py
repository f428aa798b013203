"""`pml memorize` killed at random moments: nothing is lost, the answer is the undisturbed one."""

import json
import os
import random
import signal
import subprocess

import pytest
from support.facts import write_facts
from support.killed import check_equal_runs, check_readable
from support.processes import done_cells, finished_cells, run_pml, start_pml

ROUNDS = int(os.environ.get("PML_KILL_ROUNDS", "4"))
# Seconds from the start to a kill, at most.
LONGEST_WAIT = float(os.environ.get("PML_KILL_SECONDS", "12"))
SEARCH = (
    "memorize",
    "facts.jsonl",
    "model.device=cpu",
    "adapter=mlp_block",
    "rank=2,3,4,6",
    "train.steps=300",
    "train.lr=0.08",
    "launch.checkpoint_minutes=0.005",
)


def outcome(out):
    """What memorize.json says, but for the times and the names of folders."""
    content = json.loads((out / "memorize.json").read_text())
    for name in ("seconds", "out", "command"):
        content.pop(name)
    for cell in content["cells"]:
        cell.pop("seconds")
    content["proof"]["script"].pop("seconds")
    return content


def kill_after(running, seconds):
    """Kill a process after some seconds; whether it was still running."""
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    return running.returncode == -signal.SIGKILL


def check_outcome(out, undisturbed):
    """All is as where nothing was killed, and no run was trained to its end twice."""
    assert outcome(out) == outcome(undisturbed)
    cells = finished_cells(undisturbed)
    assert finished_cells(out) == cells
    for cell in cells:
        check_equal_runs(out / cell, undisturbed / cell)
    assert sorted(cell for ended in done_cells(out) for cell in ended) == cells
    for name in ("adapter_model.safetensors", "README.md"):
        assert (out / "adapter" / name).is_file()


@pytest.mark.slow
def test_killed_at_random_moments_one_more_call_gives_the_same_answer(tmp_path):
    write_facts(tmp_path)
    undisturbed = run_pml(tmp_path, *SEARCH, "out=undisturbed", timeout=900)
    assert undisturbed.returncode == 0, undisturbed.stderr

    rng = random.Random(0)
    folders = 1
    kills = 0
    while kills < ROUNDS:
        out = tmp_path / f"killed-{folders}"
        running = start_pml(tmp_path, *SEARCH, f"out={out.name}", start_new_session=True)
        if kill_after(running, rng.uniform(1, LONGEST_WAIT)):
            kills += 1
            check_readable(out)
        else:
            # It has come to its end in spite of the kills before: another one.
            assert running.returncode == 0
            check_outcome(out, tmp_path / "undisturbed")
            folders += 1

    last = run_pml(tmp_path, *SEARCH, f"out={out.name}", timeout=900)
    assert last.returncode == 0, last.stderr
    check_outcome(out, tmp_path / "undisturbed")
    print(f"{kills} kills in {folders} folders")
