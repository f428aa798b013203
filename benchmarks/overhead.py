"""What planning, claims, checkpoints and records cost beside the training: 100 cells of 200 steps on the embedded model.

    python benchmarks/overhead.py            about two minutes on two cores

Every function below is timed inside one real `pml sweep` of this process; nested ones count once. The heartbeat's thread is
timed too, though it runs beside the training.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

from pml_cli.launch.openmp import share_cores

share_cores()  # as pml does, before torch is imported

from rich.console import Console

from pml_cli.commands import sweep
from pml_cli.config.request import load
from pml_cli.launch import driver, manifest, pack_run, pack_trainer, preflight, queue
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.throughput import Throughput
from pml_cli.report import sweep_summary
from pml_cli.training.checkpoint import Checkpoints

RANKS, LENGTHS, STEPS = "range(1,11)", "range(40,140,10)", 200
PARTS = {
    "plan": [
        (driver, "check"),
        (driver, "make_packs"),
        (driver, "packing"),
        (manifest.SweepManifest, "write"),
    ],
    "claims": [
        (WorkerLease, "claim"),
        (WorkerLease, "release"),
        (WorkerLease, "holds"),
        (WorkerLease, "log_event"),
        (WorkerLease, "write_heartbeat"),
        (queue.PackQueue, "next_pack"),
    ],
    "checkpoints": [(Checkpoints, "save"), (Checkpoints, "find")],
    "records": [(pack_run.PackRun, "_write"), (Throughput, "record")],
    "results table": [(sweep_summary, "summarise")],
    "training": [(pack_run.Trainer, "train"), (pack_run.Trainer, "__init__")],
    "free decoding": [(pack_run, "extra_measures")],
    "loading the model": [(pack_trainer, "load_model"), (preflight, "check_models")],
}


def timed(spent: dict[str, float], part: str, function):
    """The function, its time noted under a part; what runs inside another noted one is taken off that."""

    def call(*args, **kwargs):
        outer, stack.inner = getattr(stack, "inner", 0.0), 0.0
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            whole = time.perf_counter() - began
            spent[part] += whole - stack.inner
            stack.inner = outer + whole

    return call


stack = threading.local()


def main() -> None:
    spent: dict[str, float] = defaultdict(float)
    began = time.perf_counter()
    import pandas  # noqa: F401
    import torch  # noqa: F401

    imported = time.perf_counter() - began
    for part, functions in PARTS.items():
        for owner, name in functions:
            found = owner.__dict__[name]
            plain = found.__func__ if isinstance(found, classmethod) else found
            wrapped = timed(spent, part, plain)
            setattr(
                owner, name, classmethod(wrapped) if isinstance(found, classmethod) else wrapped
            )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PML_CACHE"] = folder
        began = time.perf_counter()
        request = load(
            "sweep",
            [
                f"rank={RANKS}",
                f"seqlen={LENGTHS}",
                f"train.steps={STEPS}",
                f"out={Path(folder) / 'runs'}",
            ],
        )
        spent["settings"] = time.perf_counter() - began
        code = sweep.run(request, Console(quiet=True))
        wall = time.perf_counter() - began
    assert code == 0
    print(
        f"{len(request.runs)} cells of {STEPS} steps: {wall:.1f} s (and {imported:.1f} s of imports before)\n"
    )
    print("| part | seconds | share |\n|---|---|---|")
    for part, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"| {part} | {seconds:.2f} | {100 * seconds / wall:.2f} % |")
    own = sum(
        spent[part]
        for part in ("settings", "plan", "claims", "checkpoints", "records", "results table")
    )
    print(f"| **planner, launch and records** | {own:.2f} | **{100 * own / wall:.2f} %** |")


if __name__ == "__main__":
    main()
