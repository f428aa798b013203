"""Workers: the same loop as processes on this machine or as jobs on a Slurm cluster, started by submitit.

A worker is told nothing but the folder and the sweep's key: it claims packs from the folder until none is free. So workers
may come and go. What submitit knows of a job is not used: what is done is read off the folder, what waits off squeue.
"""

from __future__ import annotations

import heapq
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from . import price, slurm
from .claims import Member
from .config import Launch, LocalLaunch, SlurmLaunch
from .errors import UserError
from .plan import Pack, Packing, Planned, device_kind
from .rates import Rates, device_label
from .records import RunFolder
from .status import Snapshot, Watcher, ask_to_end, living
from .stop import Signals, Stopped
from .units import duration_text
from .work import Order, Queue, work

SHARE = 0.8  # of a device's memory that packs are planned for: the estimate is of tensors alone
FOREVER_MINUTES = 60 * 24 * 365
FRUITLESS = 2  # launches in a row after which nothing more was done than before
LOOK_SECONDS = 1.0
QUEUE_SECONDS = 5.0  # between two questions to Slurm


@dataclass(frozen=True)
class Task:
    """What submitit starts: one worker. Runs before torch is imported, so that it can choose the device."""

    out: str
    key: str
    launch: Launch
    fail_fast: bool
    device: str | None = None  # CUDA_VISIBLE_DEVICES; None: as the cluster sets it
    threads: int = 0

    def __call__(self) -> None:
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if self.threads:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
        signals = Signals(slurm=self.launch.kind == "slurm")
        try:
            with signals:
                train_from(Path(self.out), self.key, self.launch, signals, fail_fast=self.fail_fast)
        except Stopped as stopped:
            if stopped.signum == signal.SIGUSR2:
                try:
                    signals.requeue()
                except subprocess.CalledProcessError as error:
                    raise SystemExit(f"this site takes no job back to its queue ({error}); run the sweep again") from error

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """Asked by submitit before a job goes back to the queue: it begins anew, the work is in the folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def train_from(out: Path, key: str, launch: Launch, signals: Signals, *, fail_fast: bool) -> None:
    """One worker: claim and train packs of a stored sweep until none is free."""
    order = Order.read(out / ".pml" / "requests" / f"{key}.json")
    with Member(out, launch.kind, launch.stale_seconds, key) as member:
        from .worker import Worker

        packs = order.packs()
        worker = Worker(out, member, signals, 60 * launch.checkpoint_minutes)
        queue = Queue(out, packs, member)

        def ended() -> bool:
            return fail_fast and any(RunFolder(out, name).error.exists() for name in order.cells)

        work(
            queue,
            lambda cells: worker.run(cells, lambda _cell, _failure: None, known=queue.known),
            lambda: worker.loaded,
            wait=False,
            ended=ended,
        )


# -- starting them


def start(out: Path, order: Order, launch: Launch, packs: list[Pack], fail_fast: bool) -> int:
    """Start as many workers as are wanted and not there yet.

    Args:
        packs: those that have something left to train.

    Returns:
        how many were started.

    Raises:
        UserError: the cluster refuses, or there is none.
    """
    folder = out / ".pml" / "logs"
    if isinstance(launch, LocalLaunch):
        ours = [r for r in living(out, launch.stale_seconds) if (r["kind"], r.get("order")) == ("local", order.key)]
        devices = local_devices(launch, [cell for pack in packs for cell in pack.cells])[: len(packs)][len(ours) :]
        return _start_local(Task(str(out), order.key, launch, fail_fast), devices, launch, folder)
    assert isinstance(launch, SlurmLaunch)
    slurm.check_there()
    waiting = slurm.jobs(out, order.key)
    if waiting is None:
        raise UserError("launch=slurm: squeue does not answer; try again later")
    count = min(launch.devices, len(packs)) - len(waiting)
    return _submit(Task(str(out), order.key, launch, fail_fast, threads=launch.cpus), max(count, 0), launch, folder)


def packing(launch: Launch, cells: Sequence[Planned]) -> Packing:
    """How a sweep is cut for the devices it is launched on."""
    told = round(launch.device_gb * 2**30) or None
    if isinstance(launch, SlurmLaunch):
        return Packing(launch.pack_tokens, launch.devices, gpu=launch.gpus > 0, memory=told)
    workers = local_devices(launch, cells) if isinstance(launch, LocalLaunch) else [""]
    kind = device_kind(cells[0].run.model.device)
    shared = len(workers) if kind == "cpu" else max(Counter(workers).values())
    there = price.device_memory(kind)
    return Packing(launch.pack_tokens, len(workers), memory=told or (there and int(SHARE * there / shared)))


def expected_seconds(launch: Launch, packs: Sequence[Pack]) -> list[float | None]:
    """What each pack will take on the devices of a launch, by what was measured on such before; None: nothing was."""
    workers = local_devices(launch, packs[0].cells) if isinstance(launch, LocalLaunch) else [""]
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores())
    if isinstance(launch, LocalLaunch):
        threads = launch.threads or max(1, cores() // len(workers))
    if isinstance(launch, SlurmLaunch):
        threads = launch.cpus
    gpu = launch.gpus > 0 if isinstance(launch, SlurmLaunch) else None
    kind, rates = device_kind(packs[0].cells[0].run.model.device, gpu), Rates()
    label = device_label(kind, threads)
    models = [pack.cells[0].run.model for pack in packs]
    return [label and rates.seconds(label, m.dtype, m.name, pack) for m, pack in zip(models, packs, strict=True)]  # type: ignore[misc]


def expectation(launch: Launch, packs: Sequence[Pack], seconds: Sequence[float | None]) -> str:
    """The time that a sweep will take, in a line."""
    known = [s for s in seconds if s is not None]
    if len(known) < len(packs):
        return "time: not known; it is measured while packs are trained on such a device"
    devices = 1
    if isinstance(launch, LocalLaunch | SlurmLaunch):
        devices = launch.devices or len(local_devices(launch, packs[0].cells))  # type: ignore[arg-type]
    ends = [0.0] * min(devices, len(packs))
    for one in known:  # whoever is free takes the next
        heapq.heapreplace(ends, ends[0] + one)
    on = f" on {len(ends)} devices" if len(ends) > 1 else ""
    return f"time: about {duration_text(max(ends))}{on}, by packs trained here before, without start and queue"


def local_devices(launch: LocalLaunch, cells: Sequence[Planned]) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each local worker; empty strings where they train on the CPU."""
    wanted = {device_kind(cell.run.model.device) for cell in cells}
    if "cuda" in wanted and (gpus := visible_gpus()):
        return [gpus[i % len(gpus)] for i in range(launch.devices or len(gpus))]
    return [""] * (launch.devices or max(1, cores() // 2))


def visible_gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them; without torch."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name for name in told.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi"):
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return [str(i) for i, line in enumerate(x for x in answer.stdout.splitlines() if x.startswith("GPU "))]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_local(task: Task, devices: list[str], launch: LocalLaunch, folder: Path) -> int:
    import dataclasses

    import submitit

    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(timeout_min=FOREVER_MINUTES)
    for device in devices:
        threads = launch.threads or max(1, cores() // len(devices))
        executor.submit(dataclasses.replace(task, device=device, threads=threads))
    return len(devices)


def _submit(task: Task, count: int, launch: SlurmLaunch, folder: Path) -> int:
    """Submit so many tasks as arrays, each within the site's limit."""
    if not count:
        return 0
    import submitit

    out = Path(task.out)
    executor = submitit.SlurmExecutor(folder, max_num_timeout=10**9, python=launch.python)
    wanted: dict[str, Any] = {
        "job_name": slurm.name_for(out),
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
    executor.update_parameters(**{name: value for name, value in wanted.items() if value is not None})
    size = slurm.max_array_size()
    for first in range(0, count, size):
        part = min(size, count - first)
        executor.update_parameters(array_parallelism=launch.parallel or part)
        with TemporaryFile() as words:
            try:
                with _stderr_to(words.fileno()):
                    jobs = executor.submit_array([task] * part)
            except Exception as error:  # submitit has one class for what sbatch says, and raises others around it
                words.seek(0)
                raise UserError(f"launch=slurm: {_said(words.read().decode(errors='replace') or str(error))}") from error
        slurm.note_job(out, jobs[0].job_id.split("_")[0], task.key)
    return count


@contextmanager
def _stderr_to(file: int) -> Iterator[None]:
    """Have this process and those it starts write their errors to a file."""
    before = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _said(words: str) -> str:
    """The lines of sbatch that tell what is wrong, as one."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    told = [line.removeprefix("sbatch: error: ") for line in lines if line.startswith("sbatch: error")]
    return "; ".join(told) or (lines or ["refused"])[-1]


# -- waiting for them


def wait_for(
    out: Path,
    order: Order,
    launch: Launch,
    left: Callable[[], list[Pack]],
    show: Callable[[Snapshot], None],
    *,
    fail_fast: bool,
) -> bool:
    """Watch the workers until every cell has ended; start new ones where some died.

    Args:
        left: the packs that have something left to train.
        show: told of every look.

    Returns:
        whether every cell has ended; not when the workers end again and again without having done anything, or after a
        first failure under --fail-fast.

    Raises:
        Stopped: this process was asked to end.
    """
    watcher, fruitless, before, asked = Watcher(out, order), 0, (-1, 0.0), 0.0
    with Member(out, "driver", launch.stale_seconds, order.key) as member:
        waiting: list[slurm.Job] | None = []
        began = time.monotonic()
        while True:
            due = launch.kind == "slurm" and time.monotonic() - asked > QUEUE_SECONDS
            looked = time.monotonic()
            snapshot = watcher.look(queue=due)
            took = time.monotonic() - looked
            if due:
                waiting, asked = snapshot.jobs, time.monotonic()
            show(snapshot)
            training = [r for r in snapshot.running if r.kind != "driver"]
            if len(snapshot.done) + len(snapshot.failed) == len(snapshot.cells):
                return True
            if fail_fast and snapshot.failed and not training:
                return False
            if member.cancelled:
                raise Stopped("cancelled")
            # a worker shows itself a moment after it was started
            if not training and waiting == [] and time.monotonic() - began > 20 * LOOK_SECONDS:
                done = (len(snapshot.done) + len(snapshot.failed), _last_checkpoint(out))
                fruitless = fruitless + 1 if done == before else 0
                if fruitless >= FRUITLESS:
                    return False
                before = done
                start(out, order, launch, left(), fail_fast)
                began, asked = time.monotonic(), 0.0
            time.sleep(max(LOOK_SECONDS, 10 * took))  # many cells on a slow disk: look less often


def _last_checkpoint(out: Path) -> float:
    """When a checkpoint was last written or taken away."""
    folder = out / ".pml" / "checkpoints"
    return folder.stat().st_mtime if folder.exists() else 0.0


def last_words(out: Path) -> str:
    """The last line that a worker left in its log, and where."""
    logs = sorted((out / ".pml" / "logs").glob("*.err"), key=lambda path: path.stat().st_mtime)
    for path in reversed(logs):
        lines = [line for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        if lines:
            own = [line for line in lines if not line.startswith("srun: error")] or lines  # srun only says that it ended
            return f"{own[-1].strip()} ({path})"
    return str(out / ".pml" / "logs")


def end_local(out: Path) -> None:
    """Ask this machine's workers of a folder to keep a checkpoint and end, and wait a little for it."""
    ask_to_end(out, [record["name"] for record in living(out) if record["kind"] == "local"])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(record["kind"] == "local" for record in living(out)):
        time.sleep(0.5)
