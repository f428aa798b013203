"""48 cells over four workers on a real Slurm, disturbed in every way that a cluster knows: each time all results, each cell
trained to its end once, and the numbers of an undisturbed run in one process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from support.executors import check_executor

from pml_cli.launch.executors.slurm import SlurmLaunch

ROOT = Path(__file__).parents[2]
CELLS = (
    "rank=1,2,4,8,12,16",
    "seqlen=24,32,40,48",
    "seed=0,1",
    "model.device=cpu",
    "launch.pack_tokens=240",
)
SLURM = (
    "launch=slurm",
    "launch.partition=low",
    "launch.devices=4",
    "launch.cpus=1",
    "launch.time=30",
)
STEPS = 600
EVERYWHERE = bool(
    os.environ.get("PML_ALL_SITES")
)  # else each disturbance is tried on one kind of site, in turn
FEW = ("sweep", "rank=2", "seqlen=8", "train.steps=2", "out=runs")


def environment():
    known = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }
    return os.environ | known | {"OMP_WAIT_POLICY": "PASSIVE"}


def pml(cwd, *args):
    words = [sys.executable, "-m", "pml_cli", *map(str, args)]
    return subprocess.run(
        words, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=900, check=False
    )


def sweep(cwd, *more):
    """The sweep in a process of its own, waiting for its workers."""
    words = (
        "sweep",
        *CELLS,
        *SLURM,
        f"train.steps={STEPS}",
        "launch.checkpoint_minutes=0.03",
        "out=runs",
        "--wait",
        *more,
    )
    return subprocess.Popen(
        [sys.executable, "-m", "pml_cli", *words], cwd=cwd, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def status(cwd):
    done = pml(cwd, "status", "runs", "--json")
    return (
        json.loads(done.stdout)
        if done.returncode in (0, 1) and done.stdout
        else {"running": [], "done": 0, "queued": 0}
    )


def until_training(cwd, workers=2, seconds=120):
    """Wait until so many workers are between two steps; their records."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        training = [
            one for one in status(cwd)["running"] if one["kind"] == "slurm" and one["step"] > 0
        ]
        if len(training) >= workers:
            return training
        time.sleep(0.3)
    raise AssertionError(f"no {workers} workers in training: {status(cwd)}")


@contextmanager
def standing_still(workers):
    """Workers stopped in the middle of a pack: on a fast machine too, work is left when the others come back."""
    for one in workers:
        os.kill(one["pid"], signal.SIGSTOP)
    try:
        yield
    finally:
        for one in workers:
            with suppress(ProcessLookupError):
                os.kill(one["pid"], signal.SIGCONT)


@contextmanager
def slowed(out, enough):
    """Workers in training run a tenth of the time alone, until `enough()`: a limit is hit on a fast machine too."""
    ended = threading.Event()

    def slow():
        while not ended.is_set() and not enough():
            held = [
                r["pid"] for r in workers(out) if r["state"] == "running" and r["doing"].get("step")
            ]
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in held:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                ended.wait(0.9 if number == signal.SIGSTOP else 0.1)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def on(*sites):
    """The sites of a test: those named, or both kinds where that is asked for."""
    both = ["plain", "accounting"] if EVERYWHERE else []
    return pytest.mark.parametrize("site", list(dict.fromkeys([*both, *sites])), indirect=True)


def workers(out):
    """What each worker has last written of itself."""
    records = (json.loads(path.read_text()) for path in (out / ".pml" / "workers").glob("*.json"))
    return [record for record in records if record["kind"] == "slurm"]


def restarts(out):
    """How often Slurm had started the job of each worker before."""
    return sorted(record["slurm"]["restart"] for record in workers(out))


def journal(out):
    lines = (
        line
        for path in (out / ".pml" / "journal").glob("*.jsonl")
        for line in path.read_text().splitlines()
    )
    return sorted((json.loads(line) for line in lines), key=lambda event: event["time"])


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The same cells trained in one process, without a cluster."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    done = pml(cwd, "sweep", *CELLS, f"train.steps={STEPS}", "out=runs")
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd / "runs"


def check(out, whole, running=None):
    """All 48 results, none trained to its end twice, each as in the undisturbed run; returns how many have the same bits."""
    if running is not None:
        said, _ = running.communicate(timeout=1500)  # minutes on a quiet machine
        assert running.returncode == 0, said
    names = sorted(path.parent.name for path in whole.glob("*/result.json"))
    assert len(names) == 48
    assert sorted(path.parent.name for path in out.glob("*/result.json")) == names
    assert sorted(event["cell"] for event in journal(out) if event["event"] == "done") == names
    same = 0
    for name in names:
        one, two = (pd.read_parquet(folder / name / "tokens.parquet") for folder in (whole, out))
        ours, theirs = (
            load_file(folder / name / "adapter" / "adapter_model.safetensors")
            for folder in (whole, out)
        )
        if one.equals(two) and all(np.array_equal(ours[key], theirs[key]) for key in ours):
            same += 1
            continue
        sizes = [
            json.loads((folder / name / "result.json").read_text())["pack_size"]
            for folder in (whole, out)
        ]
        assert sizes[0] != sizes[1], f"{name}: other bits in the same pack"
        np.testing.assert_allclose(
            one["nll"], two["nll"], atol=2e-2
        )  # after so many steps in float32
    assert not list((out / ".pml" / "checkpoints").glob("*.safetensors"))
    print(f"{same} of 48 with the same bits")
    return same


