"""How fast packs were trained on a device before, and so how long others will take.

Without torch.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Gt, Len, Lt

from pml_cli.config.schema import Launch
from pml_cli.errors import UserError
from pml_cli.io import cache_folder, write_json
from pml_cli.launch.cost_model import training_flops
from pml_cli.launch.devices import openmp_threads
from pml_cli.launch.pack import Pack
from pml_cli.model.device import device_kind, query_gpus
from pml_cli.stats import Array
from pml_cli.validation import read_json

if TYPE_CHECKING:
    import torch

# Measured points of one device, dtype and model that are kept, the latest.
MAX_POINTS = 50

Positive = Annotated[float, Gt(1e-12), Lt(1e30)]

# [FLOPs, seconds] of a training step.
Point = Annotated[list[Positive], Len(2, 2)]

# Measured points by device, dtype and model.
PointsByModel = dict[str, list[Point]]
Points = dict[str, dict[str, PointsByModel]]


def expected_seconds(launch: Launch, packs: Sequence[Pack]) -> list[float | None]:
    """How long each pack will take on the devices of a launch.

    Returns:
        Seconds by pack; None where nothing was measured on such a device.
    """
    label = _label_of(launch, packs)
    if not label:
        return [None] * len(packs)

    throughput = Throughput()
    seconds = []
    for pack in packs:
        model = pack.cells[0].run.model
        seconds.append(throughput.expected_seconds(label, model.dtype, model.name, pack))
    return seconds


def timed_by_others(launch: Launch, packs: Sequence[Pack]) -> set[str]:
    """Names of the models of which nothing was measured: their times are those of other models."""
    label = _label_of(launch, packs)
    if not label:
        return set()
    throughput = Throughput()
    models = [pack.cells[0].run.model for pack in packs]
    return {model.name for model in models if not throughput.knows(label, model.dtype, model.name)}


def _label_of(launch: Launch, packs: Sequence[Pack]) -> str | None:
    """The device on which a launch would train the packs."""
    runs = [cell.run for cell in packs[0].cells]
    workers = launch.visible_devices(runs)
    threads = launch.worker_threads(len(workers)) or openmp_threads()
    kind = device_kind(runs[0].model.device, launch.uses_gpu)
    return device_label(kind, threads)


def makespan(seconds: Sequence[float], devices: int) -> float:
    """Seconds until the last of some devices is done; a free one takes the next pack.

    Args:
        seconds: of each pack, in the order in which they are taken.
        devices: number of devices.
    """
    ends = [0.0] * devices
    for duration in seconds:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def device_label(kind: str, threads: int) -> str | None:
    """The name under which speeds of a device are recorded, without torch.

    Args:
        kind: cuda or cpu.
        threads: CPU threads of a worker.

    Returns:
        None where the GPU cannot be asked.
    """
    if kind == "cpu":
        return _cpu_label(threads)

    names = query_gpus("name")
    return names[0].strip() if names else None


def torch_device_label(device: torch.device) -> str:
    """Name of the device of a loaded model, with the number of threads of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_label(torch.get_num_threads())


def _cpu_label(threads: int) -> str:
    return f"cpu, {threads} threads"


class Throughput:
    """Measured speeds: rates.json in the cache folder. A damaged file counts as empty.

    Attributes:
        path: the file.
    """

    def __init__(self) -> None:
        self.path = cache_folder() / "rates.json"

    def record(self, device: str, dtype: str, model: str, pack: Pack, seconds: float) -> None:
        """Record the seconds that all steps of a pack took.

        A cache that cannot be written is ignored.
        """
        steps = pack.cells[0].steps
        point = [training_flops(pack) / steps, seconds / steps]

        points = self._read()
        by_dtype = points.setdefault(device, {})
        by_model = by_dtype.setdefault(dtype, {})
        by_model[model] = [*by_model.get(model, []), point][-MAX_POINTS:]
        with suppress(OSError, ValueError):
            write_json(self.path, points, indent=None)

    def knows(self, device: str, dtype: str, model: str) -> bool:
        """Whether packs of this very model were measured on such a device."""
        return bool(self._read().get(device, {}).get(dtype, {}).get(model))

    def expected_seconds(self, device: str, dtype: str, model: str, pack: Pack) -> float | None:
        """How long the training of a pack will take.

        By packs of its model, else of any model, on this device and in this dtype.

        Returns:
            None where nothing was measured.
        """
        by_dtype = self._read().get(device, {})
        by_model = by_dtype.get(dtype, {})
        points = by_model.get(model) or list(itertools.chain.from_iterable(by_model.values()))
        if not points:
            return None

        overhead, per_flop = _fit_line(np.array(points))
        return pack.cells[0].steps * overhead + training_flops(pack) * per_flop

    def _read(self) -> Points:
        try:
            points: Points = read_json(self.path, Points, "")
        except UserError:
            return {}
        return points


def _fit_line(points_N2: Array) -> tuple[float, float]:
    """Seconds of a step = overhead + FLOPs * per_flop, both at least 0, of least relative error.

    One or two sizes of step do not identify both: the overhead is then 0.

    Args:
        points_N2: FLOPs and seconds of each step, (N, 2).

    Returns:
        overhead (seconds) and seconds per FLOP.
    """
    from scipy.optimize import nnls

    flops, seconds = points_N2.T
    columns = np.stack([flops / seconds, 1 / seconds], axis=1)
    if len(set(flops)) <= 2:
        columns = columns[:, :1]

    # Scaled columns: the two unknowns differ by many orders of magnitude.
    scale = columns.max(axis=0)
    scaled_solution, _ = nnls(columns / scale, np.ones(len(seconds)))
    solution = scaled_solution / scale
    overhead = float(solution[1]) if len(solution) > 1 else 0.0
    return overhead, float(solution[0])
