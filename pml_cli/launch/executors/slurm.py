"""`launch=slurm`: an array of jobs on a Slurm cluster, each with a device of its own.

submitit writes the batch script and submits it. Of its pickled callables nothing is used: the
script runs `python -m pml_cli.launch.worker` with all arguments on its command line. A job that
goes back to the queue starts again from the same script and resumes from the checkpoints.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pml_cli.config.registry import register
from pml_cli.config.schema import Launch, Run
from pml_cli.config.setting import setting
from pml_cli.errors import CONTROL, UserError, printable
from pml_cli.format import counted
from pml_cli.io import own_folder
from pml_cli.launch import slurm
from pml_cli.launch.executors.base import SweepJob, WorkerPool
from pml_cli.launch.signals import Stopped
from pml_cli.launch.status import Snapshot, Watcher

if TYPE_CHECKING:
    from submitit import SlurmExecutor as BatchScripts

    from pml_cli.launch.pack import Pack

# Seconds between two questions to the queue.
QUEUE_SECONDS = 5.0

# A task that runs for longer and has no lease hangs, and will take no pack.
START_UP_SECONDS = 300.0


@register("launch", "slurm")
@dataclass(kw_only=True)
class SlurmLaunch(Launch):
    """An array of jobs on a Slurm cluster, each with a device of its own.

    null leaves a setting to the site.
    """

    remote: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    assigns_devices: ClassVar[bool] = True

    kind: str = "slurm"
    devices: int = setting(4, help="tasks of the array", minimum=1)
    parallel: int = setting(0, help="tasks that may run at once", minimum=0, special={0: "all"})
    partition: str | None = setting(None, help="sbatch --partition", one_line=True)
    account: str | None = setting(None, help="sbatch --account", one_line=True)
    qos: str | None = setting(None, help="sbatch --qos", one_line=True)
    time: int = setting(
        240,
        help="time limit of a task; unfinished cells continue in the next one",
        unit="minutes",
        minimum=1,
    )
    gpus: int = setting(1, help="GPUs of a task", minimum=0, special={0: "none requested"})
    cpus: int = setting(4, help="CPUs of a task", minimum=1)
    mem_gb: float | None = setting(None, help="memory of a task", unit="GB", above=0, finite=True)
    constraint: str | None = setting(None, help="sbatch --constraint", one_line=True)
    signal_seconds: int = setting(
        90,
        help="time before the limit at which a task writes a checkpoint and is requeued",
        unit="seconds",
        minimum=1,
    )
    setup: list[str] = setting([], help="shell lines before the worker starts: module load ...")
    python: str | None = setting(
        None,
        help="command of the worker's Python",
        special={None: "this Python"},
        one_line=True,
    )
    extra: dict[str, Any] = setting({}, help="any other sbatch option: {mail-type: END}")

    @property
    def uses_gpu(self) -> bool:
        return self.gpus > 0

    def validate(self) -> Iterator[str]:
        if self.signal_seconds >= 60 * self.time:
            limit = f"the time limit ({self.time} min)"
            yield f"signal_seconds={self.signal_seconds}: must be below {limit}"
        # A line of the batch script each; what follows a line break would be a command.
        for name, value in self.extra.items():
            if CONTROL.search(f"{name}{value}") or "\n" in f"{name}{value}":
                yield f"extra.{printable(str(name))}: must be one line, without control characters"

    def check_available(self) -> None:
        slurm.check_available()

    def visible_devices(self, runs: Sequence[Run]) -> list[str | None]:
        return [None] * self.devices

    def worker_threads(self, workers: int) -> int:
        return self.cpus

    def executor(self, job: SweepJob) -> SlurmExecutor:
        return SlurmExecutor(job, self)


class SlurmExecutor(WorkerPool):
    """Submits the workers as tasks of job arrays."""

    settings: SlurmLaunch

    def __init__(self, job: SweepJob, settings: SlurmLaunch) -> None:
        super().__init__(job, settings, size=settings.devices)
        self._jobs: Sequence[slurm.Job] | None = []
        self._queue_asked = 0.0
        self._first_seen_running: dict[str, float] = {}

    def describe(self, count: int) -> str:
        return counted(count, "Slurm job")

    def look(self, watcher: Watcher) -> Snapshot:
        due = time.monotonic() - self._queue_asked > QUEUE_SECONDS
        snapshot = watcher.look(queue=due)
        # Between two answers the last one holds.
        if due:
            self._queue_asked = time.monotonic()
            self._jobs = snapshot.jobs
            self._note_first_seen(snapshot.jobs or ())
        return snapshot

    def _note_first_seen(self, jobs: Sequence[slurm.Job]) -> None:
        now = time.monotonic()
        running = [job.id for job in jobs if job.state == "RUNNING"]
        self._first_seen_running = {job: self._first_seen_running.get(job, now) for job in running}

    def count_workers(self) -> int | None:
        return None if self._jobs is None else len(able_to_work(self._jobs))

    def count_waiting(self, snapshot: Snapshot) -> int:
        has_pack = {process.job: bool(process.cells) for process in snapshot.running}
        return sum(
            not has_pack[job.id] if job.id in has_pack else self._is_starting(job)
            for job in able_to_work(self._jobs or ())
        )

    def _is_starting(self, job: slurm.Job) -> bool:
        """Whether a job without a lease waits in the queue, or may still import torch."""
        first_seen = self._first_seen_running.get(job.id)
        return first_seen is None or time.monotonic() - first_seen < START_UP_SECONDS

    def start(self, packs: Sequence[Pack]) -> int:
        slurm.check_available()
        jobs = slurm.queued_jobs(self.job.out, self.job.manifest.key)
        if jobs is None:
            raise UserError("launch=slurm: squeue does not answer; try again later")

        missing = min(self.size - len(able_to_work(jobs)), len(packs))
        if missing > 0:
            self._submit(missing)
        # The cached answer is dropped: the queue has changed.
        self._queue_asked = 0.0
        return max(0, missing)

    def script(self) -> str:
        """The script of all tasks; the id of the launch in it is another one in a submission."""
        tasks = min(self.size, len(self.job.unfinished_packs()))
        scripts = self._batch_scripts(tasks)
        return str(scripts._make_submission_file_text(self._command(), self.id))

    def _command(self) -> str:
        """The shell command of a task."""
        threads = f"--threads={self.settings.cpus}"
        return self.worker_command(self.settings.python, "--requeue", threads)

    def _submit(self, count: int) -> None:
        """Submit tasks as arrays that keep to the site's limit.

        Raises:
            UserError: what sbatch said, in one line.
        """
        command = self._command()
        own_folder(self.job.out, ".pml", "logs")
        # A name that nobody can have foreseen, and laid a link there.
        sbatch_log = self.log_folder / f"{self.id}_sbatch.log"
        largest = slurm.max_array_size()

        for start in range(0, count, largest):
            tasks = min(largest, count - start)
            try:
                with output_to(sbatch_log):
                    job = self._submit_array(command, tasks)
            # submitit has one class for what sbatch says, and raises others around it
            except Exception as error:
                message = sbatch_log.read_text("utf-8", "replace") or str(error)
                raise UserError(f"launch=slurm: {sbatch_reason(message)}") from error
            self.record_launch(job)

    def _submit_array(self, command: str, tasks: int) -> str:
        """Submit a command as the tasks of one array (one task: a plain job); the job's number."""
        scripts = self._batch_scripts(tasks)
        # The public `submit` would pickle a callable; this submits the command as it is.
        return str(scripts._submit_command(command).job_id)

    def _batch_scripts(self, tasks: int) -> BatchScripts:
        import submitit

        class Scripts(submitit.SlurmExecutor):  # type: ignore[misc]
            @classmethod
            def affinity(cls) -> int:
                # A dry run may be on a machine without srun; `start` has looked for Slurm.
                return 1

        settings = self.settings
        memory = None if settings.mem_gb is None else f"{round(1024 * settings.mem_gb)}M"
        parameters: dict[str, Any] = {
            "job_name": slurm.job_name(self.job.out),
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "time": settings.time,
            "gpus_per_node": settings.gpus or None,
            "cpus_per_task": settings.cpus,
            "mem": memory,
            "constraint": settings.constraint,
            "signal_delay_s": settings.signal_seconds,
            "setup": settings.setup or None,
            "array_parallelism": settings.parallel or tasks,
            # Without it, a site may forbid a job to go back to the queue.
            "additional_parameters": {"requeue": True} | settings.extra,
        }
        scripts = Scripts(self.log_folder)
        scripts.update_parameters(
            **{name: value for name, value in parameters.items() if value is not None}
        )
        # submitit sets this for arrays alone, in the submission of several callables.
        if tasks > 1:
            scripts.parameters["map_count"] = tasks
        return scripts

    def interrupted(self, stopped: Stopped) -> str:
        """The jobs go on, unless it was `pml cancel` that ended this process too."""
        if stopped.signum is None:
            return "interrupted; the same command goes on"
        return "no longer waiting; the jobs go on (pml status shows them, pml cancel stops them)"


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Redirect stdout and stderr, also of the commands that are run, to a file that is emptied."""
    sys.stdout.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            for descriptor, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)


def able_to_work(jobs: Sequence[slurm.Job]) -> list[slurm.Job]:
    """Jobs that may still take packs: one that completes takes no more."""
    return [job for job in jobs if job.state != "COMPLETING"]


def sbatch_reason(output: str) -> str:
    """The lines of sbatch that say what is wrong, as one line."""
    prefix = "sbatch: error: "
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix(prefix) for line in lines if line.startswith("sbatch: error")]
    return "; ".join(errors) or (lines or ["refused"])[-1]
