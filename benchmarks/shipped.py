"""The paper's loop as shipped against pml on the quickstart grid.

As shipped, every cell is three processes, each of which loads the model: training, decoding, final
loss. Called by `speed.py --shipped N`; run by itself this file is one of those processes:

    python benchmarks/shipped.py train|decode|loss RANK SEQLEN FOLDER
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pml_cli.launch.openmp import share_cores

# As pml does, before torch is imported.
share_cores()

import numpy as np
import torch
from ways import final_loss, initial_bank, paper

from pml_cli.config.request import load
from pml_cli.data.cell import CellPlan
from pml_cli.launch.packing import check
from pml_cli.model.loading import load_model

# Ranks of the quickstart grid.
QUICKSTART_RANKS = 7


@dataclass(kw_only=True)
class Timings:
    """Wall and CPU seconds, (2,) each."""

    by_length: dict[int, list[np.ndarray]] = field(default_factory=dict)
    """Of each cell of the paper's loop."""

    sweeps: list[np.ndarray] = field(default_factory=list)
    """Of pml's sweeps of the whole grid."""

    largest_difference: float = 0.0
    """Between the final losses of both, nats per token."""


def shipped(ranks: int) -> list[str]:
    """Compare both, start and imports included; pml before and after the paper's loop.

    Args:
        ranks: of each length that the paper's loop trains; its times are scaled to all.

    Returns:
        Lines of Markdown.
    """
    grid = check(load("sweep", [], Path("quickstart")).runs)
    lengths = sorted({cell.run.seqlen for cell in grid})
    stride = -(-QUICKSTART_RANKS // ranks)
    chosen = []
    for length in lengths:
        of_length = [cell for cell in grid if cell.run.seqlen == length]
        chosen += of_length[::stride]

    timings = Timings()
    with tempfile.TemporaryDirectory() as folder:
        time_sweep(timings, folder, "first")
        for cell in chosen:
            time_cell(timings, folder, cell)
        time_sweep(timings, folder, "second")
    return table(timings, lengths, cells=len(grid), trained=len(chosen))


def time_sweep(timings: Timings, folder: str, name: str) -> None:
    """Run `pml sweep -f quickstart`."""
    command = [sys.executable, "-m", "pml_cli", "sweep", "-f", "quickstart", f"out={folder}/{name}"]
    environment = os.environ | {"PML_CACHE": folder}
    start = seconds_used()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    timings.sweeps.append(seconds_used() - start)


def time_cell(timings: Timings, folder: str, cell: CellPlan) -> None:
    """Run the three processes of a cell; compare its final loss with that of pml's first sweep."""
    start = seconds_used()
    for stage_name in ("train", "decode", "loss"):
        arguments = [stage_name, str(cell.run.rank), str(cell.run.seqlen), folder]
        command = [sys.executable, __file__, *arguments]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = seconds_used() - start
    timings.by_length.setdefault(cell.run.seqlen, []).append(seconds)

    result = Path(folder) / "first" / cell.id / "result.json"
    expected = json.loads(result.read_text("utf-8"))["final_loss"]
    difference = abs(float(output) - expected)
    timings.largest_difference = max(timings.largest_difference, difference)


def seconds_used() -> np.ndarray:
    """Seconds so far, (2,): wall time, and CPU time of the processes that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), ended.ru_utime + ended.ru_stime])


def table(timings: Timings, lengths: Sequence[int], *, cells: int, trained: int) -> list[str]:
    """The comparison in Markdown."""
    means = {length: np.mean(timings.by_length[length], axis=0) for length in lengths}
    cells_per_length = cells // len(lengths)
    all_cells = sum(cells_per_length * mean for mean in means.values())
    sweep = np.mean(timings.sweeps, axis=0)

    columns = [f"A, a cell of l = {length}" for length in lengths]
    columns = ["seconds", *columns, "A, all", "C, all, twice", "A/C"]
    rows = []
    for i, name in enumerate(("wall", "CPU")):
        row = [name, *(f"{means[length][i]:.1f}" for length in lengths)]
        both_sweeps = ", ".join(f"{seconds[i]:.1f}" for seconds in timings.sweeps)
        row += [f"{all_cells[i]:.0f}", both_sweeps, f"{all_cells[i] / sweep[i]:.1f}"]
        rows.append(row)

    processes = f"A: three processes a cell, from {trained} cells"
    return [
        "",
        f"As shipped, quickstart, {cells} cells; {processes}:",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Final losses differ by {timings.largest_difference:.1e} at most.",
    ]


def stage(name: str, rank: str, seqlen: str, folder: str) -> None:
    """One of the three processes of a cell."""
    request = load("sweep", [f"rank={rank}", f"seqlen={seqlen}"], Path("quickstart"))
    (planned,) = check(request.runs)
    run = planned.run
    base = load_model(run.model)
    adapter_folder = Path(folder) / f"{rank}-{seqlen}"
    if name == "train":
        adapter_folder.mkdir()
        paper(base, planned, {}, adapter_folder)
        return

    bank = initial_bank(base, run)
    bank.load(0, adapter_folder)
    (sample,) = planned.samples
    with bank.attached(base.modules), torch.no_grad():
        if name == "loss":
            print(final_loss(base, sample))
            return
        tokens = len(sample.target)
        base.model.generate(
            input_ids=torch.tensor([sample.prompt]),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )


if __name__ == "__main__":
    stage(*sys.argv[1:])
