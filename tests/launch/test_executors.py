"""Workers as processes of this machine, and what is decided before any is started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.executors import check_executor

from pml_cli.config.registry import declared
from pml_cli.config.schema import Model
from pml_cli.config.setting import faults
from pml_cli.launch.executors.base import last_log_line
from pml_cli.launch.executors.inline import InlineLaunch
from pml_cli.launch.executors.local import LocalLaunch
from pml_cli.launch.executors.slurm import SlurmLaunch, sbatch_reason

ROOT = Path(__file__).parents[2]
CPU = Model(device="cpu")
SWEEP = (
    "sweep",
    "rank=1,2,4",
    "seqlen=12,16,20",
    "model.device=cpu",
    "launch.pack_tokens=60",
    "out=runs",
)


def environment():
    known = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "COLUMNS": "100",
    }
    return os.environ | known


def pml(cwd, *args):
    words = [sys.executable, "-m", "pml_cli", *args]
    return subprocess.run(
        words, cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=180
    )


def journals(out):
    return [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (out / ".pml" / "journal").glob("*")
    ]


@pytest.mark.parametrize("launch", [InlineLaunch(), LocalLaunch(devices=1, threads=1)])
def test_what_every_executor_does(launch, tmp_path):
    check_executor(launch, tmp_path)


def test_every_launch_has_an_executor():
    """Slurm's is tested on a real cluster, tests/cluster."""
    assert set(declared("launch")) == {"inline", "local", "slurm"}


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_give_what_one_gives(tmp_path):
    done = pml(tmp_path, *SWEEP, "train.steps=300", "launch=local", "launch.devices=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes started" in done.stdout
    assert "9 of 9 cells done" in done.stdout
    ended = [
        [event["cell"] for event in events if event["event"] == "done"]
        for events in journals(tmp_path / "runs")
    ]
    assert sorted(cell for cells in ended for cell in cells) == sorted(
        p.parent.name for p in tmp_path.rglob("result.json")
    )
    (tmp_path / "alone").mkdir()
    alone = pml(tmp_path / "alone", *SWEEP, "train.steps=300")
    assert alone.returncode == 0, alone.stderr
    for path in (tmp_path / "runs").glob("*/tokens.parquet"):
        assert (
            path.read_bytes()
            == (tmp_path / "alone" / "runs" / path.parent.name / path.name).read_bytes()
        )


@pytest.mark.slow
def test_the_one_who_waits_ends_its_workers_and_they_keep_checkpoints(tmp_path):
    words = [
        sys.executable,
        "-m",
        "pml_cli",
        *SWEEP,
        "train.steps=200000",
        "launch=local",
        "launch.devices=2",
    ]
    running = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not any(events for events in journals(tmp_path / "runs")) and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(2)
    running.send_signal(signal.SIGINT)
    said, complained = running.communicate(timeout=90)
    assert running.returncode == 130, said + complained
    assert "the same command goes on" in said
    assert "Traceback" not in complained
    assert list((tmp_path / "runs" / ".pml" / "checkpoints").glob("*.safetensors"))
    status = json.loads(pml(tmp_path, "status", "runs", "--json").stdout)
    assert (status["running"], status["queued"]) == ([], 9)


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


def test_without_a_slurm_one_line_says_so(tmp_path):
    env = environment() | {"PATH": str(tmp_path)}
    words = [
        sys.executable,
        "-m",
        "pml_cli",
        "sweep",
        "rank=1",
        "seqlen=8",
        "launch=slurm",
        "out=runs",
    ]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: launch=slurm: no sbatch here; use a login node, or launch=local or launch=inline\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_workers_that_have_not_shown_themselves_end_too(tmp_path):
    """Ctrl-C while they still import torch."""
    words = [
        sys.executable,
        "-u",
        "-m",
        "pml_cli",
        *SWEEP,
        "train.steps=200000",
        "launch=local",
        "launch.devices=2",
    ]
    running = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "started" not in running.stdout.readline():
        pass
    running.send_signal(signal.SIGINT)
    said, complained = running.communicate(timeout=120)
    assert running.returncode == 130, said + complained
    deadline = (
        time.monotonic() + 120
    )  # the driver waits half a minute; workers on a busy machine take longer
    while (
        json.loads(pml(tmp_path, "status", "runs", "--json").stdout)["running"]
        and time.monotonic() < deadline
    ):
        time.sleep(1)
    records = [
        json.loads(path.read_text())
        for path in (tmp_path / "runs" / ".pml" / "workers").glob("*.json")
    ]
    assert {record["state"] for record in records} == {"ended"}


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_a_cell_that_fails_fast_ends_all(tmp_path):
    words = [
        sys.executable,
        "-m",
        "pml_cli",
        *SWEEP,
        "train.steps=3000",
        "launch=local",
        "launch.devices=2",
    ]
    running = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def workers():
        records = (
            json.loads(path.read_text())
            for path in (tmp_path / "runs" / ".pml" / "workers").glob("*.json")
        )
        return [record for record in records if record["kind"] == "local"]

    deadline = time.monotonic() + 90
    while len([r for r in workers() if r["doing"].get("step")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.3)
    victim = workers()[0]
    os.kill(victim["pid"], signal.SIGKILL)
    said, complained = running.communicate(timeout=900)
    assert running.returncode == 0, said + complained
    assert "9 of 9 cells done" in said
    failing = pml(
        tmp_path, "sweep", "rank=1,2", "seqlen=12,16", "train.lr=1e-2,1e30", "train.steps=100000", "launch.pack_tokens=30",
        "model.device=cpu", "out=fast", "launch=local", "launch.devices=2", "--fail-fast",
    )  # fmt: skip
    assert failing.returncode == 1, failing.stderr
    assert "failed; the same command" in failing.stdout
    status = json.loads(pml(tmp_path, "status", "fast", "--json").stdout)
    assert status["running"] == []
    assert status["done"] == 0


@pytest.mark.slow
def test_leaving_returns_also_into_a_pipe(tmp_path):
    """The workers do not hold on to what pml writes to: it returns long before they have trained their cells."""
    words = f"{sys.executable} -m pml_cli {' '.join(SWEEP)} train.steps=100000 launch=local launch.devices=1 --no-wait | cat"
    done = subprocess.run(
        words,
        shell=True,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 process started" in done.stdout
    assert not list((tmp_path / "runs").glob("*/result.json"))
    cancelled = pml(tmp_path, "cancel", "runs")
    assert cancelled.returncode == 0
    deadline = time.monotonic() + 60
    while (
        json.loads(pml(tmp_path, "status", "runs", "--json").stdout)["running"]
        and time.monotonic() < deadline
    ):
        time.sleep(0.5)
    assert json.loads(pml(tmp_path, "status", "runs", "--json").stdout)["running"] == []
