"""48 cells over four workers on a real Slurm, disturbed in every way that a cluster knows.

Each time: all results, each cell trained to its end once, and the numbers of an undisturbed run in
one process.
"""

import json
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from support.executors import check_executor
from support.processes import (
    ROOT,
    finished_cells,
    journals,
    run_pml,
    start_pml,
    status,
    worker_records,
)

from pml_cli.launch.executors.slurm import SlurmLaunch

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
OFTEN = "launch.checkpoint_minutes=0.03"
STEPS = 600
FEW = ("sweep", "rank=2", "seqlen=8", "train.steps=2", "out=runs")

# Else each disturbance is tried on one kind of site, in turn.
ON_EVERY_SITE = bool(os.environ.get("PML_ALL_SITES"))


def pml(cwd, *arguments):
    return run_pml(cwd, *arguments, timeout=900)


def start_sweep(cwd, *launch):
    """The sweep in a process of its own, waiting for its workers."""
    steps = f"train.steps={STEPS}"
    return start_pml(cwd, "sweep", *CELLS, *(launch or SLURM), steps, OFTEN, "out=runs", "--wait")


def wait_for_training(cwd, workers=2, seconds=120):
    """Wait until so many workers are between two steps; their records."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        snapshot = status(cwd)
        running = snapshot["running"] if snapshot else []
        training = [
            process for process in running if process["kind"] == "slurm" and process["step"] > 0
        ]
        if len(training) >= workers:
            return training
        time.sleep(0.3)
    raise AssertionError(f"no {workers} workers in training: {status(cwd)}")


def send_signal(pid, number):
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def stopped(workers):
    """Workers stopped in the middle of a pack.

    On a fast machine too, work is left when the others come back.
    """
    for worker in workers:
        os.kill(worker["pid"], signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            send_signal(worker["pid"], signal.SIGCONT)


@contextmanager
def slowed(out, is_enough):
    """Workers in training run only a tenth of the time, until `is_enough()`.

    So a time limit is hit on a fast machine too.
    """
    ended = threading.Event()

    def slow():
        while not ended.is_set() and not is_enough():
            training = []
            for record in worker_records(out, "slurm"):
                if record["state"] == "running" and record["doing"].get("step"):
                    training.append(record["pid"])
            for number, seconds in ((signal.SIGSTOP, 0.9), (signal.SIGCONT, 0.1)):
                for pid in training:
                    send_signal(pid, number)
                ended.wait(seconds)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def on(*sites):
    """The sites of a test: those named, or both kinds where that is requested."""
    both = ["plain", "accounting"] if ON_EVERY_SITE else []
    return pytest.mark.parametrize("site", list(dict.fromkeys([*both, *sites])), indirect=True)


def restarts(out):
    """How often Slurm had started the job of each worker before."""
    return sorted(record["slurm"]["restart"] for record in worker_records(out, "slurm"))


def events(out, kind):
    """The events of a kind, of all processes, by time."""
    found = [event for journal in journals(out) for event in journal if event["event"] == kind]
    return sorted(found, key=lambda event: event["time"])


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The same cells trained in one process, without a cluster."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    trained = pml(cwd, "sweep", *CELLS, f"train.steps={STEPS}", "out=runs")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    return cwd / "runs"


def check(out, undisturbed, driver):
    """All 48 results, none trained to its end twice, each as in the undisturbed run.

    Returns:
        how many have the same bits.
    """
    output, errors = driver.communicate(timeout=1500)
    assert driver.returncode == 0, output + errors

    names = finished_cells(undisturbed)
    assert len(names) == 48
    assert finished_cells(out) == names
    assert sorted(event["cell"] for event in events(out, "done")) == names
    assert not list((out / ".pml" / "checkpoints").glob("*.safetensors"))

    same = sum(has_same_bits(out / name, undisturbed / name) for name in names)
    print(f"{same} of 48 with the same bits")
    return same


def has_same_bits(folder, reference):
    """Whether a run has the bits of the reference; where it was packed otherwise, close numbers."""
    tokens = pd.read_parquet(folder / "tokens.parquet")
    expected = pd.read_parquet(reference / "tokens.parquet")
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    expected_weights = load_file(reference / "adapter" / "adapter_model.safetensors")
    same_weights = all(np.array_equal(weights[key], expected_weights[key]) for key in weights)
    if tokens.equals(expected) and same_weights:
        return True

    results = [json.loads((path / "result.json").read_text()) for path in (folder, reference)]
    sizes = [result["pack_size"] for result in results]
    assert sizes[0] != sizes[1], f"{folder.name}: other bits in the same pack"
    # after so many steps in float32
    np.testing.assert_allclose(tokens["nll"], expected["nll"], atol=2e-2)
    return False


@on("accounting")
def test_a_sweep_over_four_workers(slurm, tmp_path, undisturbed):
    driver = start_sweep(tmp_path)
    training = wait_for_training(tmp_path)
    # tasks of one array
    assert {worker["job"].count("_") for worker in training} == {1}
    assert check(tmp_path / "runs", undisturbed, driver) == 48

    first_cells = {event["cells"][0] for event in events(tmp_path / "runs", "start")}
    assert len(first_cells) >= 8
    assert len(list((tmp_path / "runs" / ".pml" / "jobs").glob("*.json"))) == 1
    second = pml(tmp_path, "sweep", *CELLS, *SLURM, f"train.steps={STEPS}", "out=runs", "--wait")
    assert "48 cells: 0 to train" in second.stdout
    # workers take a moment to leave
    slurm.wait(lambda: not slurm.states())


@on("plain")
def test_a_killed_worker(slurm, tmp_path, undisturbed):
    driver = start_sweep(tmp_path)
    victim = wait_for_training(tmp_path)[0]
    os.kill(victim["pid"], signal.SIGKILL)
    check(tmp_path / "runs", undisturbed, driver)
    taken_over = [event["dead"] for event in events(tmp_path / "runs", "take_over")]
    assert victim["name"] in taken_over


@on("accounting")
def test_a_job_requeued_from_outside(slurm, tmp_path, undisturbed):
    driver = start_sweep(tmp_path)
    victim, *others = wait_for_training(tmp_path)
    with stopped(others):
        slurm.run("scontrol", "requeue", victim["job"])
        slurm.wait(lambda: 1 in restarts(tmp_path / "runs"), 180)
    check(tmp_path / "runs", undisturbed, driver)
    assert max(restarts(tmp_path / "runs")) == 1


@on("plain", "sigterm")
def test_a_preemption(slurm, tmp_path, undisturbed):
    driver = start_sweep(tmp_path)
    # of two nodes with two workers each
    wait_for_training(tmp_path, workers=3)
    assert slurm.tasks("n1")

    # Else a fast machine trains all that is left in the seconds of grace after SIGTERM.
    with slowed(tmp_path / "runs", lambda: 1 in restarts(tmp_path / "runs")):
        slurm.submit("sleep 5", "-p", "high", "-w", "n1", "--exclusive", "-o", "/dev/null")
        slurm.wait(lambda: 1 in restarts(tmp_path / "runs"), 180)
    check(tmp_path / "runs", undisturbed, driver)


@on("plain")
def test_a_restarted_controller(slurm, tmp_path, undisturbed):
    driver = start_sweep(tmp_path)
    wait_for_training(tmp_path)
    slurm.stop_controller()
    assert "does not answer" in pml(tmp_path, "status", "runs").stdout
    time.sleep(3)
    slurm.start_controller()
    check(tmp_path / "runs", undisturbed, driver)


@on("plain")
def test_a_time_limit_hit_three_times(slurm, tmp_path, undisturbed):
    limit = ("launch.devices=1", "launch.time=1", "launch.signal_seconds=25")
    limited = {setting.partition("=")[0] for setting in limit}
    launch = [setting for setting in SLURM if setting.partition("=")[0] not in limited]
    out = tmp_path / "runs"
    driver = start_sweep(tmp_path, *launch, *limit)
    with slowed(out, lambda: max(restarts(out), default=0) >= 3):
        check(out, undisturbed, driver)
    assert max(restarts(out)) >= 3
    # resumed from the middle of packs
    assert len({event["step"] for event in events(out, "start")}) > 1


@pytest.mark.parametrize("site", ["short-arrays"], indirect=True)
def test_submit_leave_look_cancel_and_resume(slurm, tmp_path, undisturbed):
    """Four tasks where arrays may have three: two arrays."""
    submit = ("sweep", *CELLS, *SLURM, f"train.steps={STEPS}", OFTEN, "out=runs")
    submitted = pml(tmp_path, *submit)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "4 Slurm jobs started" in submitted.stdout
    assert len(list((tmp_path / "runs" / ".pml" / "jobs").glob("*.json"))) == 2

    with stopped(wait_for_training(tmp_path)):
        second = pml(tmp_path, *submit)
        foreign = slurm.submit("sleep 300", "-p", "low", "-o", "/dev/null", "--job-name=pml-other")
        cancelled = pml(tmp_path, "cancel", "runs")
    message = "0 Slurm jobs started; those of this folder that are queued or running go on"
    assert message in second.stdout
    assert cancelled.returncode == 0, cancelled.stderr
    slurm.wait(lambda: len(slurm.states()) == 1)
    # nothing else was touched
    assert slurm.states(foreign) in (["RUNNING"], ["PENDING"])
    assert "the same sweep command goes on" in pml(tmp_path, "status", "runs").stdout
    check(tmp_path / "runs", undisturbed, start_sweep(tmp_path))


@pytest.mark.parametrize("site", ["plain"], indirect=True)
def test_what_the_cluster_refuses_is_one_line(slurm, tmp_path):
    refused = pml(tmp_path, *FEW, "launch=slurm", "launch.partition=nowhere")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: launch=slurm: ")
    assert "partition" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("site", ["plain"], indirect=True)
def test_a_worker_that_cannot_start_ends_the_wait(slurm, tmp_path):
    failed = pml(tmp_path, *FEW, *SLURM, "launch.python=/nowhere/python", "--wait")
    assert failed.returncode == 1, failed.stdout
    assert "the workers ended too early" in failed.stdout
    assert "/nowhere/python" in failed.stdout


@pytest.mark.parametrize("site", ["plain"], indirect=True)
def test_what_every_executor_does(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    check_executor(SlurmLaunch(devices=1, partition="low", gpus=0, cpus=1, time=30), tmp_path)
