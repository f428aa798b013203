"""Executors: this process and processes of this machine; Slurm's is tested in tests/cluster."""

import json
import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
from support.executors import check_executor
from support.processes import (
    command,
    done_cells,
    environment,
    finished_cells,
    run_pml,
    start_pml,
    status,
    wait_until,
    worker_records,
)

from pml_cli.config.registry import declared
from pml_cli.config.schema import Model, Run
from pml_cli.config.setting import faults
from pml_cli.launch.executors import base
from pml_cli.launch.executors import slurm as slurm_executor
from pml_cli.launch.executors.base import SweepJob, WorkerPool, last_log_line
from pml_cli.launch.executors.inline import InlineLaunch
from pml_cli.launch.executors.local import LocalLaunch
from pml_cli.launch.executors.slurm import SlurmLaunch, sbatch_reason
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.manifest import SweepManifest
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.launch.slurm import Job

SWEEP = (
    "sweep",
    "rank=1,2,4",
    "seqlen=12,16,20",
    "model.device=cpu",
    "launch.pack_tokens=60",
    "out=runs",
)
TWO_PROCESSES = ("launch=local", "launch.devices=2")


@pytest.mark.parametrize(
    "launch",
    [InlineLaunch(), pytest.param(LocalLaunch(devices=1, threads=1), marks=pytest.mark.slow)],
)
def test_what_every_executor_does(launch, tmp_path):
    check_executor(launch, tmp_path)


def test_every_launch_has_an_executor():
    assert {"inline", "local", "slurm"} <= set(declared("launch"))


def test_the_last_line_of_the_logs(tmp_path):
    logs = tmp_path / ".pml" / "logs"
    assert last_log_line(tmp_path) == str(logs)
    logs.mkdir(parents=True)
    (logs / "1.err").write_text(
        "python: not found\nsrun: error: task 0: Exited with exit code 2\n\n"
    )
    assert last_log_line(tmp_path) == f"python: not found ({logs / '1.err'})"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (LocalLaunch(devices=-1), "launch.devices=-1: must be at least 0"),
        (SlurmLaunch(time=0), "launch.time=0: must be at least 1"),
        (
            SlurmLaunch(time=1, signal_seconds=60),
            "launch.signal_seconds=60: must be below the time limit (1 min)",
        ),
        (SlurmLaunch(mem_gb=0), "launch.mem_gb=0: must be null or above 0 and finite"),
        (InlineLaunch(stale_seconds=1), "launch.stale_seconds=1: must be at least 5"),
        (
            InlineLaunch(checkpoint_minutes=-1),
            "launch.checkpoint_minutes=-1: must be at least 0",
        ),
    ],
)
def test_bad_settings_are_named(settings, line):
    assert any(fault.startswith(line) for fault in faults(settings, "launch."))


def test_what_sbatch_says_is_one_line():
    output = (
        "sbatch: error: invalid partition specified: nowhere\nsbatch: error: Batch job failed\n"
    )
    assert sbatch_reason(output) == "invalid partition specified: nowhere; Batch job failed"
    assert sbatch_reason("no srun\n") == "no srun"
    assert sbatch_reason("") == "refused"


def test_without_slurm_one_line_says_so(tmp_path):
    without_slurm = environment(PATH=str(tmp_path))
    refused = run_pml(
        tmp_path, "sweep", "rank=1", "seqlen=8", "launch=slurm", "out=runs", env=without_slurm
    )
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: launch=slurm: no sbatch here; use a login node, or launch=local or launch=inline\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_dry_run_shows_the_batch_script_without_slurm(tmp_path):
    """Of a user's own options, which need not say again that launch/slurm.yaml is of Slurm."""
    options = tmp_path / "conf/launch"
    options.mkdir(parents=True)
    (options / "slurm.yaml").write_text("partition: mine\ndevices: 2\n")
    cells = ("rank=1,2,3", "seqlen=8", "train.steps=3,4", "out=runs")
    shown = run_pml(
        tmp_path,
        "sweep",
        *cells,
        "launch=slurm",
        "--config-dir=conf",
        "--dry-run",
        env=environment(PATH=str(tmp_path)),
    )
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert "#SBATCH --partition=mine" in lines
    assert "#SBATCH --array=0-1%2" in lines
    assert any("pml_cli.launch.worker" in line for line in lines)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_give_the_results_of_one(tmp_path):
    shared = run_pml(tmp_path, *SWEEP, "train.steps=300", *TWO_PROCESSES)
    assert shared.returncode == 0, shared.stdout + shared.stderr
    assert "2 processes started" in shared.stdout
    assert "9 of 9 cells done" in shared.stdout

    trained = [cell for cells in done_cells(tmp_path / "runs") for cell in cells]
    assert sorted(trained) == finished_cells(tmp_path / "runs")

    (tmp_path / "alone").mkdir()
    alone = run_pml(tmp_path / "alone", *SWEEP, "train.steps=300")
    assert alone.returncode == 0, alone.stderr
    for path in (tmp_path / "runs").glob("*/tokens.parquet"):
        reference = tmp_path / "alone" / "runs" / path.parent.name / path.name
        assert path.read_bytes() == reference.read_bytes()


