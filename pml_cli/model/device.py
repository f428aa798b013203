"""The device that a model lies on, and its memory.

Only the functions that return or inspect objects of torch import it.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pml_cli.config.schema import DEVICES_ALLOWED
from pml_cli.errors import UserError

if TYPE_CHECKING:
    import torch

# Share of a device's memory that may be filled: what is counted are tensors alone.
MEMORY_SHARE = 0.8

# Memory limit of the control group (container) that this process runs in.
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

# Where the system shows its GPUs.
DEVICE_FILES = Path("/dev")


def device_kind(device: str, has_gpu: bool | None = None) -> str:
    """ "cuda" or "cpu", guessed without torch.

    Args:
        device: `model.device`.
        has_gpu: whether there is a GPU where the model will run; None: look on this machine.
    """
    if device != "auto":
        return "cuda" if device.startswith("cuda") else "cpu"

    if has_gpu is None:
        has_gpu = _has_gpu()
    return "cuda" if has_gpu else "cpu"


def _has_gpu() -> bool:
    if allowed_gpus() == []:
        return False
    # A container may be given any of them; under WSL there is one file for all.
    return bool(gpu_files()) or (DEVICE_FILES / "dxg").exists()


def gpu_files() -> list[Path]:
    """A file for each GPU that the system shows."""
    return sorted(DEVICE_FILES.glob("nvidia[0-9]*"))


def allowed_gpus() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names; None: all of this machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    names = [name.strip() for name in visible.split(",")]
    return [name for name in names if name not in ("", "-1")]


def device_memory(kind: str) -> int | None:
    """Bytes of memory of this machine ("cpu") or of the smallest GPU that may be used ("cuda").

    None: unknown.
    """
    return _machine_memory() if kind == "cpu" else _smallest_gpu_memory()


def _machine_memory() -> int:
    total = int(psutil.virtual_memory().total)
    if not CGROUP_LIMIT.exists():
        return total

    # "max" stands for no limit.
    limit = CGROUP_LIMIT.read_text("utf-8").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _smallest_gpu_memory() -> int | None:
    lines = query_gpus("memory.total")
    try:
        return min(int(line) for line in lines) * 2**20
    # No GPU is listed, or one says "[N/A]".
    except ValueError:
        return None


def query_gpus(field: str) -> list[str]:
    """A field of each GPU that may be used, as nvidia-smi prints it; [] if it cannot be asked."""
    allowed = allowed_gpus()
    chosen = ["-i", ",".join(allowed)] if allowed else []
    return nvidia_smi(*chosen, f"--query-gpu={field}", "--format=csv,noheader,nounits")


def nvidia_smi(*arguments: str) -> list[str]:
    """Non-empty lines that nvidia-smi prints; [] if there is no such program or it fails."""
    program = shutil.which("nvidia-smi")
    return [] if program is None else _lines_of(program, *arguments)


# It takes seconds where the driver is loaded for it, and its answer does not change.
@lru_cache(maxsize=8)
def _lines_of(*command: str) -> list[str]:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in answer.stdout.splitlines() if line.strip()]


def pick_device(device: str) -> torch.device:
    """The torch device of `model.device`; "auto" is CUDA if there is a device, else the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"model.device={device}: must be {DEVICES_ALLOWED}") from error

    if picked.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"model.device={device}: no CUDA device here; use auto or cpu")
    if picked.type == "cuda":
        count = torch.cuda.device_count()
        if (picked.index or 0) >= count:
            last = f"the last CUDA device here is cuda:{count - 1}"
            raise UserError(f"model.device={device}: {last}")
    return picked


def usable_memory(device: torch.device) -> int:
    """Bytes that tensors may fill on a device that this process has for itself."""
    import torch

    if device.type == "cuda":
        # Of a slice of a GPU (MIG) its own memory; nvidia-smi tells that of the whole GPU.
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = _machine_memory()
    return int(MEMORY_SHARE * total)


def free_memory() -> None:
    """Give back what is no longer used: what only circles hold, and a GPU's cache."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the memory of a GPU or of the machine did not suffice."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True

    message = str(error).lower()
    # The last: CUBLAS_STATUS_ALLOC_FAILED and the like, of CUDA's libraries.
    phrases = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return any(phrase in message for phrase in phrases)


def is_fault_of_machine(error: Exception) -> bool:
    """Whether memory ran out or a GPU does not answer, which says nothing of a model's files."""
    import torch

    return out_of_memory(error) or isinstance(error, torch.AcceleratorError)
