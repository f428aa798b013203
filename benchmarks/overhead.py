"""What planning, claims, checkpoints and records cost beside the training.

    python benchmarks/overhead.py            about two minutes on two cores

100 cells of 200 steps on the embedded model. Every function below is timed inside one real
`pml sweep` of this process; nested ones count once. The heartbeat's thread is timed too, though it
runs beside the training.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pml_cli.launch.openmp import share_cores

# As pml does, before torch is imported.
share_cores()

from rich.console import Console

from pml_cli.commands import sweep
from pml_cli.config.request import load
from pml_cli.launch import driver, manifest, pack_run, pack_trainer, preflight, queue
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.throughput import Throughput
from pml_cli.report import sweep_summary
from pml_cli.training.checkpoint import Checkpoints

RANKS = "range(1,11)"
LENGTHS = "range(40,140,10)"
STEPS = 200

# The functions of each task: their owners (a module or a class) and names.
TASKS = {
    "plan": [
        (driver, "check"),
        (driver, "make_packs"),
        (driver, "packing_for"),
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

# The tasks that are no work on the model.
OVERHEAD = ("settings", "plan", "claims", "checkpoints", "records", "results table")

# Seconds that timed functions inside the running one took, for each thread.
_nested = threading.local()


def timed(spent: dict[str, float], task: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its time added to a task, less that of timed functions that it calls.

    Args:
        spent: seconds by task.
        task: of the function.
        function: any.
    """

    def call(*args, **kwargs):
        outer = getattr(_nested, "seconds", 0.0)
        _nested.seconds = 0.0
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - start
            spent[task] += seconds - _nested.seconds
            _nested.seconds = outer + seconds

    return call


def time_tasks(spent: dict[str, float]) -> None:
    """Replace the functions of every task by timed ones."""
    for task, functions in TASKS.items():
        for owner, name in functions:
            function = owner.__dict__[name]
            if isinstance(function, classmethod):
                replacement = classmethod(timed(spent, task, function.__func__))
            else:
                replacement = timed(spent, task, function)
            setattr(owner, name, replacement)


def main() -> None:
    spent: dict[str, float] = defaultdict(float)
    start = time.perf_counter()
    import pandas  # noqa: F401
    import torch  # noqa: F401

    import_seconds = time.perf_counter() - start
    time_tasks(spent)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PML_CACHE"] = folder
        overrides = [
            f"rank={RANKS}",
            f"seqlen={LENGTHS}",
            f"train.steps={STEPS}",
            f"out={Path(folder) / 'runs'}",
        ]
        start = time.perf_counter()
        request = load("sweep", overrides)
        spent["settings"] = time.perf_counter() - start
        code = sweep.run(request, Console(quiet=True))
        wall = time.perf_counter() - start
    assert code == 0

    cells = f"{len(request.runs)} cells of {STEPS} steps"
    print(f"{cells}: {wall:.1f} s (and {import_seconds:.1f} s of imports before)\n")
    print("| part | seconds | share |\n|---|---|---|")
    for task, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"| {task} | {seconds:.2f} | {100 * seconds / wall:.2f} % |")
    overhead = sum(spent[task] for task in OVERHEAD)
    share = f"{100 * overhead / wall:.2f} %"
    print(f"| **planner, launch and records** | {overhead:.2f} | **{share}** |")


if __name__ == "__main__":
    main()
