"""The processors and GPUs of this machine, as its workers share them. Without torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from pml_cli.config.schema import Run
from pml_cli.model.device import (
    MEMORY_SHARE,
    allowed_gpus,
    device_kind,
    device_memory,
    gpu_files,
    nvidia_smi,
)


def local_devices(count: int, runs: Sequence[Run]) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each local worker; empty texts where they train on the CPU.

    Args:
        count: number of workers; 0: one for each GPU, without a GPU one for each two cores.
        runs: what they are to train.
    """
    needs_gpu = any(device_kind(run.model.device) == "cuda" for run in runs)
    gpus = visible_gpus() if needs_gpu else []

    if gpus:
        # Workers in excess of the GPUs share them.
        return [gpus[i % len(gpus)] for i in range(count or len(gpus))]
    return [""] * (count or max(1, cores() // 2))


def memory_per_worker(kind: str, visible_devices: Sequence[str | None]) -> int | None:
    """Bytes that the packs of each worker of this machine may fill; None: unknown.

    Args:
        kind: cuda or cpu.
        visible_devices: CUDA_VISIBLE_DEVICES of each worker.
    """
    memory = device_memory(kind)
    if not memory:
        return None

    sharing = len(visible_devices)
    if kind == "cuda":
        sharing = max(Counter(visible_devices).values())
    return int(MEMORY_SHARE * memory / sharing)


def visible_gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    allowed = allowed_gpus()
    if allowed is not None:
        return allowed

    count = sum(line.startswith("GPU ") for line in nvidia_smi("-L"))
    if not count:
        # In a container nvidia-smi may be missing.
        count = len(gpu_files())
    return [str(index) for index in range(count)]


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def openmp_threads() -> int:
    """CPU threads of an operation of this process: OMP_NUM_THREADS, else all cores."""
    # A list has one number for each level of nesting.
    outermost = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(outermost) if outermost.isdigit() else cores()
