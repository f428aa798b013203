"""Workers: the same loop as processes on this machine or as jobs on a Slurm cluster, started by submitit.

A worker is told nothing but the folder and the sweep's key: it claims packs from the folder until none is free. So workers
may come and go. What submitit knows of a job is not used: what is done is read off the folder, what waits off squeue.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pml_cli.config.schema import Launch, LocalLaunch, SlurmLaunch
from pml_cli.data.cell import CellPlan
from pml_cli.errors import UserError
from pml_cli.launch import slurm
from pml_cli.launch.devices import cores, local_devices
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.openmp import share_cores
from pml_cli.launch.pack import Pack
from pml_cli.launch.queue import Queue, SweepManifest, work
from pml_cli.launch.signals import Signals, Stopped
from pml_cli.launch.status import Snapshot, Watcher, living
from pml_cli.runs.folder import RunFolder

FOREVER_MINUTES = 60 * 24 * 365
FRUITLESS = 2  # launches in a row after which nothing more was done than before
LOOK_SECONDS = 1.0
REST_SECONDS = 15.0  # at most between two looks: a queue that does not answer takes long to say so
QUEUE_SECONDS = 5.0  # between two questions to Slurm
SETTLE_SECONDS = 20.0  # between two launches; until then the queue may not know of the last one


@dataclass(frozen=True)
class Task:
    """What submitit starts: one worker. Runs before torch is imported, so that it can choose the device."""

    out: str
    key: str  # of the sweep
    id: str  # of the launch, which is how its workers can be cancelled before they have shown themselves
    launch: Launch
    fail_fast: bool
    failed_before: frozenset[str]  # cells that --fail-fast passes over
    slot: int = 0  # which of the launch's devices
    device: str | None = None  # CUDA_VISIBLE_DEVICES; None: as the cluster sets it
    threads: int = 0

    def __call__(self) -> None:
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device
        share_cores()
        if self.threads:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        signals = Signals(slurm=self.launch.kind == "slurm")
        try:
            with signals:
                self._train(signals)
        except Stopped as stopped:
            if stopped.signum == signal.SIGUSR2:
                try:
                    signals.requeue()
                except subprocess.CalledProcessError as error:
                    raise SystemExit(
                        f"this site takes no job back to its queue ({error}); run the sweep again"
                    ) from error

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """Asked by submitit before a job goes back to the queue: it begins anew, the work is in the folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _train(self, signals: Signals) -> None:
        """Claim and train packs of the stored sweep until none is free."""
        out, launch = Path(self.out), self.launch
        order = SweepManifest.read(out / ".pml" / "requests" / f"{self.key}.json")
        with WorkerLease(
            out, launch.kind, launch.stale_seconds, order=self.key, launch=self.id, slot=self.slot
        ) as member:
            from pml_cli.launch.worker import Worker

            queue = Queue(out, order.packs(), member)
            worker = Worker(out, member, signals, 60 * launch.checkpoint_minutes)

            def ended() -> bool:
                return self.fail_fast and bool(_new_failures(out, order, self.failed_before))

            def report(_cell: CellPlan, failure: str | None) -> None:
                if failure is not None and self.fail_fast:
                    signals.end = Stopped("a cell failed")
                    member.cancel([self.id])

            work(
                queue,
                lambda cells: worker.run(cells, report, known=queue.known),
                lambda: worker.loaded,
                wait=False,
                ended=ended,
            )


def _new_failures(out: Path, order: SweepManifest, before: frozenset[str]) -> list[str]:
    return [
        name for name in order.cells if name not in before and RunFolder(out, name).error.exists()
    ]