def trains(tmp_path):
    """Whether a process has taken a step."""
    # None: there is no folder yet.
    snapshot = status(tmp_path) or {"running": []}
    return any(process["step"] for process in snapshot["running"])


@pytest.mark.slow
def test_an_interrupted_driver_ends_its_workers_and_they_save_checkpoints(tmp_path):
    driver = start_pml(tmp_path, *SWEEP, "train.steps=200000", *TWO_PROCESSES)
    # Before the first step there is nothing to save.
    assert wait_until(lambda: trains(tmp_path), 120, pause=1)
    driver.send_signal(signal.SIGINT)
    output, errors = driver.communicate(timeout=90)
    assert driver.returncode == 130, output + errors
    assert "the same command goes on" in output
    assert "Traceback" not in errors

    assert list((tmp_path / "runs" / ".pml" / "checkpoints").glob("*.safetensors"))
    snapshot = status(tmp_path)
    assert (snapshot["running"], snapshot["queued"]) == ([], 9)


@pytest.mark.slow
def test_workers_that_are_still_starting_end_too(tmp_path):
    """Ctrl-C while they import torch."""
    driver = start_pml(tmp_path, *SWEEP, "train.steps=200000", *TWO_PROCESSES)
    while "started" not in driver.stdout.readline():
        pass
    driver.send_signal(signal.SIGINT)
    output, errors = driver.communicate(timeout=120)
    assert driver.returncode == 130, output + errors

    # The driver waits half a minute; workers on a busy machine take longer.
    wait_until(lambda: not status(tmp_path)["running"], 120, pause=1)
    paths = (tmp_path / "runs" / ".pml" / "workers").glob("*.json")
    assert all('"state": "ended"' in path.read_text() for path in paths)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path):
    driver = start_pml(tmp_path, *SWEEP, "train.steps=3000", *TWO_PROCESSES)

    def training():
        records = worker_records(tmp_path / "runs", "local")
        return [record for record in records if record["doing"].get("step")]

    wait_until(lambda: len(training()) >= 2)
    os.kill(training()[0]["pid"], signal.SIGKILL)
    output, errors = driver.communicate(timeout=900)
    assert driver.returncode == 0, output + errors
    assert "9 of 9 cells done" in output


class CountingPool(WorkerPool):
    """A pool of three for some packs, which counts the workers that are started.

    Those of the snapshot have a lease, with or without a pack; the others start up.
    """

    def __init__(self, out, packs):
        manifest = SimpleNamespace(key="sweep")
        job = SimpleNamespace(out=out, manifest=manifest, failed_cells=frozenset)
        super().__init__(job, LocalLaunch(), size=3)
        self.packs = packs
        self.alive = 0
        self.started = 0

    def free_packs(self, snapshot):
        busy = {name for process in snapshot.running for name in process.cells}
        return [pack for pack in self.packs if pack not in busy]

    def start(self, packs):
        self.started += len(packs)
        self.alive += len(packs)
        return len(packs)

    def count_workers(self):
        return self.alive

    def count_waiting(self, snapshot):
        return self.alive - sum(bool(process.cells) for process in snapshot.running)

    def describe(self, count):
        return f"{count} workers"

    def interrupted(self, stopped):
        return ""


def look_at_workers(*claimed):
    """A snapshot of workers, each with the cells that it has claimed."""
    running = [
        SimpleNamespace(kind="local", order="sweep", cells=cells, trains=True) for cells in claimed
    ]
    return SimpleNamespace(running=running, training=running, done=[], failed={})


