"""SIGKILL of whole process groups at random moments: one more call gives the undisturbed bits."""

import json
import os
import random
import signal
import time

import pytest
from support.killed import check_equal_runs, check_readable
from support.processes import done_cells, finished_cells, run_pml, start_pml, wait_until

ROUNDS = int(os.environ.get("PML_KILL_ROUNDS", "2"))
SWEEP = (
    "sweep",
    "rank=2,6",
    "seqlen=24,40",
    "data=random,phonebook",
    "train.batch=2",
    "adapter.dropout=0.1",
    "model.device=cpu",
    "launch.pack_tokens=160",
    "launch.checkpoint_minutes=0.01",
)


def lost_seconds(out, pid, killed_at):
    """Training time since a killed process's last checkpoint; None: it had not begun to train."""
    journal = next((out / ".pml" / "journal").glob(f"*-{pid}-*.jsonl"), None)
    if journal is None:
        return None

    # The last line may be cut off.
    lines = [line for line in journal.read_text().splitlines() if line.endswith("}")]
    events = [json.loads(line) for line in lines]
    saved = [e["time"] for e in events if e["event"] in ("start", "checkpoint", "done")]
    return killed_at - saved[-1] if saved else None


def wait_before_kill(out, pid, rng, in_training):
    """Wait a random time from the start, or from the first step that is trained."""
    if not in_training:
        time.sleep(rng.uniform(1, 12))
        return
    wait_until(lambda: list((out / ".pml" / "journal").glob(f"*-{pid}-*.jsonl")))
    time.sleep(rng.uniform(0, 4))


@pytest.mark.slow
def test_killed_at_random_moments_one_more_call_gives_the_same_bits(tmp_path):
    steps = f"train.steps={200 * ROUNDS}"
    undisturbed = run_pml(tmp_path, *SWEEP, steps, "out=undisturbed", timeout=900)
    assert undisturbed.returncode == 0, undisturbed.stderr

    rng = random.Random(0)
    out = tmp_path / "killed"
    lost = []
    for round_number in range(ROUNDS):
        running = start_pml(tmp_path, *SWEEP, steps, "out=killed", start_new_session=True)
        wait_before_kill(out, running.pid, rng, in_training=round_number % 2 == 0)
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        seconds = lost_seconds(out, running.pid, time.time())
        if seconds is not None:
            lost.append(seconds)
        check_readable(out)

    assert lost, "no kill hit the training"
    last = run_pml(tmp_path, *SWEEP, steps, "out=killed", timeout=900)
    assert last.returncode == 0, last.stderr
    mean = sum(lost) / max(len(lost), 1)
    print(
        f"{ROUNDS} rounds, {len(lost)} in training; "
        f"work lost by a kill: mean {mean:.2f} s, at most {max(lost, default=0):.2f} s"
    )

    cells = finished_cells(tmp_path / "undisturbed")
    assert len(cells) == 8
    for cell in cells:
        check_equal_runs(out / cell, tmp_path / "undisturbed" / cell)

    # None was trained to its end twice.
    assert sorted(cell for ended in done_cells(out) for cell in ended) == cells
    assert not list((out / ".pml" / "checkpoints").glob("*.safetensors"))


@pytest.mark.slow
def test_lbfgs_killed_once_gives_the_same_bits(tmp_path):
    """It has most to resume: pairs and a line search of each cell; the others: test_trainer.py."""
    sweep = [word for word in SWEEP if "batch" not in word and "dropout" not in word]
    sweep += ["train.steps=300", "train.optimizer=lbfgs"]
    undisturbed = run_pml(tmp_path, *sweep, "out=undisturbed", timeout=300)
    assert undisturbed.returncode == 0, undisturbed.stderr

    out = tmp_path / "killed"
    running = start_pml(tmp_path, *sweep, "out=killed", start_new_session=True)
    wait_until(lambda: list((out / ".pml" / "checkpoints").glob("*.safetensors")))
    # Past the warm-up.
    time.sleep(2)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert len(finished_cells(out)) < 8, "the kill came too late"

    last = run_pml(tmp_path, *sweep, "out=killed", timeout=300)
    assert last.returncode == 0, last.stderr
    for cell in finished_cells(tmp_path / "undisturbed"):
        check_equal_runs(out / cell, tmp_path / "undisturbed" / cell)


@pytest.mark.slow
def test_two_sweeps_of_one_grid_at_the_same_time_train_every_cell_once(tmp_path):
    sweeps = [start_pml(tmp_path, *SWEEP, "train.steps=200", "out=runs") for _ in range(2)]
    for running in sweeps:
        output, errors = running.communicate(timeout=400)
        assert running.returncode == 0, errors
        assert "8 of 8 cells done" in output

    by_process = done_cells(tmp_path / "runs")
    trained = sorted(cell for cells in by_process for cell in cells)
    assert trained == finished_cells(tmp_path / "runs")
    assert len(by_process) == 2
    assert all(by_process), "they shared the work"