class Launcher:
    """Starts the workers of one sweep, and new ones where some died."""

    def __init__(
        self,
        out: Path,
        order: SweepManifest,
        launch: LocalLaunch | SlurmLaunch,
        cells: Sequence[CellPlan],
        fail_fast: bool,
    ) -> None:
        """`cells`: of the sweep; what of them has failed already does not count under `fail_fast`."""
        self.out, self.order, self.launch, self.fail_fast = out, order, launch, fail_fast
        self.id = uuid.uuid4().hex[:8]
        self.devices = (
            local_devices(launch, cells)
            if isinstance(launch, LocalLaunch)
            else [None] * launch.devices
        )
        before = frozenset(_new_failures(out, order, frozenset()))
        self._task = Task(str(out), order.key, self.id, launch, fail_fast, before)
        self._started: dict[
            int, Any
        ] = {}  # slot to submitit's job, of local workers that may not have shown themselves yet

    def start(self, packs: Sequence[Pack]) -> int:
        """Start as many workers as are wanted and not there yet.

        Args:
            packs: those that have something left that nobody trains.

        Returns:
            how many were started.

        Raises:
            UserError: the cluster refuses, or there is none.
        """
        folder = self.out / ".pml" / "logs"
        if isinstance(self.launch, LocalLaunch):
            free = sorted(set(range(len(self.devices))) - self._living_slots())[: len(packs)]
            return self._start_local(free, folder)
        slurm.check_there()
        waiting = slurm.jobs(self.out, self.order.key)
        if waiting is None:
            raise UserError("launch=slurm: squeue does not answer; try again later")
        there = sum(job.state != "COMPLETING" for job in waiting)
        return self._submit(max(0, min(self.launch.devices - there, len(packs))), folder)

    def _living_slots(self) -> set[int]:
        shown = [
            r for r in living(self.out) if r["kind"] == "local" and r.get("order") == self.order.key
        ]
        started = {slot for slot, job in self._started.items() if not job.done()}
        return started | {int(record.get("slot") or 0) for record in shown}

    def _start_local(self, slots: Sequence[int], folder: Path) -> int:
        import submitit

        assert isinstance(self.launch, LocalLaunch)
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=FOREVER_MINUTES)
        threads = self.launch.threads or max(1, cores() // len(self.devices))
        note = self.out / ".pml" / "jobs" / f"local-{self.id}.json"
        slurm.note_launch(note, self.id, self.order.key)
        for slot in slots:
            task = dataclasses.replace(
                self._task, slot=slot, device=self.devices[slot], threads=threads
            )
            with _output_to(
                folder / "launch.log"
            ):  # or a pipe that pml writes to stays open as long as its workers live
                self._started[slot] = executor.submit(task)
        return len(slots)

    def _submit(self, count: int, folder: Path) -> int:
        """Submit so many tasks as arrays, each within the site's limit."""
        if not count:
            return 0
        import submitit

        launch = self.launch
        assert isinstance(launch, SlurmLaunch)
        executor = submitit.SlurmExecutor(folder, max_num_timeout=10**9, python=launch.python)
        wanted: dict[str, Any] = {
            "job_name": slurm.name_for(self.out),
            "partition": launch.partition,
            "account": launch.account,
            "qos": launch.qos,
            "time": launch.time,
            "gpus_per_node": launch.gpus or None,
            "cpus_per_task": launch.cpus,
            "mem": None if launch.mem_gb is None else f"{round(1024 * launch.mem_gb)}M",
            "constraint": launch.constraint,
            "signal_delay_s": launch.signal_seconds,
            "setup": launch.setup or None,
            "additional_parameters": {"requeue": True} | launch.extra,
        }
        executor.update_parameters(
            **{name: value for name, value in wanted.items() if value is not None}
        )
        task, size, log = (
            dataclasses.replace(self._task, threads=launch.cpus),
            slurm.max_array_size(),
            folder / "sbatch.log",
        )
        for first in range(0, count, size):
            part = min(size, count - first)
            executor.update_parameters(array_parallelism=launch.parallel or part)
            try:
                with _output_to(log):
                    jobs = executor.submit_array([task] * part)
            except (
                Exception
            ) as error:  # submitit has one class for what sbatch says, and raises others around it
                raise UserError(
                    f"launch=slurm: {_said(log.read_text('utf-8', 'replace') or str(error))}"
                ) from error
            job = jobs[0].job_id.split("_")[0]
            slurm.note_launch(self.out / ".pml" / "jobs" / f"{job}.json", self.id, self.order.key)
        return count

    # -- waiting

    def wait(self, left: Callable[[], list[Pack]], show: Callable[[Snapshot], None]) -> bool:
        """Watch the workers until every cell has ended; start new ones where some died.

        Args:
            left: the packs that have something left to train.
            show: told of every look.

        Returns:
            whether every cell has ended; not when the workers end again and again without having done anything, or after
            a first failure under --fail-fast.

        Raises:
            Stopped: this process was asked to end.
        """
        watcher, fruitless, before = Watcher(self.out, self.order), 0, (-1, 0.0)
        stale = self.launch.stale_seconds
        with (
            WorkerLease(self.out, "driver", stale, order=self.order.key, launch=self.id) as member,
            Signals(),
        ):
            jobs: list[slurm.Job] | None = []
            asked, started = 0.0, time.monotonic()
            while True:
                looked = time.monotonic()
                due = isinstance(self.launch, SlurmLaunch) and looked - asked > QUEUE_SECONDS
                seen = watcher.look(queue=due)
                if due:
                    jobs, asked = seen.jobs, looked
                show(seen)
                if len(seen.done) + len(seen.failed) == len(seen.cells):
                    return True
                training = [one for one in seen.running if one.kind != "driver"]
                if self.fail_fast and set(seen.failed) - self._task.failed_before and not training:
                    return False
                if member.is_cancelled():
                    raise Stopped("cancelled")
                if (
                    jobs is not None
                    and looked - started > SETTLE_SECONDS
                    and self._short_of_workers(seen, jobs, left)
                ):
                    done = (len(seen.done) + len(seen.failed), _last_checkpoint(self.out))
                    fruitless = fruitless + 1 if done == before else 0
                    if fruitless >= FRUITLESS and not training and not jobs:
                        return False
                    before = done
                    self.start(self._free(seen, left()))
                    started, asked = time.monotonic(), 0.0
                took = time.monotonic() - looked  # slow disk, many cells: look less often
                time.sleep(min(max(LOOK_SECONDS, 10 * took), REST_SECONDS))

    def _short_of_workers(
        self, seen: Snapshot, jobs: list[slurm.Job], left: Callable[[], list[Pack]]
    ) -> bool:
        there = len(self._living_slots()) if isinstance(self.launch, LocalLaunch) else len(jobs)
        return there < len(self.devices) and bool(self._free(seen, left()))

    @staticmethod
    def _free(seen: Snapshot, packs: Sequence[Pack]) -> list[Pack]:
        """Packs that nobody is at."""
        busy = {name for one in seen.running for name in one.cells}
        return [pack for pack in packs if not any(cell.id in busy for cell in pack.cells)]

    def end(self) -> None:
        """Ask this launch's workers to keep a checkpoint and end, and wait a little for those on this machine."""
        WorkerLease.cancel_in(self.out, [self.id])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and any(not job.done() for job in self._started.values()):
            time.sleep(0.3)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Have this process and those it starts write to a file, from its beginning."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    before = os.dup(1), os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            for number, kept in zip((1, 2), before, strict=True):
                os.dup2(kept, number)
                os.close(kept)


def _said(words: str) -> str:
    """The lines of sbatch that tell what is wrong, as one."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    told = [
        line.removeprefix("sbatch: error: ") for line in lines if line.startswith("sbatch: error")
    ]
    return "; ".join(told) or (lines or ["refused"])[-1]


def _last_checkpoint(out: Path) -> float:
    """When a checkpoint was last written or taken away."""
    folder = out / ".pml" / "checkpoints"
    return folder.stat().st_mtime if folder.exists() else 0.0


def last_words(out: Path) -> str:
    """The last line that a worker left in its log, and where."""
    logs = sorted((out / ".pml" / "logs").glob("*.err"), key=lambda path: path.stat().st_mtime)
    for path in reversed(logs):
        lines = [
            line for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()
        ]
        if lines:
            own = [
                line for line in lines if not line.startswith("srun: error")
            ] or lines  # srun only says that it ended
            return f"{own[-1].strip()} ({path})"
    return str(out / ".pml" / "logs")