def test_workers_that_start_up_are_not_doubled_and_a_dead_one_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "SETTLE_SECONDS", -1.0)
    pool = CountingPool(tmp_path, ["a", "b"])
    restarts = base._Restarts(pool)
    pool.alive = 2
    # Both import torch; then one has claimed a pack; then the other too, and loads its model.
    for snapshot in (look_at_workers(), look_at_workers([], ["a"]), look_at_workers(["b"], ["a"])):
        assert restarts.start_missing(snapshot)
        assert pool.started == 0

    pool.alive = 1
    assert restarts.start_missing(look_at_workers(["a"]))
    assert pool.started == 1

    # However long the loading takes, the launches of workers that live are not futile.
    for _ in range(5):
        assert restarts.start_missing(look_at_workers(["a"], []))
    assert pool.started == 1
    for expected in (2, 3):
        pool.alive -= 1
        assert restarts.start_missing(look_at_workers(["a"]))
        assert pool.started == expected

    # All are dead, and none of the last launches has brought anything.
    pool.alive = 0
    assert not restarts.start_missing(look_at_workers())


def test_local_workers_that_hold_a_pack_are_told_from_those_that_wait(tmp_path):
    cells = check([Run(rank=rank, seqlen=8, model=Model(device="cpu")) for rank in (1, 2)])
    packs = make_packs(cells, Packing(pack_tokens=8))
    manifest = SweepManifest.write(tmp_path, packs, Packing())
    job = SweepJob(out=tmp_path, manifest=manifest, packs=packs, fail_fast=False)
    pool = LocalLaunch(devices=4, threads=1).executor(job)
    waits, holds, other_sweep, elsewhere = (
        WorkerLease(tmp_path, "local", sweep=sweep, slot=slot)
        for slot, sweep in enumerate([manifest.key, manifest.key, "other", manifest.key])
    )
    for lease in (holds, other_sweep, elsewhere):
        lease.activity = {"names": [cells[0].id]}
    with waits, holds, other_sweep, elsewhere:
        record = tmp_path / ".pml" / "workers" / f"{elsewhere.name}.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"place": "elsewhere"}))
        assert (pool.count_workers(), pool.count_waiting(None)) == (2, 1)


def slurm_pool(tmp_path, states, running):
    """A pool of Slurm tasks in these states, by id; some have a lease, with cells or without."""
    job = SimpleNamespace(out=tmp_path, failed_cells=frozenset)
    pool = SlurmLaunch(devices=9).executor(job)
    jobs = [Job(id=task, state=state, reason="") for task, state in states.items()]
    leases = [SimpleNamespace(job=task, cells=cells) for task, cells in running.items()]
    snapshot = SimpleNamespace(jobs=jobs, running=leases)
    pool.look(SimpleNamespace(look=lambda queue: snapshot))
    return pool, snapshot


def test_slurm_tasks_that_hold_a_pack_or_never_will_are_told_from_those_that_wait(
    tmp_path, monkeypatch
):
    states = {"1_0": "PENDING", "1_1": "RUNNING", "1_2": "RUNNING", "1_3": "RUNNING"}
    pool, snapshot = slurm_pool(
        tmp_path, states | {"1_4": "COMPLETING"}, {"1_1": ["a"], "1_2": [], None: ["b"]}
    )
    # Pending, waiting with a lease, and still without one.
    assert (pool.count_workers(), pool.count_waiting(snapshot)) == (4, 3)
    # The last one hangs.
    monkeypatch.setattr(slurm_executor, "START_UP_SECONDS", -1.0)
    assert pool.count_waiting(snapshot) == 2


@pytest.mark.slow
def test_a_cell_that_fails_fast_ends_all_workers(tmp_path):
    failing = run_pml(
        tmp_path,
        "sweep",
        "rank=1,2",
        "seqlen=12,16",
        "train.lr=1e-2,1e30",
        "train.steps=100000",
        "launch.pack_tokens=30",
        "model.device=cpu",
        "out=fast",
        *TWO_PROCESSES,
        "--fail-fast",
    )
    assert failing.returncode == 1, failing.stderr
    assert "failed; the same command" in failing.stdout
    snapshot = status(tmp_path, "fast")
    assert snapshot["running"] == []
    assert snapshot["done"] == 0


@pytest.mark.slow
def test_no_wait_returns_also_into_a_pipe(tmp_path):
    """Workers do not hold on to what pml writes to, so it returns long before they are done."""
    local = ("train.steps=100000", "launch=local", "launch.devices=1", "--no-wait")
    piped = subprocess.run(
        f"{' '.join(command(*SWEEP, *local))} | cat",
        shell=True,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 process started" in piped.stdout
    assert not finished_cells(tmp_path / "runs")

    assert run_pml(tmp_path, "cancel", "runs").returncode == 0
    assert wait_until(lambda: status(tmp_path)["running"] == [], 60)
