"""The devices of a launch: which there are, how packs are cut for them, how long they will take. Without torch."""

from __future__ import annotations

import heapq
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pml_cli.config.schema import Launch, LocalLaunch, SlurmLaunch
from pml_cli.data.cell import CellPlan
from pml_cli.format import duration_text
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import Packing
from pml_cli.launch.throughput import Throughput, device_label
from pml_cli.model.device import device_kind, device_memory

SHARE = 0.8  # of a device's memory that packs are planned for: the estimate is of tensors alone


def packing(launch: Launch, cells: Sequence[CellPlan]) -> Packing:
    """How a sweep is cut for the devices it is launched on."""
    told = round(launch.device_gb * 2**30) or None
    if isinstance(launch, SlurmLaunch):
        return Packing(
            pack_tokens=launch.pack_tokens, devices=launch.devices, gpu=launch.gpus > 0, memory=told
        )
    workers = local_devices(launch, cells) if isinstance(launch, LocalLaunch) else [""]
    kind = device_kind(cells[0].run.model.device)
    shared = len(workers) if kind == "cpu" else max(Counter(workers).values())
    there = device_memory(kind)
    return Packing(
        pack_tokens=launch.pack_tokens,
        devices=len(workers),
        memory=told or (there and int(SHARE * there / shared)),
    )


def expected_seconds(launch: Launch, packs: Sequence[Pack]) -> list[float | None]:
    """What each pack will take on the devices of a launch, by what was measured on such before; None: nothing was."""
    workers = local_devices(launch, packs[0].cells) if isinstance(launch, LocalLaunch) else [""]
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[
        0
    ]  # a list is one number for each level of nesting
    threads = int(told) if told.isdigit() else cores()
    if isinstance(launch, LocalLaunch):
        threads = launch.threads or max(1, cores() // len(workers))
    if isinstance(launch, SlurmLaunch):
        threads = launch.cpus
    gpu = launch.gpus > 0 if isinstance(launch, SlurmLaunch) else None
    kind, rates = device_kind(packs[0].cells[0].run.model.device, gpu), Throughput()
    label = device_label(kind, threads)
    models = [pack.cells[0].run.model for pack in packs]
    return [
        label and rates.expected_seconds(label, m.dtype, m.name, pack)
        for m, pack in zip(models, packs, strict=True)
    ]  # type: ignore[misc]


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


def local_devices(launch: LocalLaunch, cells: Sequence[CellPlan]) -> list[str]:
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
            return [
                str(i)
                for i, line in enumerate(
                    x for x in answer.stdout.splitlines() if x.startswith("GPU ")
                )
            ]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
