"""How fast packs were trained here before, and so what others will take. Without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pml_cli.io import atomic_write
from pml_cli.launch.cost_model import flops
from pml_cli.launch.packing import Pack

KEPT = 50  # measured points of one device, dtype and model
Points = dict[
    str, dict[str, dict[str, list[list[float]]]]
]  # device, dtype, model -> (FLOPs, seconds) of a step


def device_label(kind: str, threads: int) -> str | None:
    """The name under which a worker of this machine notes its speed (see `worker.device_label`), without torch."""
    if kind == "cpu":
        return f"cpu, {threads} threads"
    if not (program := shutil.which("nvidia-smi")):
        return None
    asked = [program, "--query-gpu=name", "--format=csv,noheader"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return told.splitlines()[0] if told else None


class Rates:
    """How fast packs were trained here before: rates.json in the cache folder. A damaged file counts as empty."""

    def __init__(self) -> None:
        own, shared = os.environ.get("PML_CACHE"), os.environ.get("XDG_CACHE_HOME")
        self.path = Path(own or Path(shared or "~/.cache") / "pml").expanduser() / "rates.json"

    def note(self, device: str, dtype: str, model: str, pack: Pack, seconds: float) -> None:
        """Keep the seconds that all steps of a pack took; lost where the file cannot be written."""
        steps, points = pack.cells[0].steps, self._read()
        known = points.setdefault(device, {}).setdefault(dtype, {})
        known[model] = [*known.get(model, []), [flops(pack) / steps, seconds / steps]][-KEPT:]
        with suppress(OSError, ValueError):
            text = json.dumps(points, allow_nan=False) + "\n"
            atomic_write(self.path, lambda aside: aside.write_text(text, "utf-8"))

    def seconds(self, device: str, dtype: str, model: str, pack: Pack) -> float | None:
        """What a pack will take, by packs of its model, else of any, on this device and dtype. None: nothing is known."""
        known = self._read().get(device, {}).get(dtype, {})
        points = known.get(model) or [point for others in known.values() for point in others]
        if not points:
            return None
        overhead, per_flop = _line(np.array(points))
        return pack.cells[0].steps * overhead + flops(pack) * per_flop

    def _read(self) -> Points:
        try:
            found = json.loads(self.path.read_text("utf-8"))
            return {
                d: {t: {m: _good(ps) for m, ps in ms.items()} for t, ms in ts.items()}
                for d, ts in found.items()
            }
        except (OSError, ValueError, AttributeError, TypeError):
            return {}


def _good(points: Any) -> list[list[float]]:
    return [
        [float(x), float(y)] for x, y in points if 0 < x < float("inf") and 0 < y < float("inf")
    ]


def _line(points: NDArray[np.float64]) -> tuple[float, float]:
    """Seconds of a step = overhead + FLOPs * per_flop, both at least 0, of least relative error.

    One or two sizes of step cannot tell the two apart: then the overhead counts as 0.
    """
    from scipy.optimize import nnls

    x, y = points.T
    columns = np.stack([x / y, 1 / y], 1)[:, : 2 if len(set(x)) > 2 else 1]
    found = nnls(columns / columns.max(0), np.ones(len(y)))[0] / columns.max(0)
    return float(found[1]) if len(found) > 1 else 0.0, float(found[0])