@on("accounting")
def test_a_sweep_over_four_workers(slurm, tmp_path, undisturbed):
    running = sweep(tmp_path)
    training = until_training(tmp_path)
    assert {one["job"].count("_") for one in training} == {1}  # tasks of one array
    assert check(tmp_path / "runs", undisturbed, running) == 48
    started = {
        event["cells"][0] for event in journal(tmp_path / "runs") if event["event"] == "start"
    }
    assert len(started) >= 8
    assert len(list((tmp_path / "runs" / ".pml" / "jobs").glob("*.json"))) == 1
    again = pml(tmp_path, "sweep", *CELLS, *SLURM, f"train.steps={STEPS}", "out=runs", "--wait")
    assert "48 cells: 0 to train" in again.stdout
    slurm.wait(lambda: not slurm.states())  # workers take a moment to leave


@on("plain")
def test_a_killed_worker(slurm, tmp_path, undisturbed):
    running = sweep(tmp_path)
    victim = until_training(tmp_path)[0]
    os.kill(victim["pid"], signal.SIGKILL)
    check(tmp_path / "runs", undisturbed, running)
    events = journal(tmp_path / "runs")
    assert any(
        event["event"] == "take_over" and event["dead"] == victim["name"] for event in events
    )


@on("accounting")
def test_a_job_requeued_from_outside(slurm, tmp_path, undisturbed):
    running = sweep(tmp_path)
    victim, *others = until_training(tmp_path)
    with standing_still(others):
        slurm.run("scontrol", "requeue", victim["job"])
        slurm.wait(lambda: 1 in restarts(tmp_path / "runs"), 180)
    check(tmp_path / "runs", undisturbed, running)
    assert max(restarts(tmp_path / "runs")) == 1


@on("plain", "sigterm")
def test_a_preemption(slurm, tmp_path, undisturbed):
    running = sweep(tmp_path)
    training = until_training(tmp_path, workers=3)  # of two nodes with two workers each
    there = slurm.tasks("n1")
    assert there
    with standing_still([one for one in training if one["job"] not in there]):
        slurm.submit("sleep 5", "-p", "high", "-w", "n1", "--exclusive", "-o", "/dev/null")
        slurm.wait(lambda: 1 in restarts(tmp_path / "runs"), 180)
    check(tmp_path / "runs", undisturbed, running)


@on("plain")
def test_a_restarted_controller(slurm, tmp_path, undisturbed):
    running = sweep(tmp_path)
    until_training(tmp_path)
    slurm.stop_controller()
    assert "does not answer" in pml(tmp_path, "status", "runs").stdout
    time.sleep(3)
    slurm.start_controller()
    check(tmp_path / "runs", undisturbed, running)


@on("plain")
def test_a_time_limit_hit_three_times(slurm, tmp_path, undisturbed):
    limit = ("launch.devices=1", "launch.time=1", "launch.signal_seconds=25")
    words = [
        word
        for word in SLURM
        if word.partition("=")[0] not in {one.partition("=")[0] for one in limit}
    ]
    command = ("sweep", *CELLS, *words, *limit, f"train.steps={STEPS}", "out=runs", "--wait")
    running = subprocess.Popen(
        [sys.executable, "-m", "pml_cli", *command], cwd=tmp_path, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with slowed(tmp_path / "runs", lambda: max(restarts(tmp_path / "runs"), default=0) >= 3):
        check(tmp_path / "runs", undisturbed, running)
    events = journal(tmp_path / "runs")
    assert max(restarts(tmp_path / "runs")) >= 3
    assert (
        len({event["step"] for event in events if event["event"] == "start"}) > 1
    )  # went on from the middle


@pytest.mark.parametrize("site", ["short-arrays"], indirect=True)
def test_submit_leave_look_cancel_and_go_on(slurm, tmp_path, undisturbed):
    """Four tasks where arrays may have three: two arrays."""
    words = (
        "sweep",
        *CELLS,
        *SLURM,
        f"train.steps={STEPS}",
        "launch.checkpoint_minutes=0.03",
        "out=runs",
    )
    done = pml(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 Slurm jobs started" in done.stdout
    assert len(list((tmp_path / "runs" / ".pml" / "jobs").glob("*.json"))) == 2
    again = pml(tmp_path, *words)
    assert (
        "0 Slurm jobs started; those of this folder that are queued or running go on"
        in again.stdout
    )
    until_training(tmp_path)
    other = slurm.submit("sleep 300", "-p", "low", "-o", "/dev/null", "--job-name=pml-other")
    cancelled = pml(tmp_path, "cancel", "runs")
    assert cancelled.returncode == 0, cancelled.stderr
    slurm.wait(lambda: len(slurm.states()) == 1)
    assert slurm.states(other) in (["RUNNING"], ["PENDING"])  # nothing else was touched
    assert "the same sweep command goes on" in pml(tmp_path, "status", "runs").stdout
    check(tmp_path / "runs", undisturbed, sweep(tmp_path))


@pytest.mark.parametrize("site", ["plain"], indirect=True)
def test_what_the_cluster_refuses_is_one_line(slurm, tmp_path):
    done = pml(tmp_path, *FEW, "launch=slurm", "launch.partition=nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: launch=slurm: ")
    assert "partition" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("site", ["plain"], indirect=True)
def test_a_worker_that_cannot_start_ends_the_wait(slurm, tmp_path):
    done = pml(tmp_path, *FEW, *SLURM, "launch.python=/nowhere/python", "--wait")
    assert done.returncode == 1, done.stdout
    assert "the workers ended too early" in done.stdout
    assert "/nowhere/python" in done.stdout


@pytest.mark.parametrize("site", ["plain"], indirect=True)
def test_what_every_executor_does(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    check_executor(SlurmLaunch(devices=1, partition="low", gpus=0, cpus=1, time=30), tmp_path)
