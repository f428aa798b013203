"""What every executor has to do: a new launch is tested by calling `check_executor`."""

import json
import pickle

from pml_cli.config.registry import declared
from pml_cli.config.schema import Model, Request, Run, Train
from pml_cli.launch.driver import plan_sweep, train_sweep
from pml_cli.launch.executors.base import Ending, Executor
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.status import Watcher
from pml_cli.runs.folder import RunFolder

FEW_STEPS = Train(steps=4, decode=False)


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


def plan(launch, out, ranks=(1, 2), lr=0.01):
    train = Train(steps=4, decode=False, lr=lr)
    runs = [Run(rank=rank, seqlen=8, model=Model(device="cpu"), train=train) for rank in ranks]
    return plan_sweep(Request(runs=runs, out=out, launch=launch, swept=["rank"]))


def check_executor(launch, tmp_path):
    """A sweep on a launch: it trains each cell once, resumes, and reports failures.

    Args:
        launch: settings of the kind under test, with which this machine can train.
        tmp_path: an empty folder.
    """
    assert declared("launch")[launch.kind] is type(launch)
    check_settings(launch)
    check_that_every_cell_is_trained_once(launch, tmp_path / "runs")
    check_that_failures_are_reported(launch, tmp_path / "failing")
    check_that_nothing_is_unpickled(launch, tmp_path)


def check_settings(launch):
    runs = [Run(model=Model(device="cpu"))]
    workers = launch.visible_devices(runs)
    assert len(workers) >= 1
    assert all(device is None or isinstance(device, str) for device in workers)
    assert launch.worker_threads(len(workers)) is None or launch.worker_threads(len(workers)) >= 1
    launch.check_available()


def check_that_every_cell_is_trained_once(launch, out):
    first = plan(launch, out)
    events = Events()
    outcome = train_sweep(first, events, wait=True)
    assert outcome.ending is Ending.COMPLETE
    assert outcome.stopped is None
    assert all(RunFolder(out, cell.id).is_done() for cell in first.cells)

    # The training is heard of step by step, or the workers that do it are.
    assert "cell_ended" in events.names or "snapshot_taken" in events.names
    assert ("workers_started" in events.names) == (events.started > 0)

    results = {cell.id: RunFolder(out, cell.id).result.stat().st_mtime_ns for cell in first.cells}
    wider = plan(launch, out, ranks=(1, 2, 3))
    assert len(wider.done) == 2
    assert train_sweep(wider, Events(), wait=True).ending is Ending.COMPLETE
    assert all(RunFolder(out, cell.id).is_done() for cell in wider.cells)
    for name, written_at in results.items():
        assert RunFolder(out, name).result.stat().st_mtime_ns == written_at

    journals = (out / ".pml" / "journal").glob("*.jsonl")
    events = [json.loads(line) for path in journals for line in path.read_text().splitlines()]
    done = sorted(event["cell"] for event in events if event["event"] == "done")
    assert done == sorted(cell.id for cell in wider.cells)


def check_that_failures_are_reported(launch, out):
    failing = plan(launch, out, lr=1e30)
    assert isinstance(launch.executor(_job(failing)), Executor)
    outcome = train_sweep(failing, Events(), wait=True)
    assert outcome.ending is Ending.COMPLETE
    assert all(RunFolder(out, cell.id).failure() for cell in failing.cells)


def check_that_nothing_is_unpickled(launch, tmp_path):
    """Pickles that write a file are planted wherever a process of the sweep might look."""
    out = tmp_path / "planted"
    marker = tmp_path / "unpickled"
    harmful = pickle.dumps(Harmful(marker))
    planned = plan(launch, out)
    key = _job(planned).manifest.key
    plant_pickles(out, key, [cell.id for cell in planned.cells], harmful)
    assert Watcher(out).look().running == []
    assert train_sweep(planned, Events(), wait=True).ending is Ending.COMPLETE
    assert all(RunFolder(out, cell.id).is_done() for cell in planned.cells)
    snapshot = Watcher(out).look()
    assert sorted(snapshot.done) == sorted(cell.id for cell in planned.cells)
    assert not marker.exists()

    pickle.loads(harmful)
    assert marker.exists(), "the planted pickles are harmless, so the test proves nothing"


def plant_pickles(out, key, cells, content):
    """Put a pickle into every folder of a sweep, under every name that has ever held one."""
    internal = out / ".pml"
    names = [
        internal / "requests" / f"{key}.pkl",
        internal / "checkpoints" / "0123456789abcdef.safetensors",
        internal / "checkpoints" / "state.pt",
        internal / "workers" / "host-1-abc.json",
        internal / "journal" / "host-1-abc.jsonl",
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
