"""What every executor has to do: a new launch is tested by calling `check_executor`."""

import itertools
import json
import pickle

from pml_cli.config.registry import declared
from pml_cli.config.schema import Model, Request, Run, Train
from pml_cli.launch.driver import plan_sweep, train_sweep
from pml_cli.launch.executors.base import Ending, Executor
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.status import Watcher
from pml_cli.results.folder import RunFolder

# A learning rate with which a training fails.
TOO_LARGE = 1e30

PLANTED_JOURNAL = "host-1-abc.jsonl"


class Events(RunObserver):
    """Records the names of the events."""

    def __init__(self):
        self.names = []
        self.started = 0

    def loading(self):
        self.names.append("loading")

    def pack_started(self, cells):
        self.names.append("pack_started")

    def cell_ended(self, cell, failure):
        self.names.append("cell_failed" if failure else "cell_ended")

    def pack_ended(self, cells):
        self.names.append("pack_ended")

    def workers_started(self, count, kind):
        self.names.append("workers_started")
        self.started += count

    def snapshot_taken(self, snapshot):
        self.names.append("snapshot_taken")


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def plan(launch, out, ranks=(1, 2), lrs=(0.01,)):
    runs = []
    for rank, lr in itertools.product(ranks, lrs):
        train = Train(steps=4, decode=False, lr=lr)
        runs.append(Run(rank=rank, seqlen=8, model=Model(device="cpu"), train=train))
    return plan_sweep(Request(runs=runs, out=out, launch=launch, swept=["rank"]))


def check_executor(launch, tmp_path):
    """A sweep on a launch: it trains each cell once, resumes, and reports failures.

    Args:
        launch: settings of the kind under test, with which this machine can train.
        tmp_path: an empty folder.
    """
    assert declared("launch")[launch.kind] is type(launch)
    check_settings(launch)

    # Each training starts the workers anew, which takes seconds: there are two.
    out = tmp_path / "runs"
    check_that_cells_are_trained_and_failures_reported(launch, out)
    check_that_every_cell_is_trained_once(launch, out)


def check_settings(launch):
    runs = [Run(model=Model(device="cpu"))]
    workers = launch.visible_devices(runs)
    assert len(workers) >= 1
    assert all(device is None or isinstance(device, str) for device in workers)
    assert launch.worker_threads(len(workers)) is None or launch.worker_threads(len(workers)) >= 1
    launch.check_available()


def check_that_cells_are_trained_and_failures_reported(launch, out):
    """In a folder where pickles that write a file lie wherever a process might look."""
    planned = plan(launch, out, lrs=(0.01, TOO_LARGE))
    job = _job(planned)
    assert isinstance(launch.executor(job), Executor)
    marker = out.parent / "unpickled"
    harmful = pickle.dumps(Harmful(marker))
    plant_pickles(out, job.manifest.key, [cell.id for cell in planned.cells], harmful)
    assert Watcher(out).look().running == []

    events = Events()
    outcome = train_sweep(planned, events, wait=True)
    assert outcome.ending is Ending.COMPLETE
    assert outcome.stopped is None
    for cell in planned.cells:
        folder = RunFolder(out, cell.id)
        fails = cell.run.train.lr == TOO_LARGE
        assert (folder.is_done(), folder.failure() is not None) == (not fails, fails)

    # The training is heard of step by step, or the workers that do it are.
    assert "cell_ended" in events.names or "snapshot_taken" in events.names
    assert ("workers_started" in events.names) == (events.started > 0)
    snapshot = Watcher(out).look()
    assert (len(snapshot.done), len(snapshot.failed)) == (2, 2)

    assert not marker.exists()
    pickle.loads(harmful)
    assert marker.exists(), "the planted pickles are harmless, so the test proves nothing"


def check_that_every_cell_is_trained_once(launch, out):
    """A wider sweep in the same folder trains what is new."""
    results = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert len(results) == 2
    wider = plan(launch, out, ranks=(1, 2, 3))
    assert len(wider.done) == 2
    assert train_sweep(wider, Events(), wait=True).ending is Ending.COMPLETE
    assert all(RunFolder(out, cell.id).is_done() for cell in wider.cells)
    assert {path: path.stat().st_mtime_ns for path in results} == results

    journals = (path for path in out.glob(".pml/journal/*.jsonl") if path.name != PLANTED_JOURNAL)
    events = [json.loads(line) for path in journals for line in path.read_text().splitlines()]
    done = sorted(event["cell"] for event in events if event["event"] == "done")
    assert done == sorted(cell.id for cell in wider.cells)


def plant_pickles(out, key, cells, content):
    """Put a pickle into every folder of a sweep, under every name that has ever held one."""
    internal = out / ".pml"
    names = [
        internal / "requests" / f"{key}.pkl",
        internal / "checkpoints" / "0123456789abcdef.safetensors",
        internal / "checkpoints" / "state.pt",
        internal / "workers" / "host-1-abc.json",
        internal / "journal" / PLANTED_JOURNAL,
        internal / "jobs" / "7.json",
        internal / "cancel" / "host-1-abc",
    ]
    for job in ("1", "7", "7_0", "7_1", "%j", "%A_%a"):
        names += [
            internal / "logs" / f"{job}_submitted.pkl",
            internal / "logs" / f"{job}_0_result.pkl",
        ]
    for cell in cells:
        for name in ("tokens.parquet", "curve.parquet", "config.yaml", "env.json", "state.pkl"):
            names.append(out / cell / name)
    for path in names:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _job(planned):
    from pml_cli.launch.executors.base import SweepJob
    from pml_cli.launch.manifest import SweepManifest

    manifest = SweepManifest.write(planned.out, planned.packs, planned.packing)
    return SweepJob(out=planned.out, manifest=manifest, packs=planned.packs, fail_fast=False)
