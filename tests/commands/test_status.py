"""`pml status` and `pml cancel`: finished, failed, interrupted, running sweeps, and none."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from support.processes import ROOT, journals, start_pml, wait_until

from pml_cli.config.schema import Model, Run
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.liveness import living_processes
from pml_cli.launch.manifest import SweepManifest, read_manifests
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.results.folder import RunFolder
from pml_cli.training.checkpoint import Checkpoints
from pml_cli.training.curve import empty_curve
from pml_cli.training.trainer import TrainerState

FEW = ("train.steps=4", "train.decode=false", "model.device=cpu")
LONG = (
    "sweep",
    "rank=1,2",
    "seqlen=4",
    "out=runs",
    "train.steps=1000",
    "train.log_every=1000",
    "train.decode=false",
    "model.device=cpu",
    "launch.stale_seconds=5",
)


@pytest.fixture
def snapshot(quick):
    """What `pml status runs --json` prints."""
    return lambda: json.loads(quick("status", "runs", "--json").stdout)


@pytest.fixture
def requested(tmp_path):
    """A sweep of three cells that was requested and that nobody has begun."""
    cells = check([Run(rank=rank, seqlen=8, model=Model(device="cpu")) for rank in (1, 2, 4)])
    SweepManifest.write(tmp_path / "runs", make_packs(cells), Packing())
    return [cell.id for cell in cells]


def training(out, names, **more):
    """A living process of this folder that trains the cells."""
    lease = WorkerLease(out, "inline")
    now = time.time()
    lease.activity = {
        "names": names,
        "cells": len(names),
        "since": now - 10,
        "first": 0,
        "step": 100,
        "steps": 500,
    } | more
    return lease


# -- nothing is running


def test_a_finished_sweep(quick, snapshot):
    assert quick("sweep", "rank=1,2", "seqlen=8", "out=runs", *FEW).returncode == 0
    printed = quick("status", "runs")
    assert printed.returncode == 0
    assert printed.stdout.splitlines() == [
        "runs",
        "2 cells: 2 done, 0 running, 0 queued; 100 % of the work",
    ]
    assert snapshot() == {
        "out": "runs",
        "cells": 2,
        "done": 2,
        "failed": {},
        "queued": 0,
        "resumable": 0,
        "running": [],
        "jobs": [],
        "share": 1.0,
        "seconds_left": None,
    }
    # --watch ends at once
    assert quick("status", "runs", "--watch").stdout == printed.stdout


def test_a_failed_cell_gives_its_reason_and_exit_code_1(quick, snapshot):
    rates = "train.lr=1e-2,1e30"
    assert quick("sweep", "rank=2", "seqlen=8", rates, "out=runs", *FEW).returncode == 1
    printed = quick("status", "runs")
    assert printed.returncode == 1
    text = " ".join(printed.stdout.split())
    assert "2 cells: 1 done, 0 running, 0 queued, 1 failed; 100 % of the work" in text
    assert "try a lower train.lr (now 1e+30)" in text

    body = snapshot()
    assert body["done"] == len(body["failed"]) == 1
    assert "1e+30" in next(iter(body["failed"].values()))


def test_a_sweep_that_was_never_begun_is_queued_with_a_hint(quick, snapshot, requested):
    done = quick("status", "runs")
    assert done.returncode == 0
    assert "3 cells: 0 done, 0 running, 3 queued; 0 % of the work" in done.stdout
    assert "nothing is running; the same sweep command goes on with what is left" in done.stdout
    assert (snapshot()["queued"], snapshot()["share"]) == (3, 0.0)


def test_a_sweep_that_was_given_up_for_another_one_is_left_out(quick, snapshot, requested):
    """As docs/running.md says."""
    assert (snapshot()["cells"], snapshot()["done"]) == (3, 0)
    assert quick("sweep", "rank=3", "seqlen=8", "out=runs", *FEW).returncode == 0
    assert (snapshot()["cells"], snapshot()["done"]) == (1, 1)


def test_two_sweeps_in_one_folder_are_counted_together(quick, snapshot):
    for ranks in ("rank=1", "rank=1,2"):
        assert quick("sweep", ranks, "seqlen=8", "out=runs", *FEW).returncode == 0
    assert (snapshot()["cells"], snapshot()["done"]) == (2, 2)


@pytest.mark.parametrize("verb", ["status", "cancel"])
def test_no_sweep_is_one_line_and_exit_code_2(tmp_path, quick, verb, requested):
    (tmp_path / "file").write_text("")
    (tmp_path / "other" / "empty").mkdir(parents=True)
    messages = {
        "nowhere": "nowhere: no such folder",
        "file": "file: a file; give a sweep's folder",
        "other": "other: no sweep was started here",
        ".": ".: no sweep was started here; sweeps in it: runs",
    }
    for folder, message in messages.items():
        done = quick(verb, folder)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_cancelling_what_does_not_run_harms_nothing(quick, snapshot, requested):
    body = snapshot()
    done = quick("cancel", "runs")
    assert done.returncode == 0
    assert done.stdout == "nothing is running here\n"
    assert snapshot() == body


# -- processes at work


def test_every_cell_counts_once_whatever_becomes_of_it(tmp_path, snapshot, requested):
    out = tmp_path / "runs"
    RunFolder(out, requested[0]).finish({})
    with training(out, requested[:2]):
        body = snapshot()
    (running,) = body["running"]
    assert (body["done"], running["cells"], body["queued"]) == (1, [requested[1]], 1)
    assert (running["step"], running["steps"], running["pid"], running["kind"]) == (
        100,
        500,
        os.getpid(),
        "inline",
    )
    assert running["steps_per_second"] == pytest.approx(10, rel=0.05)
    assert running["seconds_left"] == pytest.approx(40, rel=0.05)
    assert body["share"] == pytest.approx((1 + 0.2) / 3, abs=1e-3)
    # the queued cell comes after it
    assert body["seconds_left"] == pytest.approx(40 + 50, rel=0.05)


def test_a_failed_cell_of_a_pack_in_training_does_not_run(tmp_path, quick, requested):
    RunFolder(tmp_path / "runs", requested[0]).fail("lost")
    with training(tmp_path / "runs", requested[:2]):
        assert "3 cells: 0 done, 1 running, 1 queued, 1 failed" in quick("status", "runs").stdout


def test_a_process_that_went_on_from_a_checkpoint_has_its_own_rate(tmp_path, snapshot, requested):
    with training(tmp_path / "runs", requested, first=80):
        assert snapshot()["running"][0]["steps_per_second"] == pytest.approx(2, rel=0.05)


def test_only_living_processes_are_shown(tmp_path, snapshot, requested):
    """One has ended, one is fenced, one of another machine is silent; another there is not."""
    out = tmp_path / "runs"
    with training(out, requested[:1]):
        pass
    with (
        training(out, requested[:1]) as fenced,
        training(out, requested[:1]) as silent,
        training(out, requested[1:2]) as far,
    ):
        (out / ".pml" / "dead" / fenced.name).symlink_to(far.name)
        for lease, age in ((silent, 150), (far, 60)):
            path = out / ".pml" / "workers" / f"{lease.name}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"place": "elsewhere"}))
            old = path.stat().st_mtime - age
            os.utime(path, (old, old))
        assert [running["name"] for running in snapshot()["running"]] == [far.name]


def test_cells_that_go_on_from_a_checkpoint_are_counted(tmp_path, quick, snapshot, requested):
    """Of three cells of 500 steps one is at step 300; a file that is damaged counts as none."""
    first, *_ = requested
    (manifest,) = read_manifests(tmp_path / "runs", [])
    checkpoints = Checkpoints(tmp_path / "runs")
    path = checkpoints.path([first])
    state = TrainerState(
        step=300,
        cells=[0],
        tensors={"p": torch.zeros(1, 2)},
        logged=[pd.DataFrame({"step": [1]})],
        curve=[empty_curve()],
        draws=[0],
    )
    checkpoints.save(path, {first: manifest.hashes[first]}, state, 1.0)
    path.with_name("other.safetensors").write_bytes(b"cut")

    share = 300 / 500 * manifest.work[first] / sum(manifest.work.values())
    assert (snapshot()["queued"], snapshot()["resumable"]) == (3, 1)
    assert snapshot()["share"] == pytest.approx(share, abs=1e-3)
    printed = quick("status", "runs").stdout
    assert "0 running, 3 queued (1 go on from a checkpoint); " in printed

    # While a process that has claimed it loads the model, it is as far as before.
    claims = WorkerLease(tmp_path / "runs", "inline")
    claims.activity = {"names": [first]}
    with claims:
        assert (snapshot()["queued"], snapshot()["resumable"]) == (2, 0)
        assert snapshot()["share"] == pytest.approx(share, abs=1e-3)

    # What learns other tokens does not go on from it.
    checkpoints.save(path, {first: "other"}, state, 1.0)
    assert (snapshot()["resumable"], snapshot()["share"]) == (0, 0.0)


@pytest.mark.slow
def test_a_sweep_in_another_process_is_shown_cancelled_and_resumed(tmp_path, quick, snapshot):
    """The process is stopped while it is looked at; cancelled, it ends with a checkpoint."""
    out = tmp_path / "runs"
    with start_pml(tmp_path, *LONG) as sweep:
        wait_until(
            lambda: any(record["doing"].get("step") for record in living_processes(out)),
            120,
            pause=0.05,
        )
        sweep.send_signal(signal.SIGSTOP)
        body = snapshot()
        printed = quick("status", "runs")
        cancelled = quick("cancel", "runs")
        # longer than the pause between heartbeats: the next one is due when it wakes up
        time.sleep(0.7)
        sweep.send_signal(signal.SIGCONT)
        output, errors = sweep.communicate(timeout=120)

    (running,) = body["running"]
    assert (running["pid"], len(running["cells"]), running["steps"]) == (sweep.pid, 2, 1000)
    assert 0 < running["step"] < 1000
    assert running["steps_per_second"] > 1
    assert 0 < body["seconds_left"] < 600
    assert (body["cells"], body["done"], body["queued"], body["failed"]) == (2, 0, 0, {})
    assert f"inline {sweep.pid}" in printed.stdout
    assert "2 cells: 0 done, 2 running, 0 queued" in printed.stdout

    assert "1 process asked to save a checkpoint and end" in cancelled.stdout
    assert sweep.returncode == 1, output + errors
    assert "cancelled" in output
    assert len(list((out / ".pml" / "checkpoints").glob("*.safetensors"))) == 1
    after_cancel = quick("status", "runs")
    assert "0 running, 2 queued (2 go on from a checkpoint); " in after_cancel.stdout
    assert "; 0 % of the work" not in after_cancel.stdout
    assert "nothing is running; the same sweep command goes on" in after_cancel.stdout

    resumed = quick(*LONG)
    assert resumed.returncode == 0, resumed.stderr
    assert snapshot()["done"] == 2
    events = [event for journal in journals(out) for event in journal]
    saved = [event["step"] for event in events if event["event"] == "checkpoint"]
    started = [event["step"] for event in events if event["event"] == "start"]
    assert sorted(started) == [0, *saved]
    assert saved[0] > 0


@pytest.mark.parametrize("verb", ["status", "cancel"])
def test_nothing_heavy_is_imported(tmp_path, verb, requested):
    code = (
        "import sys\nfrom pml_cli.cli import main\n"
        f"try: main(['{verb}', 'runs'])\nexcept SystemExit as ended: assert ended.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'transformers', 'hydra', 'scipy', 'submitit'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
