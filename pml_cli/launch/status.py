"""What a sweep is doing, read from its folder and from Slurm's queue, without accounting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pml_cli.launch import slurm
from pml_cli.launch.liveness import Record, living_processes
from pml_cli.launch.manifest import SweepManifest, read_manifests
from pml_cli.results.run_folders import RunFolders, run_key
from pml_cli.training.checkpoint_header import checkpoint_files, read_header

# The kind of a process that only waits for its workers.
DRIVER = "driver"


@dataclass(frozen=True, kw_only=True)
class RunningProcess:
    """A living process of a folder, and the pack it trains.

    Attributes:
        name: of its lease.
        kind: inline, local, slurm; driver: it only waits.
        order: key of its sweep.
        host, pid: where it runs.
        job: its Slurm job with the array index, or None.
        cells: ids of the pack's cells that have not ended.
        step, steps: training steps done and of all.
        steps_per_second, work_per_second: speed so far, in steps and tokens; None: not known yet.
        work_left: tokens of the pack still to be trained.
    """

    name: str
    kind: str
    order: str
    host: str
    pid: int
    job: str | None
    cells: list[str]
    step: int
    steps: int
    steps_per_second: float | None
    work_per_second: float | None
    work_left: float

    @property
    def seconds_left(self) -> float | None:
        """At its speed so far."""
        return self.work_left / self.work_per_second if self.work_per_second else None

    @property
    def trains(self) -> bool:
        """Whether it is a worker; drivers only wait."""
        return self.kind != DRIVER


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A results folder at one moment. Every cell is done, failed, running or queued.

    Attributes:
        work: tokens of all training steps of each cell, by id.
        done: ids of finished cells.
        failed: reason of each failed cell.
        running: the living processes.
        resumable: how far each queued cell is that goes on from a checkpoint, 0..1.
        jobs: those in Slurm's queue; None: it does not answer.
    """

    work: Mapping[str, float]
    done: Sequence[str]
    failed: Mapping[str, str]
    running: Sequence[RunningProcess]
    resumable: Mapping[str, float]
    jobs: Sequence[slurm.Job] | None

    @property
    def training(self) -> list[RunningProcess]:
        """The processes that train, without those that only wait."""
        return [process for process in self.running if process.trains]

    @property
    def queued(self) -> list[str]:
        """Cells that no process has begun."""
        # A cell of a pack in training may have ended already: it counts once.
        begun = {*self.done, *self.failed}
        for process in self.running:
            begun.update(process.cells)
        return [name for name in self.work if name not in begun]

    @property
    def all_ended(self) -> bool:
        """Whether every cell is done or has failed."""
        ended = len(self.done) + len(self.failed)
        return ended == len(self.work)

    @property
    def is_active(self) -> bool:
        """Whether something runs or waits, or might: the queue does not answer."""
        return bool(self.running) or self.jobs is None or bool(self.jobs)

    @property
    def total_work(self) -> float:
        """Tokens of the training of all cells."""
        return sum(self.work.values())

    @property
    def share_done(self) -> float:
        """Share of the total work that is done, packs under way and checkpoints included."""
        queued = sum(self.work[name] * (1 - self.resumable.get(name, 0.0)) for name in self.queued)
        under_way = sum(process.work_left for process in self.running)
        return 1 - (queued + under_way) / self.total_work if self.total_work else 1.0

    @property
    def seconds_left(self) -> float | None:
        """At the speed of all running processes; None: not known."""
        rate = sum(process.work_per_second or 0 for process in self.running)
        return (1 - self.share_done) * self.total_work / rate if rate else None


