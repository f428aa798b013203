"""`launch=local`: processes of this machine, each with a device of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pml_cli.config.registry import register
from pml_cli.config.schema import Launch, Run
from pml_cli.config.setting import setting
from pml_cli.format import counted
from pml_cli.io import own_folder
from pml_cli.launch.executors.base import SweepJob, WorkerPool
from pml_cli.launch.liveness import Record, living_processes, process_identity
from pml_cli.launch.signals import Stopped

if TYPE_CHECKING:
    from pml_cli.launch.pack import Pack
    from pml_cli.launch.status import Snapshot

# Seconds that the driver waits for its workers to save their checkpoints.
END_SECONDS = 30.0


@register("launch", "local")
@dataclass(kw_only=True)
class LocalLaunch(Launch):
    """Processes of this machine, each with a device of its own."""

    assigns_devices: ClassVar[bool] = True

    kind: str = "local"
    devices: int = setting(
        0,
        help="number of processes",
        minimum=0,
        special={0: "one for each GPU; without a GPU, one for each two cores"},
    )
    threads: int = setting(
        0, help="CPU threads of a process", minimum=0, special={0: "an equal share of the cores"}
    )

    def visible_devices(self, runs: Sequence[Run]) -> list[str | None]:
        from pml_cli.launch.devices import local_devices

        return [*local_devices(self.devices, runs)]

    def worker_threads(self, workers: int) -> int:
        from pml_cli.launch.devices import cores

        return self.threads or max(1, cores() // workers)

    def executor(self, job: SweepJob) -> LocalExecutor:
        return LocalExecutor(job, self)


class LocalExecutor(WorkerPool):
    """Starts one process for each device."""

    settings: LocalLaunch

    def __init__(self, job: SweepJob, settings: LocalLaunch) -> None:
        runs = [cell.run for pack in job.packs for cell in pack.cells]
        self._devices = settings.visible_devices(runs)
        super().__init__(job, settings, size=len(self._devices))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def describe(self, count: int) -> str:
        return counted(count, "process", "es")

    def count_workers(self) -> int:
        return len(self._occupied_slots())

    def count_waiting(self, snapshot: Snapshot) -> int:
        busy = set()
        for slot, record in self._own_records():
            activity = record.get("doing") or {}
            if activity.get("names"):
                busy.add(slot)
        return len(self._occupied_slots() - busy)

    def _occupied_slots(self) -> set[int]:
        """Devices with a worker: also those of an earlier launch, and those still starting up."""
        # A starting process has no lease yet, and one of an earlier driver is not a child process.
        starting = {slot for slot, process in self._processes.items() if process.poll() is None}
        return starting | {slot for slot, _ in self._own_records()}

    def _own_records(self) -> Iterator[tuple[int, Record]]:
        """Device and record of each worker of this sweep, user and machine that has a lease."""
        # Others name what slots they like.
        place = process_identity()["place"]
        user = self.job.manifest.path.stat().st_uid
        for record in living_processes(self.job.out):
            same_sweep = record.get("order") == self.job.manifest.key
            is_ours = (record["place"], record["owner"]) == (place, user)
            if same_sweep and is_ours and record["kind"] == self.settings.kind:
                yield int(record.get("slot") or 0), record

    def start(self, packs: Sequence[Pack]) -> int:
        # Before the workers, so that none can be missed.
        self.record_launch()
        occupied = self._occupied_slots()
        free_slots = [slot for slot in range(self.size) if slot not in occupied]
        # More workers than packs would only wait.
        used_slots = free_slots[: len(packs)]
        for slot in used_slots:
            self._processes[slot] = self._start_process(slot)
        return len(used_slots)

    def _start_process(self, slot: int) -> subprocess.Popen[bytes]:
        threads = self.settings.worker_threads(self.size)
        command = self.worker_command(None, f"--slot={slot}", f"--threads={threads}")
        environment = dict(os.environ)
        device = self._devices[slot]
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device

        own_folder(self.job.out, ".pml", "logs")
        log = self.log_folder / f"{self.id}_{slot}_log"
        # Files of its own: a pipe that this process writes to would stay open with the worker.
        with log.with_suffix(".out").open("ab") as out, log.with_suffix(".err").open("ab") as err:
            return subprocess.Popen(
                shlex.split(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def interrupted(self, stopped: Stopped) -> str:
        """Cancel the workers, and give them a while to end."""
        self.cancel()
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            if all(process.poll() is not None for process in self._processes.values()):
                break
            time.sleep(0.3)
        return "interrupted; the same command goes on"
