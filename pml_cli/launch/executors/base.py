"""The interface of an executor, and what executors share that start workers and wait for them.

A worker is told the folder and the key of a sweep, and takes packs from the queue until none is
free. So workers may come and go, and what is done is read from the folder, not from the workers.
"""

from __future__ import annotations

import shlex
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

from pml_cli.config.schema import Launch
from pml_cli.errors import printable
from pml_cli.io import own_folder
from pml_cli.launch import slurm
from pml_cli.launch.lease import WorkerLease, cancel_processes
from pml_cli.launch.manifest import SweepManifest
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.signals import Signals, Stopped
from pml_cli.launch.status import Snapshot, Watcher
from pml_cli.results.run_folders import RunFolders
from pml_cli.validation import read_regular

if TYPE_CHECKING:
    from pml_cli.launch.pack import Pack

# Launches in a row without any progress, after which no more workers are started.
FRUITLESS_LAUNCHES = 2

# Seconds between two launches; until then a queue may not know of the last one.
SETTLE_SECONDS = 20.0

# Seconds between two looks at the folder: the longer, the longer a look takes (a slow disk, many
# cells, a queue that does not answer).
LOOK_SECONDS = 1.0
MAX_LOOK_SECONDS = 15.0
PAUSE_PER_LOOK = 10.0


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """What an executor is to train.

    Attributes:
        out: the results folder.
        manifest: of the sweep, on disk.
        packs: of the sweep, those that have ended included.
        fail_fast: whether the first failure ends the sweep.
    """

    out: Path
    manifest: SweepManifest
    packs: Sequence[Pack]
    fail_fast: bool

    def unfinished_packs(self) -> list[Pack]:
        """The packs without the cells that have ended."""
        from pml_cli.launch.packing import without_cells

        folders = RunFolders(self.out)
        ended = {
            name
            for name, tokens in self.manifest.hashes.items()
            if folders.find(name).has_ended(tokens)
        }
        return without_cells(self.packs, ended)

    def failed_cells(self) -> frozenset[str]:
        """Ids of the cells that have failed."""
        folders = RunFolders(self.out)
        failed = [name for name in self.manifest.work if folders.find(name).error.exists()]
        return frozenset(failed)


class Ending(Enum):
    """How `Executor.run` ended.

    COMPLETE: nothing more is to be done here. DETACHED: workers were started and go on by
    themselves. GAVE_UP: workers ended early, again and again, or a cell failed under --fail-fast.
    STOPPED: the run was interrupted.
    """

    COMPLETE = auto()
    DETACHED = auto()
    GAVE_UP = auto()
    STOPPED = auto()


class Executor(ABC):
    """Trains the packs of one sweep."""

    def __init__(self, job: SweepJob) -> None:
        self.job = job

    @abstractmethod
    def run(self, observer: RunObserver, *, wait: bool) -> Ending:
        """Train what is unfinished.

        Args:
            observer: hears of the progress.
            wait: whether to stay until every cell has ended, also those that other processes train.

        Raises:
            UserError: no worker can be started.
            Stopped: this process was asked to end.
        """

    def script(self) -> str:
        """The batch script that would be submitted; empty where none is."""
        return ""

    @abstractmethod
    def interrupted(self, stopped: Stopped) -> str:
        """Do what is due after `run` was interrupted.

        Returns:
            what becomes of the sweep, a line for the user.
        """