class Watcher:
    """Takes snapshots of a results folder; cells that are done are looked up once.

    Attributes:
        left_out: a line for each damaged manifest, and each process without a record that can be
            read, that the last look has passed over.
    """

    def __init__(self, out: Path, manifest: SweepManifest | None = None) -> None:
        """`manifest`: look at the cells of this sweep alone."""
        self.out = out
        self.manifest = manifest
        self.left_out: list[str] = []
        self._done: set[str] = set()

    def look(self, queue: bool = True) -> Snapshot:
        """A snapshot of this moment.

        Args:
            queue: whether to ask Slurm, where jobs were submitted.

        Raises:
            UserError: no manifest is readable.
        """
        self.left_out = []
        unread: list[str] = []
        records = living_processes(self.out, unread)
        manifests = [self.manifest] if self.manifest else self._current_manifests(records)
        self.left_out += unread
        work, hashes, steps = _merged(manifests)

        failed = self._look_up_ended(hashes)
        ended = self._done | failed.keys()
        running = [_running_process(record, work, ended) for record in records]

        # A process that trains knows better how far it is; one that loads its model does not yet.
        in_training = ended.union(*(process.cells for process in running if process.steps))
        waiting = {name: hashes[name] for name in work if name not in in_training}
        resumable = _resumable(self.out, waiting, steps)
        running = [_with_checkpoints(process, work, resumable) for process in running]
        for process in running:
            for name in process.cells:
                resumable.pop(name, None)

        jobs: list[slurm.Job] | None = []
        if queue:
            sweep = self.manifest.key if self.manifest else ""
            jobs = slurm.queued_jobs(self.out, sweep)
        return Snapshot(
            work=work,
            done=[name for name in work if name in self._done],
            failed=failed,
            running=running,
            resumable=resumable,
            jobs=jobs,
        )

    def _look_up_ended(self, hashes: Mapping[str, str]) -> dict[str, str]:
        """Add newly finished cells to those known; the reasons of the failed ones."""
        folders = RunFolders(self.out)
        failed = {}
        for name, tokens in hashes.items():
            if name in self._done or not folders.exists(name):
                continue

            folder = folders.find(name)
            if folder.is_done(tokens):
                self._done.add(name)
                continue
            reason = folder.failure()
            if reason is not None:
                failed[name] = reason
        return failed

    def _current_manifests(self, records: Sequence[Record]) -> list[SweepManifest]:
        """The sweep requested last, those with a living process, and those that are complete.

        A sweep that was given up for another one is left out.
        """
        # Several sweeps may share a folder, and their cells are counted together.
        manifests = read_manifests(self.out, self.left_out)
        active = {record.get("order") for record in records}
        folders = RunFolders(self.out)
        return [
            manifest
            for manifest in manifests
            if manifest is manifests[-1]
            or manifest.key in active
            or all(folders.exists(name) for name in manifest.work)
        ]


def _merged(
    manifests: Sequence[SweepManifest],
) -> tuple[dict[str, float], dict[str, str], dict[str, int]]:
    """The work, hashes and steps of the cells of several sweeps, each cell once, by id.

    A cell that two sweeps name differently has its last name.
    """
    names = {run_key(name): name for manifest in manifests for name in manifest.work}
    work: dict[str, float] = {}
    hashes: dict[str, str] = {}
    steps: dict[str, int] = {}

    for manifest in manifests:
        for name in manifest.work:
            last_name = names[run_key(name)]
            work[last_name] = manifest.work[name]
            hashes[last_name] = manifest.hashes[name]
            steps[last_name] = manifest.steps[name]
    return work, hashes, steps


def _resumable(
    out: Path,
    waiting: Mapping[str, str],
    steps: Mapping[str, int],
) -> dict[str, float]:
    """How far each waiting cell is that goes on from a checkpoint, 0..1.

    Args:
        waiting: the hash of the tokens of each cell, by id.
        steps: of the whole training of each; 0: not known, its checkpoint counts as its start.
    """
    shares: dict[str, float] = {}
    if not waiting:
        return shares
    by_key = {run_key(name): name for name in waiting}
    for path in checkpoint_files(out):
        header = read_header(path)
        for key in header.cells if header else ():
            name = by_key.get(key)
            if name is None or header is None or not header.holds(name, waiting[name]):
                continue
            share = min(header.step / steps[name], 1.0) if steps[name] else 0.0
            shares[name] = max(share, shares.get(name, 0.0))
    return shares


def _with_checkpoints(
    process: RunningProcess, work: Mapping[str, float], resumable: Mapping[str, float]
) -> RunningProcess:
    """A process that loads its model, with the work that checkpoints have left of its cells."""
    if process.steps:
        return process
    left = sum(work[name] * (1 - resumable.get(name, 0.0)) for name in process.cells)
    return dataclasses.replace(process, work_left=left)


def _running_process(record: Record, work: Mapping[str, float], ended: set[str]) -> RunningProcess:
    activity: dict[str, Any] = record.get("doing") or {}
    step = int(activity.get("step", 0))
    steps = int(activity.get("steps", 0))
    # A record may be some seconds old: cells that have ended since do not run.
    unfinished = {run_key(name): name for name in work.keys() - ended}
    keys = [run_key(name) for name in activity.get("names", [])]
    cells = [unfinished[key] for key in keys if key in unfinished]
    pack_work = sum(work[name] for name in cells)

    # The speed counts from where this process began, not from the checkpoint's own start.
    written_at = float(record["shown"])
    elapsed = written_at - float(activity.get("since", written_at))
    steps_here = step - int(activity.get("first", 0))
    steps_per_second = steps_here / elapsed if elapsed > 0 and step else None
    work_per_second = None
    if steps_per_second and steps:
        work_per_second = steps_per_second * pack_work / steps

    slurm_job = record.get("slurm") or {}
    return RunningProcess(
        name=record["name"],
        kind=record["kind"],
        order=record.get("order", ""),
        host=record["host"],
        pid=record["pid"],
        job=slurm_job.get("task"),
        cells=cells,
        step=step,
        steps=steps,
        steps_per_second=steps_per_second,
        work_per_second=work_per_second,
        work_left=pack_work * (1 - step / steps) if steps else pack_work,
    )
