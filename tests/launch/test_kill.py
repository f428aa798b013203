"""SIGKILL at random moments, of the whole process group: one more call ends with the undisturbed run's bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("PML_KILL_ROUNDS", "6"))
SWEEP = ("sweep", "rank=2,6", "seqlen=24,40", "data=random,phonebook", "train.batch=2", "adapter.dropout=0.1",
         "model.device=cpu", "launch.pack_tokens=160", "launch.checkpoint_minutes=0.01")  # fmt: skip


def command(*more):
    return [sys.executable, "-m", "pml_cli", *SWEEP, *more]


def environment():
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }


def lost_seconds(out, pid, killed_at):
    """Training time since the last checkpoint of a killed process; None when it had not begun to train."""
    journal = next((out / ".pml" / "journal").glob(f"*-{pid}-*.jsonl"), None)
    if journal is None:
        return None
    events = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    kept = [e["time"] for e in events if e["event"] in ("start", "checkpoint", "done")]
    return killed_at - kept[-1] if kept else None


def check_readable(out):
    """Whatever lies under its final name is whole."""
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    for path in out.rglob("*.parquet"):
        pq.read_metadata(path)
    for path in out.rglob("*.safetensors"):
        if not path.name.startswith("."):
            load_file(path)


@pytest.mark.slow
def test_killed_at_random_moments_one_more_call_gives_the_same_bits(tmp_path):
    steps = f"train.steps={150 * ROUNDS}"
    whole = subprocess.run(
        command(steps, "out=whole"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert whole.returncode == 0, whole.stderr
    rng, lost, out = random.Random(0), [], tmp_path / "killed"
    for _ in range(ROUNDS):
        running = subprocess.Popen(
            command(steps, "out=killed"), cwd=tmp_path, env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(rng.uniform(1, 12))
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        lost += [s for s in [lost_seconds(out, running.pid, time.time())] if s is not None]
        check_readable(out)
    last = subprocess.run(
        command(steps, "out=killed"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert last.returncode == 0, last.stderr
    mean, most = sum(lost) / max(len(lost), 1), max(lost, default=0)
    print(
        f"{ROUNDS} rounds, {len(lost)} in training; work lost by a kill: mean {mean:.2f} s, most {most:.2f} s"
    )
    folders = sorted(
        p.name for p in (tmp_path / "whole").iterdir() if p.is_dir() and p.name != ".pml"
    )
    assert len(folders) == 8
    for name in folders:
        one, two = tmp_path / "whole" / name, out / name
        for table in ("tokens.parquet", "curve.parquet"):
            pd.testing.assert_frame_equal(
                pd.read_parquet(one / table), pd.read_parquet(two / table), check_exact=True
            )
        ours, theirs = (
            load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, two)
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in (*ours, *theirs))
        first, second = (json.loads((folder / "result.json").read_text()) for folder in (one, two))
        assert {k: v for k, v in first.items() if k != "seconds"} == {
            k: v for k, v in second.items() if k != "seconds"
        }
    done = [
        json.loads(line)
        for path in (out / ".pml" / "journal").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    ended = [event["cell"] for event in done if event["event"] == "done"]
    assert sorted(ended) == folders  # none trained to the end twice
    assert not list((out / ".pml" / "checkpoints").glob("*.safetensors"))


def test_two_sweeps_of_one_grid_at_once_train_every_cell_once(tmp_path):
    few = command("train.steps=200", "out=runs")
    both = [
        subprocess.Popen(
            few,
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for running in both:
        said, complained = running.communicate(timeout=120)
        assert running.returncode == 0, complained
        assert "8 of 8 cells done" in said
    journals = [
        path.read_text().splitlines()
        for path in (tmp_path / "runs" / ".pml" / "journal").glob("*.jsonl")
    ]
    ended = [
        [e["cell"] for e in map(json.loads, lines) if e["event"] == "done"] for lines in journals
    ]
    assert sorted(cell for cells in ended for cell in cells) == sorted(
        path.parent.name for path in (tmp_path / "runs").glob("*/result.json")
    )
    assert len(ended) == 2
    assert all(ended)  # they shared the work
