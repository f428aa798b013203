"""The devices of a launch: which there are, how packs are cut for them, how long they will take. Without torch."""

from __future__ import annotations

import heapq
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pml_cli.config.schema import Launch, Run
from pml_cli.data.cell import CellPlan
from pml_cli.format import duration_text
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import Packing
from pml_cli.launch.throughput import Throughput, device_label
from pml_cli.model.device import device_kind, device_memory

SHARE = 0.8  # of a device's memory that packs are planned for: the estimate is of tensors alone


def packing(launch: Launch, cells: Sequence[CellPlan]) -> Packing:
    """How a sweep is cut for the devices it is launched on."""
    runs = [cell.run for cell in cells]
    workers = launch.visible_devices(runs)
    memory = round(launch.device_gb * 2**30) or None
    if memory is None and not launch.remote:
        memory = _memory_per_worker(device_kind(runs[0].model.device), workers)
    return Packing(
        pack_tokens=launch.pack_tokens,
        devices=len(workers),
        gpu=launch.uses_gpu,
        memory=memory,
    )


def _memory_per_worker(kind: str, workers: Sequence[str | None]) -> int | None:
    """Bytes that each worker's packs may fill on this machine; None: not known."""
    memory = device_memory(kind)
    if not memory:
        return None
    # Workers share the machine's memory, or a GPU's where there are more workers than GPUs.
    sharing = len(workers) if kind == "cpu" else max(Counter(workers).values())
    return int(SHARE * memory / sharing)


def expected_seconds(launch: Launch, packs: Sequence[Pack]) -> list[float | None]:
    """What each pack will take on the devices of a launch, by what was measured on such before.

    Returns:
        seconds by pack; None where nothing was measured.
    """
    runs = [cell.run for cell in packs[0].cells]
    workers = launch.visible_devices(runs)
    threads = launch.worker_threads(len(workers)) or _openmp_threads()
    kind = device_kind(runs[0].model.device, launch.uses_gpu)
    label = device_label(kind, threads)
    if not label:
        return [None] * len(packs)

    throughput = Throughput()
    models = [pack.cells[0].run.model for pack in packs]
    return [
        throughput.expected_seconds(label, model.dtype, model.name, pack)
        for model, pack in zip(models, packs, strict=True)
    ]


def _openmp_threads() -> int:
    # A list holds one number for each level of nesting.
    outermost = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(outermost) if outermost.isdigit() else cores()


def expectation(launch: Launch, packs: Sequence[Pack], seconds: Sequence[float | None]) -> str:
    """The time that a sweep will take, in a line."""
    known = [s for s in seconds if s is not None]
    if len(known) < len(packs):
        return "time: not known; it is measured while packs are trained on such a device"
    workers = launch.visible_devices([cell.run for cell in packs[0].cells])
    ends = [0.0] * min(len(workers), len(packs))
    for one in known:  # whoever is free takes the next
        heapq.heapreplace(ends, ends[0] + one)
    on = f" on {len(ends)} devices" if len(ends) > 1 else ""
    return f"time: about {duration_text(max(ends))}{on}, by packs trained here before, without start and queue"


def local_devices(count: int, runs: Sequence[Run]) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each local worker; empty strings where they train on the CPU.

    Args:
        count: how many workers; 0: one for each GPU, without a GPU one for each two cores.
        runs: what they are to train.
    """
    kinds = {device_kind(run.model.device) for run in runs}
    if "cuda" in kinds:
        gpus = visible_gpus()
        if gpus:
            return [gpus[i % len(gpus)] for i in range(count or len(gpus))]
    return [""] * (count or max(1, cores() // 2))


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