class WorkerPool(Executor):
    """Starts workers, watches them, and starts new ones where some died.

    Attributes:
        size: how many workers are wanted.
        id: of this launch; cancelling it cancels all its workers.
    """

    def __init__(self, job: SweepJob, settings: Launch, size: int) -> None:
        super().__init__(job)
        self.settings = settings
        self.size = size
        self.id = uuid.uuid4().hex[:8]
        self.log_folder = job.out / ".pml" / "logs"
        self._failed_before = job.failed_cells()

    @abstractmethod
    def start(self, packs: Sequence[Pack]) -> int:
        """Start as many workers as are wanted and missing, and record the launch.

        Args:
            packs: those that have something left to train and that no process trains.

        Returns:
            how many were started.

        Raises:
            UserError: no worker can be started.
        """

    @abstractmethod
    def count_workers(self) -> int | None:
        """How many workers run, or wait to run; None where that is not known at the moment."""

    @abstractmethod
    def count_waiting(self, snapshot: Snapshot) -> int:
        """How many of these start up or wait for a pack: they will take the free ones."""

    @abstractmethod
    def describe(self, count: int) -> str:
        """A number of workers for people: `2 processes`."""

    def look(self, watcher: Watcher) -> Snapshot:
        """The state of the sweep; executors with a queue of their own ask it here."""
        return watcher.look(queue=False)

    def run(self, observer: RunObserver, *, wait: bool) -> Ending:
        """Start workers, and wait for them if `wait`."""
        # From the first worker on: whoever interrupts it then means them too.
        with Signals() as signals:
            count = self.start(self.job.unfinished_packs())
            observer.workers_started(count, self.describe(count))
            return self.wait(observer, signals) if wait else Ending.DETACHED

    def wait(self, observer: RunObserver, signals: Signals) -> Ending:
        """Watch the workers until every cell has ended; start new ones where some died.

        Raises:
            Stopped: this process was asked to end.
        """
        job = self.job
        watcher = Watcher(job.out, job.manifest)
        restarts = _Restarts(self)
        lease = WorkerLease(
            job.out,
            "driver",
            self.settings.stale_seconds,
            sweep=job.manifest.key,
            launch=self.id,
        )
        # `pml cancel` finds the driver by its lease, as it finds the workers.
        with lease:
            while True:
                look_started = time.monotonic()
                snapshot = self.look(watcher)
                observer.snapshot_taken(snapshot)

                if snapshot.all_ended:
                    return Ending.COMPLETE
                if self._failed_fast(snapshot):
                    return Ending.GAVE_UP
                if lease.check_cancelled():
                    raise Stopped("cancelled")
                if signals.stop is not None:
                    raise signals.stop
                if not restarts.start_missing(snapshot):
                    return Ending.GAVE_UP

                look_seconds = time.monotonic() - look_started
                pause = max(LOOK_SECONDS, PAUSE_PER_LOOK * look_seconds)
                time.sleep(min(pause, MAX_LOOK_SECONDS))

    def _failed_fast(self, snapshot: Snapshot) -> bool:
        # Workers in training are left the time to save their checkpoints.
        new_failures = set(snapshot.failed) - self._failed_before
        return self.job.fail_fast and bool(new_failures) and not snapshot.training

    def free_packs(self, snapshot: Snapshot) -> list[Pack]:
        """Unfinished packs that no process trains."""
        busy = {name for process in snapshot.running for name in process.cells}
        return [
            pack
            for pack in self.job.unfinished_packs()
            if not any(cell.id in busy for cell in pack.cells)
        ]

    def record_launch(self, job: str = "") -> None:
        """Write down this launch, so that `pml cancel` also ends workers that still start up.

        Args:
            job: number of its job where it waits in a queue.
        """
        name = job or f"{self.settings.kind}-{self.id}"
        record = own_folder(self.job.out, ".pml", "jobs") / f"{name}.json"
        slurm.record_launch(record, self.id, self.job.manifest.key)

    def cancel(self) -> None:
        """Ask the workers of this launch to save a checkpoint and end."""
        cancel_processes(self.job.out, [self.id])

    def worker_command(self, python: str | None, *options: str) -> str:
        """The shell command of a worker; all that it needs is on it or in the manifest.

        Args:
            python: shell command of the worker's Python; None: this process's.
            options: of the executor, for launch/worker.py.
        """
        arguments = [
            str(self.job.out.absolute()),
            self.job.manifest.key,
            f"--kind={self.settings.kind}",
            f"--launch={self.id}",
            f"--checkpoint-seconds={60 * self.settings.checkpoint_minutes}",
            f"--stale-seconds={self.settings.stale_seconds}",
            *options,
        ]
        if self.job.fail_fast:
            arguments.append("--fail-fast")
        # Said here, because the manifest alone must not make a worker run a model's own code.
        models = [cell.run.model for pack in self.job.packs for cell in pack.cells]
        if any(model.trust_remote_code for model in models):
            arguments.append("--trust-remote-code")

        interpreter = python or shlex.quote(sys.executable)
        return f"{interpreter} -u -m pml_cli.launch.worker {shlex.join(arguments)}"


class _Restarts:
    """Replaces workers that ended early, and gives up after launches without any progress."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self._last_launch = time.monotonic()
        self._fruitless = 0
        self._progress: tuple[int, float] | None = None

    def start_missing(self, snapshot: Snapshot) -> bool:
        """Start workers where some are missing and packs are free; False: it would be futile."""
        pool = self.pool
        running = pool.count_workers()
        if running is None or time.monotonic() - self._last_launch <= SETTLE_SECONDS:
            return True

        left_over = pool.free_packs(snapshot)[pool.count_waiting(snapshot) :]
        if running >= pool.size or not left_over:
            return True

        ended = len(snapshot.done) + len(snapshot.failed)
        progress = (ended, last_checkpoint_time(pool.job.out))
        # Checkpoints count as progress: a long pack may outlive several of its workers.
        self._fruitless = self._fruitless + 1 if progress == self._progress else 0
        self._progress = progress
        if self._fruitless >= FRUITLESS_LAUNCHES and not snapshot.training and not running:
            return False

        pool.start(left_over)
        self._last_launch = time.monotonic()
        return True


def last_checkpoint_time(out: Path) -> float:
    """When a checkpoint was last written or removed; 0 where there has never been one."""
    folder = out / ".pml" / "checkpoints"
    return folder.stat().st_mtime if folder.exists() else 0.0


def last_log_line(out: Path) -> str:
    """The last line that a worker wrote to its log, and the log; without one the folder of logs."""
    folder = out / ".pml" / "logs"
    logs = {}
    for path in folder.glob("*.err"):
        # Not through links, which may lead anywhere, and not of pipes.
        with suppress(OSError):
            content, status = read_regular(path)
            if not path.is_symlink():
                logs[path] = (status.st_mtime, content)

    for path in sorted(logs, key=lambda path: logs[path][0], reverse=True):
        text = printable(logs[path][1].decode("utf-8", "replace"))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # srun only says that the worker has ended
        own_lines = [line for line in lines if not line.startswith("srun: error")]
        if lines:
            return f"{(own_lines or lines)[-1]} ({path})"
    return str(folder)
