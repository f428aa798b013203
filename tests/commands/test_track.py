"""`pml track`: every finished run once, with its settings, its curve and its results."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from rich.console import Console
from support.sweeps import ROOT, pml, quick_in

from pml_cli.commands import track
from pml_cli.config.load import read_run
from pml_cli.launch.status import Watcher
from pml_cli.track import trackers
from pml_cli.track.base import Tracker

SWEEP = ("sweep", "rank=1,2", "seqlen=8", "train.steps=12", "model.device=cpu", "out=runs")
NAME = re.compile(r"tiny-random-r[12]-l8-s0-[0-9a-f]{10}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep of two cells, done; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    assert quick_in(folder, *SWEEP) == 0
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of it in the folder of the test."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def run_folders(runs):
    return sorted(path.parent for path in runs.glob("*/result.json"))


def curve_of(folder):
    return pd.read_parquet(folder / "curve.parquet")


def result_of(folder):
    return json.loads((folder / "result.json").read_text("utf-8"))


@pytest.fixture
def listing(monkeypatch):
    """A tracker that keeps the runs it is given."""

    class Listing(Tracker):
        name = "listing"
        packages = ("listing",)
        modules = ("json",)
        taken: ClassVar = []

        def write(self, run):
            self.taken.append(run)

        @property
        def where(self):
            return "nowhere"

    monkeypatch.setitem(trackers.TRACKERS, "listing", Listing)
    return Listing.taken


def test_settings_curve_and_results_of_each_run_are_mirrored_once(quick, runs, listing):
    done = quick("track", "runs", "--to", "listing")
    assert done.returncode == 0, done.stderr
    assert "2 runs mirrored to listing" in done.stdout
    assert [run.name for run in listing] == [folder.name for folder in run_folders(runs)]

    for run, folder in zip(listing, run_folders(runs), strict=True):
        settings = read_run(folder / "config.yaml")
        assert run.settings["rank"] == settings.rank
        assert run.settings["train.steps"] == 12
        assert run.settings["loss.kind"] == "sft" and run.settings["train.lr"] is None

        curve = curve_of(folder)
        assert [step for step, _ in run.curve] == list(curve["step"])
        assert [values["curve/loss"] for _, values in run.curve] == list(curve["loss"])
        assert len(run.curve[0][1]) == len(curve.columns) - 1
        result = result_of(folder)
        assert run.results["delta_loss"] == result["delta_loss"]
        assert "format" not in run.results and "first_failure" in run.results
        # Texts are no numbers.
        assert "model" not in run.results

    again = quick("track", "runs", "--to", "listing")
    assert "0 runs mirrored to listing, 2 there already" in again.stdout
    assert len(listing) == 2


def test_what_a_killed_process_has_not_remembered_is_mirrored_again(quick, runs, listing):
    quick("track", "runs", "--to", "listing", "--project", "p")
    memory = runs / "tracker" / "listing" / "mirrored-p.txt"
    first, second = memory.read_text().split()
    memory.write_text(f"{first}\n{second[:7]}")
    done = quick("track", "runs", "--to", "listing", "--project", "p")
    assert "1 run mirrored to listing, 1 there already" in done.stdout
    assert [run.identity for run in listing] == [first, second, second]
    assert "0 runs" in quick("track", "runs", "--to", "listing", "--project", "p").stdout


def test_a_run_that_was_trained_again_is_mirrored_again(quick, runs, listing):
    quick("track", "runs", "--to", "listing")
    folder = run_folders(runs)[0]
    result = result_of(folder) | {"delta_loss": 1.25}
    (folder / "result.json").write_text(json.dumps(result))
    done = quick("track", "runs", "--to", "listing")
    assert "1 run mirrored to listing, 1 there already" in done.stdout
    assert listing[-1].results["delta_loss"] == 1.25


DAMAGE = {
    "result.json": ("{", "result.json: not readable as JSON"),
    "config.yaml": ("rank: [", "config.yaml: not the settings of a run"),
    "curve.parquet": ("no parquet", "curve.parquet: not readable"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_runs_are_left_out_with_a_word(quick, runs, listing, name):
    content, message = DAMAGE[name]
    (run_folders(runs)[0] / name).write_text(content)
    done = quick("track", "runs", "--to", "listing")
    assert done.returncode == 0, done.stderr
    assert "1 run mirrored to listing, 1 left out" in done.stdout
    assert done.stderr.startswith("left out: ") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        ({"loss": [1.0]}, "no column step"),
        ({"step": [1, 1], "loss": [1.0, 2.0]}, "steps do not ascend"),
        ({"step": [-1, 1], "loss": [1.0, 2.0]}, "column step has negative or too large values"),
        ({"step": [0, 1], "loss": ["a", "b"]}, "column loss is of "),
        ({"step": [0, 1], "\x1b[31m": [1.0, 2.0]}, "column names may contain only letters"),
        ({"step": [0, 1], "loss": pd.array([1.0, None], "Float64")}, "has empty values"),
    ],
)
def test_curves_are_checked(quick, runs, listing, curve, reason):
    pd.DataFrame(curve).to_parquet(run_folders(runs)[0] / "curve.parquet")
    done = quick("track", "runs", "--to", "listing")
    assert done.returncode == 0
    assert "1 left out" in done.stdout and reason in done.stderr


def test_numbers_that_are_not_finite_are_left_out(quick, runs, listing):
    curve = {"step": [0, 1], "loss": [1.0, float("nan")], "lr": [float("inf"), 0.5]}
    # pandas would write the first as an empty value.
    parquet.write_table(pa.table(curve), run_folders(runs)[0] / "curve.parquet")
    quick("track", "runs", "--to", "listing")
    assert listing[0].curve == [(0, {"curve/loss": 1.0}), (1, {"curve/lr": 0.5})]


def test_failed_runs_are_counted(quick, tmp_path, listing):
    quick(*SWEEP, "train.lr=0.01,1e30")
    done = quick("track", "runs", "--to", "listing")
    assert "2 runs mirrored to listing, 2 failed and not mirrored" in done.stdout


def test_what_was_mirrored_as_json(quick, runs, listing):
    # One number is none, and one run is damaged.
    curve = {"step": [0, 1], "loss": [1.0, float("nan")], "lr": [0.25, 0.5]}
    parquet.write_table(pa.table(curve), run_folders(runs)[0] / "curve.parquet")
    (run_folders(runs)[1] / "config.yaml").write_text("rank: [")
    failed = runs / "failed-l8-s0-0123456789"
    failed.mkdir()
    (failed / "error.json").write_text('{"reason": "it burst"}')

    done = quick("track", "runs", "--to", "listing", "--project", "p", "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content == {
        "to": "listing",
        "project": "p",
        "out": "runs/tracker/listing",
        "where": "nowhere",
        "runs": 1,
        "points": 3,
        "present": 0,
        "left_out": 1,
        "failed": 1,
    }
    assert content["points"] == sum(len(values) for _, values in listing[0].curve)
    assert "1 run mirrored to listing" in done.stderr and "left out: " in done.stderr

    again = json.loads(quick("track", "runs", "--to", "listing", "--project", "p", "--json").stdout)
    assert (again["runs"], again["points"], again["present"]) == (0, 0, 1)


def test_bad_input_is_one_line(quick, runs, listing, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    refused = {
        ("nowhere", "--to", "listing"): "error: nowhere: no such folder",
        ("file", "--to", "listing"): "error: file: a file; give a folder of runs",
        ("empty", "--to", "listing"): "error: empty: nothing to mirror (none is finished)",
        ("runs", "--to", "tensorbord"): "error: --to tensorbord: no such tracker; did you mean "
        "'tensorboard'? allowed: ",
        ("runs",): "error: Missing option '--to'",
        ("runs", "--to", "listing", "--project", "a/b"): "error: --project a/b: must be letters",
        ("runs", "--to", "listing", "--every", "5"): "error: --every 5: needs --follow",
        ("runs", "--to", "listing", "--follow", "--every", "0"): "error: ",
        ("runs", "--to", "listing", "--out", "file/x"): "error: --out file/x: cannot make",
    }
    for arguments, line in refused.items():
        done = quick("track", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr.startswith(line) and len(done.stderr.splitlines()) == 1, done.stderr
    assert not listing and not (runs / "tracker").exists()

    monkeypatch.setattr(trackers.TRACKERS["wandb"], "modules", ("no_such_library",))
    done = quick("track", "runs", "--to", "wandb")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --to wandb: not installed; pip install wandb\n",
    )


def test_the_help_names_every_tracker(quick):
    from pml_cli.cli import complete_tracker

    text = quick("track", "--help").stdout
    assert not [name for name in trackers.TRACKERS if name not in text]
    assert complete_tracker("t") == ["tensorboard", "trackio"]


def start(folder, *args):
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, "-m", "pml_cli", *args],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_growing_folder_is_followed_to_its_end(quick, tmp_path, listing):
    # A pack a cell.
    cells = [word.replace("rank=1,2", "rank=1,2,3") for word in SWEEP]
    # Followed before the sweep is there.
    (tmp_path / "runs").mkdir()
    sweep = start(tmp_path, *cells, "launch.pack_tokens=8")
    try:
        done = quick("track", "runs", "--to", "listing", "--follow", "--every", "1")
        assert sweep.wait(60) == 0
    finally:
        sweep.kill()
    assert done.returncode == 0, done.stderr
    assert "3 runs mirrored to listing\n" in done.stdout
    assert sorted(run.settings["rank"] for run in listing) == [1, 2, 3]


def test_a_follower_does_not_end_between_two_rounds_of_a_search(runs, listing, monkeypatch):
    """One look sees that all cells have ended; then the search asks for more."""
    ended, running = track.Activity.ENDED, track.Activity.RUNNING
    looks = [ended, running, ended, running, ended, ended, running]
    monkeypatch.setattr(track, "_activity", lambda path: looks.pop(0))
    assert track.run(runs, Console(quiet=True), to="listing", follow=True, every=0.01) == 0
    assert looks == [running]


def test_a_sweep_whose_cells_have_ended_is_running_while_its_process_is(runs, monkeypatch):
    snapshot = Watcher(runs).look()
    assert snapshot.all_ended and track._activity(runs) is track.Activity.ENDED
    busy = replace(snapshot, running=["a process"])
    monkeypatch.setattr(Watcher, "look", lambda watcher: busy)
    assert track._activity(runs) is track.Activity.RUNNING
    # A queue that does not answer.
    silent = replace(snapshot, jobs=None)
    monkeypatch.setattr(Watcher, "look", lambda watcher: silent)
    assert track._activity(runs) is track.Activity.ENDED


def test_a_run_that_is_replaced_while_it_is_followed_is_none_that_was_there(runs, listing):
    tracker = trackers.TRACKERS["listing"]("p", runs / "tracker")
    tracker.out.mkdir()
    mirror = track._Mirror(path=runs, console=Console(quiet=True))
    mirror.round(tracker)
    assert (len(mirror.names), mirror.present) == (2, 0)

    for loss in (1.25, 1.5):
        folder = run_folders(runs)[0]
        (folder / "result.json").write_text(json.dumps(result_of(folder) | {"delta_loss": loss}))
        mirror.round(tracker)
    assert (len(mirror.names), mirror.present) == (4, 0)
    later = track._Mirror(path=runs, console=Console(quiet=True))
    later.round(tracker)
    assert (len(later.names), later.present) == (0, 2)


def test_names_of_folders_do_not_steer_the_terminal(quick, runs, listing):
    steering = "\x1b[31mred"
    run_folders(runs)[0].rename(runs / steering)
    done = quick("track", "runs", "--to", "listing")
    assert done.returncode == 0 and listing[0].name == steering
    (runs / steering / "curve.parquet").unlink()
    done = quick("track", "runs", "--to", "listing", "--project", "other")
    assert "\\x1b[31mred/curve.parquet: no such file" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout


def test_what_is_remembered_must_be_a_file(quick, runs, listing):
    memory = runs / "tracker" / "listing" / "mirrored-runs.txt"
    memory.mkdir(parents=True)
    done = quick("track", "runs", "--to", "listing")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: runs/tracker/listing/mirrored-runs.txt: ")


def test_nothing_is_written_through_a_link(quick, runs, listing, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (runs / "tracker").symlink_to(tmp_path / "elsewhere")
    done = quick("track", "runs", "--to", "listing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "runs/tracker: a link" in done.stderr
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_sweep_that_nobody_works_on_is_not_followed_for_ever(quick, runs, listing):
    shutil.rmtree(run_folders(runs)[0])
    done = quick("track", "runs", "--to", "listing", "--follow", "--every", "1")
    assert done.returncode == 0
    assert "1 run mirrored to listing" in done.stdout


@pytest.mark.track
def test_tensorboard(runs, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        done = pml(tmp_path, "track", "runs", "--to", "tensorboard", "--project", "p")
        assert done.returncode == 0, done.stderr
    assert "0 runs mirrored to tensorboard, 2 there already" in done.stdout

    for folder in run_folders(runs):
        written = runs / "tracker" / "tensorboard" / "p" / folder.name
        assert len(list(written.glob("events.*"))) == 1
        events = EventAccumulator(str(written)).Reload()
        curve, result = curve_of(folder), result_of(folder)
        for name in curve.columns.drop("step"):
            scalars = events.Scalars(f"curve/{name}")
            assert [scalar.step for scalar in scalars] == list(curve["step"])
            assert [s.value for s in scalars] == pytest.approx(list(curve[name]), rel=1e-6)
        (delta,) = events.Scalars("delta_loss")
        assert delta.value == pytest.approx(result["delta_loss"])

        plugins = events.summary_metadata
        content = b"".join(
            plugins[tag].plugin_data.content for tag in plugins if tag.startswith("_hparams_")
        )
        assert b"train.steps" in content and b"delta_loss" in content


@pytest.mark.track
def test_wandb_offline(runs, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from support.wandb_files import records, values

    monkeypatch.setenv("WANDB_MODE", "offline")
    env = {"WANDB_MODE": "offline"}
    done = in_process_of_its_own(tmp_path, env, "track", "runs", "--to", "wandb")
    assert done.returncode == 0, done.stderr
    # As if the process had been killed before it remembered the second one.
    memory = runs / "tracker" / "wandb" / "mirrored-runs.txt"
    memory.write_text(memory.read_text().split()[0])
    done = in_process_of_its_own(tmp_path, env, "track", "runs", "--to", "wandb")
    assert "1 run mirrored to wandb, 1 there already" in done.stdout

    files = list((runs / "tracker" / "wandb" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    by_name = {}
    for file in files:
        content = list(records(file))
        (opened,) = [record.run for record in content if record.HasField("run")][:1]
        by_name[opened.display_name] = (opened, content)
    assert sorted(by_name) == [folder.name for folder in run_folders(runs)]

    for folder in run_folders(runs):
        opened, content = by_name[folder.name]
        config = values(opened.config.update)
        assert config["rank"] == result_of(folder)["rank"] and config["train.steps"] == 12
        rows = [values(record.history.item) for record in content if record.HasField("history")]
        losses = [row["curve/loss"] for row in rows if "curve/loss" in row]
        assert losses == pytest.approx(list(curve_of(folder)["loss"]))
        summary = {}
        for record in content:
            if record.HasField("summary"):
                summary |= values(record.summary.update)
        assert summary["delta_loss"] == pytest.approx(result_of(folder)["delta_loss"])


@pytest.mark.track
def test_wandb_without_an_account_is_one_line(runs, tmp_path):
    pytest.importorskip("wandb")
    done = in_process_of_its_own(tmp_path, {}, "track", "runs", "--to", "wandb")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --to wandb: ")
    assert "WANDB_MODE=offline needs no account" in done.stderr


@pytest.mark.track
def test_mlflow(runs, tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    for _ in range(2):
        done = in_process_of_its_own(tmp_path, {}, "track", "runs", "--to", "mlflow")
        assert done.returncode == 0, done.stderr
    assert "0 runs mirrored to mlflow, 2 there already" in done.stdout

    client = MlflowClient(tracking_uri=f"sqlite:///{runs / 'tracker' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("runs").experiment_id
    by_name = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert sorted(by_name) == [folder.name for folder in run_folders(runs)]
    for folder in run_folders(runs):
        run, curve = by_name[folder.name], curve_of(folder)
        assert run.info.status == "FINISHED"
        assert run.data.params["train.steps"] == "12"
        assert run.data.metrics["delta_loss"] == result_of(folder)["delta_loss"]
        history = client.get_metric_history(run.info.run_id, "curve/nll")
        points = sorted((point.step, point.value) for point in history)
        assert points == list(zip(curve["step"], curve["nll"], strict=True))

    # What a killed process has begun is begun anew.
    client.set_terminated(run.info.run_id, status="KILLED")
    done = in_process_of_its_own(tmp_path, {}, "track", "runs", "--to", "mlflow")
    assert "1 run mirrored to mlflow, 1 there already" in done.stdout
    assert len(client.search_runs([experiment])) == 2

    client.delete_experiment(experiment)
    done = in_process_of_its_own(tmp_path, {}, "track", "runs", "--to", "mlflow")
    assert done.returncode == 2
    assert done.stderr == "error: --project runs: this experiment was deleted in MLflow\n"


@pytest.mark.track
def test_trackio(runs, tmp_path):
    pytest.importorskip("trackio")
    for _ in range(2):
        done = in_process_of_its_own(tmp_path, {}, "track", "runs", "--to", "trackio")
        assert done.returncode == 0, done.stderr
    assert "0 runs mirrored to trackio, 2 there already" in done.stdout

    code = (
        "import json, trackio\n"
        "from trackio.sqlite_storage import SQLiteStorage as Storage\n"
        "runs = {run.name: {'config': run.config, 'logs': Storage.get_logs('runs', run.name)}\n"
        "        for run in trackio.Api().runs('runs')}\n"
        "print('JSON' + json.dumps(runs, default=str))\n"
    )
    env = os.environ | {"TRACKIO_DIR": str(runs / "tracker" / "trackio")}
    read = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    content = json.loads(read.stdout.partition("JSON")[2].splitlines()[0])
    assert sorted(content) == [folder.name for folder in run_folders(runs)]
    for folder in run_folders(runs):
        logs = content[folder.name]["logs"]
        losses = [row["curve/loss"] for row in logs if "curve/loss" in row]
        assert losses == pytest.approx(list(curve_of(folder)["loss"]))
        assert content[folder.name]["config"]["train.steps"] == 12
        assert logs[-1]["delta_loss"] == pytest.approx(result_of(folder)["delta_loss"])


@pytest.mark.track
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_no_tracker_prints_beside_the_json(runs, tmp_path, name):
    for module in trackers.TRACKERS[name].modules:
        pytest.importorskip(module)
    env = {"WANDB_MODE": "offline"}
    done = in_process_of_its_own(tmp_path, env, "track", "runs", "--to", name, "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    numbers = [curve_of(folder).drop(columns="step").size for folder in run_folders(runs)]
    assert (content["to"], content["runs"], content["points"]) == (name, 2, sum(numbers))


@pytest.mark.track
def test_ctrl_c_ends_a_follower_and_nothing_is_doubled(runs, tmp_path):
    pytest.importorskip("tensorboard")
    long = [word.replace("train.steps=12", "train.steps=2000000") for word in SWEEP]
    sweep = start(tmp_path, *long)
    try:
        wait_for(lambda: len(list(runs.glob(".pml/requests/*.json"))) == 2)
        follower = start(tmp_path, "track", "runs", "--to", "tensorboard", "--follow")
        memory = tmp_path / "runs" / "tracker" / "tensorboard" / "mirrored-runs.txt"
        wait_for(memory.exists)
        # Both are there, and it waits for the next look.
        wait_for(lambda: len(memory.read_text().split()) == 2)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 130
        assert "Traceback" not in follower.stderr.read()
    finally:
        sweep.kill()
        sweep.wait()
    done = pml(tmp_path, "track", "runs", "--to", "tensorboard")
    assert "0 runs mirrored to tensorboard, 2 there already" in done.stdout


def in_process_of_its_own(folder: Path, env, *args):
    """As `support.sweeps.pml`, without an account, with these variables."""
    plain = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "COLUMNS": "100"}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "pml_cli", *args],
        cwd=folder,
        env=plain | {"HOME": str(home)} | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
