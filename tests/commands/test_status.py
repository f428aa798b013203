"""`pml status` and `pml cancel` as a user calls them: of what is finished, failed, interrupted, running, and of no sweep."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pml_cli.cli import main
from pml_cli.config.schema import Model, Run
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.liveness import living_processes
from pml_cli.launch.manifest import SweepManifest
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
FEW = ("train.steps=4", "train.decode=false", "model.device=cpu")
LONG = ("sweep", "rank=1,2", "seqlen=4", "out=runs", "train.steps=1000", "train.log_every=1000", "train.decode=false",
        "model.device=cpu", "launch.stale_seconds=5")  # fmt: skip


def pml(tmp_path, monkeypatch, capsys, *args):
    """The command line within this process, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    shown = capsys.readouterr()
    return subprocess.CompletedProcess(args, ended.value.code, shown.out, shown.err)


@pytest.fixture
def quick(tmp_path, monkeypatch, capsys):
    return lambda *args: pml(tmp_path, monkeypatch, capsys, *args)


@pytest.fixture
def seen(quick):
    """What `pml status runs --json` says."""
    return lambda: json.loads(quick("status", "runs", "--json").stdout)


@pytest.fixture
def asked(tmp_path):
    """A sweep of three cells that was asked for and that nobody has begun."""
    cells = check([Run(rank=rank, seqlen=8, model=Model(device="cpu")) for rank in (1, 2, 4)])
    SweepManifest.write(tmp_path / "runs", make_packs(cells), Packing())
    return [cell.id for cell in cells]


def training(out, names, **more):
    """A living process of this folder that trains the cells."""
    member = WorkerLease(out, "inline")
    now = time.time()
    member.activity = {
        "names": names,
        "cells": len(names),
        "since": now - 10,
        "first": 0,
        "step": 100,
        "steps": 500,
    } | more
    return member


# -- nothing is running


def test_a_finished_sweep(quick, seen):
    assert quick("sweep", "rank=1,2", "seqlen=8", "out=runs", *FEW).returncode == 0
    done = quick("status", "runs")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "runs",
        "2 cells: 2 done, 0 running, 0 queued; 100 % of the work",
    ]
    assert {k: v for k, v in seen().items() if k != "out"} == {
        "cells": 2, "done": 2, "failed": {}, "queued": 0, "running": [], "jobs": [], "share": 1.0, "seconds_left": None,
    }  # fmt: skip
    assert quick("status", "runs", "--watch").stdout == done.stdout  # and it ends


def test_a_failed_cell_gives_its_reason_and_exit_code_1(quick, seen):
    assert (
        quick("sweep", "rank=2", "seqlen=8", "train.lr=1e-2,1e30", "out=runs", *FEW).returncode == 1
    )
    done = quick("status", "runs")
    assert done.returncode == 1
    told = " ".join(done.stdout.split())
    assert "2 cells: 1 done, 0 running, 0 queued, 1 failed; 100 % of the work" in told
    assert "try a lower train.lr (now 1e+30)" in told
    told = seen()
    assert told["done"] == len(told["failed"]) == 1
    assert "1e+30" in next(iter(told["failed"].values()))


def test_a_sweep_that_was_never_begun_is_queued_with_a_hint(quick, seen, asked):
    done = quick("status", "runs")
    assert done.returncode == 0
    assert "3 cells: 0 done, 0 running, 3 queued; 0 % of the work" in done.stdout
    assert "nothing is running; the same sweep command goes on with what is left" in done.stdout
    assert (seen()["queued"], seen()["share"]) == (3, 0.0)


def test_two_sweeps_in_one_folder_are_counted_together(quick, seen):
    for ranks in ("rank=1", "rank=1,2"):
        assert quick("sweep", ranks, "seqlen=8", "out=runs", *FEW).returncode == 0
    assert (seen()["cells"], seen()["done"]) == (2, 2)


@pytest.mark.parametrize("verb", ["status", "cancel"])
def test_no_sweep_is_one_line_and_exit_code_2(tmp_path, quick, verb, asked):
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


def test_cancelling_what_does_not_run_harms_nothing(quick, seen, asked):
    before = seen()
    done = quick("cancel", "runs")
    assert done.returncode == 0
    assert done.stdout == "nothing is running here\n"
    assert seen() == before


# -- processes at work


def test_every_cell_counts_once_whatever_becomes_of_it(tmp_path, seen, asked):
    out = tmp_path / "runs"
    RunFolder(out, asked[0]).finish({})
    with training(out, asked[:2]):
        told = seen()
    (running,) = told["running"]
    assert (told["done"], running["cells"], told["queued"]) == (1, [asked[1]], 1)
    assert (running["step"], running["steps"], running["pid"], running["kind"]) == (
        100,
        500,
        os.getpid(),
        "inline",
    )
    assert running["steps_per_second"] == pytest.approx(10, rel=0.05)
    assert running["seconds_left"] == pytest.approx(40, rel=0.05)
    assert told["share"] == pytest.approx((1 + 0.2) / 3, abs=1e-3)
    assert told["seconds_left"] == pytest.approx(40 + 50, rel=0.05)  # and the queued cell after it


def test_a_failed_cell_of_a_pack_in_training_does_not_run(tmp_path, quick, asked):
    RunFolder(tmp_path / "runs", asked[0]).fail("lost")
    with training(tmp_path / "runs", asked[:2]):
        assert "3 cells: 0 done, 1 running, 1 queued, 1 failed" in quick("status", "runs").stdout


def test_a_process_that_went_on_from_a_checkpoint_has_its_own_rate(tmp_path, seen, asked):
    with training(tmp_path / "runs", asked, first=80):
        assert seen()["running"][0]["steps_per_second"] == pytest.approx(2, rel=0.05)


def test_only_the_living_are_shown(tmp_path, seen, asked):
    """One has ended, one was taken for dead, one on another machine is silent; another there is not."""
    out = tmp_path / "runs"
    with training(out, asked[:1]):
        pass
    with (
        training(out, asked[:1]) as buried,
        training(out, asked[:1]) as silent,
        training(out, asked[1:2]) as far,
    ):
        (out / ".pml" / "dead" / buried.name).symlink_to(far.name)
        for member, age in ((silent, 150), (far, 60)):
            path = out / ".pml" / "workers" / f"{member.name}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"place": "elsewhere"}))
            old = path.stat().st_mtime - age
            os.utime(path, (old, old))
        assert [running["name"] for running in seen()["running"]] == [far.name]


def test_a_sweep_at_work_is_shown_cancelled_and_gone_on_with(tmp_path, quick, seen):
    """In another process, held while it is looked at; it ends with a checkpoint, from which the same command goes on."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [sys.executable, "-m", "pml_cli", *LONG]
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as one:
        deadline = time.monotonic() + 120
        while one.poll() is None and time.monotonic() < deadline:
            if any(record["doing"].get("step") for record in living_processes(tmp_path / "runs")):
                break
            time.sleep(0.05)
        one.send_signal(signal.SIGSTOP)
        told, shown, asked = seen(), quick("status", "runs"), quick("cancel", "runs")
        time.sleep(0.7)  # longer than a beat: the next one is due when it wakes up
        one.send_signal(signal.SIGCONT)
        out, _ = one.communicate(timeout=120)
    (running,) = told["running"]
    assert (running["pid"], len(running["cells"]), running["steps"]) == (one.pid, 2, 1000)
    assert 0 < running["step"] < 1000
    assert running["steps_per_second"] > 1
    assert 0 < told["seconds_left"] < 600
    assert (told["cells"], told["done"], told["queued"], told["failed"]) == (2, 0, 0, {})
    assert f"inline {one.pid}" in shown.stdout
    assert "2 cells: 0 done, 2 running, 0 queued" in shown.stdout
    assert "1 running asked to save a checkpoint and end" in asked.stdout
    assert one.returncode == 1, out
    assert "cancelled" in out
    assert len(list((tmp_path / "runs" / ".pml" / "checkpoints").glob("*.safetensors"))) == 1
    after = quick("status", "runs")
    assert "2 cells: 0 done, 0 running, 2 queued" in after.stdout
    assert "nothing is running; the same sweep command goes on" in after.stdout

    again = quick(*LONG)
    assert again.returncode == 0, again.stderr
    assert seen()["done"] == 2
    events = [
        json.loads(line)
        for path in (tmp_path / "runs" / ".pml" / "journal").iterdir()
        for line in path.read_text().splitlines()
    ]
    kept = [event["step"] for event in events if event["event"] == "checkpoint"]
    assert [event["step"] for event in events if event["event"] == "start"] in (
        [0, *kept],
        [*kept, 0],
    )
    assert kept[0] > 0


@pytest.mark.parametrize("verb", ["status", "cancel"])
def test_neither_torch_nor_pandas_is_imported(tmp_path, verb, asked):
    code = (
        "import sys\nfrom pml_cli.cli import main\n"
        f"try: main(['{verb}', 'runs'])\nexcept SystemExit as ended: assert ended.code == 0\n"
        "sys.exit(' '.join({'torch', 'pandas', 'transformers', 'hydra', 'scipy'} & set(sys.modules)) or 0)"
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
