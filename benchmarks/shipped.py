"""What a sweep costs its user: the paper's loop as shipped, PEFT in a shell loop, and pml.

As shipped, every cell of the paper's loop is three processes, each of which loads the model:
training, decoding, final loss. A shell loop over PEFT + Trainer is one process a cell, which does
the three. Called by `speed.py --shipped N`; run by itself this file is one of those processes:

    python benchmarks/shipped.py train|decode|loss|peft FILE RANK SEQLEN FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pml_cli.launch.openmp import share_cores

# As pml does, before torch is imported.
share_cores()

import numpy as np
import torch
from ways import Losses, decode, final_loss, initial_bank, paper, peft, seconds_used

from pml_cli.config.request import load
from pml_cli.data.cell import CellPlan
from pml_cli.launch.packing import check
from pml_cli.model.loading import load_model

# The processes of a cell.
STAGES = {"A": ("train", "decode", "loss"), "B": ("peft",)}


@dataclass(kw_only=True)
class Timings:
    """Wall and CPU seconds, (2,) each."""

    of_cells: dict[str, dict[int, list[np.ndarray]]] = field(default_factory=dict)
    """By way and length, of each cell."""

    sweeps: list[np.ndarray] = field(default_factory=list)
    """Of pml's sweeps of the whole grid."""

    largest_difference: float = 0.0
    """Between final losses, nats per token."""


def shipped(file: str, ranks: int, ways: Sequence[str]) -> list[str]:
    """Compare all, start and imports included; pml before and after the others.

    Args:
        file: a sweep file of ranks and lengths.
        ranks: of each length that A and B train; their times are scaled to all.
        ways: A, B or both.

    Returns:
        Lines of Markdown.
    """
    grid = check(load("sweep", [], Path(file)).runs)
    lengths = sorted({cell.run.seqlen for cell in grid})
    chosen = []
    for length in lengths:
        of_length = [cell for cell in grid if cell.run.seqlen == length]
        chosen += of_length[:: -(-len(of_length) // ranks)]

    timings = Timings()
    with tempfile.TemporaryDirectory() as folder:
        time_sweep(timings, file, folder, "first")
        for cell in chosen:
            for way in ways:
                time_cell(timings, way, file, folder, cell)
        time_sweep(timings, file, folder, "second")
    return table(timings, file, lengths, cells=len(grid), trained=len(chosen))


def time_sweep(timings: Timings, file: str, folder: str, name: str) -> None:
    """Run `pml sweep -f FILE`."""
    command = [sys.executable, "-m", "pml_cli", "sweep", "-f", file, f"out={folder}/{name}"]
    environment = os.environ | {"PML_CACHE": folder}
    start = seconds_used()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    timings.sweeps.append(seconds_used() - start)


def time_cell(timings: Timings, way: str, file: str, folder: str, cell: CellPlan) -> None:
    """Run the processes of a cell; compare its final loss with that of pml's first sweep."""
    start = seconds_used()
    for stage_name in STAGES[way]:
        arguments = [stage_name, file, str(cell.run.rank), str(cell.run.seqlen), folder]
        command = [sys.executable, __file__, *arguments]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = seconds_used() - start
    timings.of_cells.setdefault(way, {}).setdefault(cell.run.seqlen, []).append(seconds)

    result = Path(folder) / "first" / cell.id / "result.json"
    expected = json.loads(result.read_text("utf-8"))["final_loss"]
    difference = abs(float(output) - expected)
    timings.largest_difference = max(timings.largest_difference, difference)


def table(
    timings: Timings, file: str, lengths: Sequence[int], *, cells: int, trained: int
) -> list[str]:
    """The comparison in Markdown."""
    sweep = np.mean(timings.sweeps, axis=0)
    of_a_cell = [f"a cell of l = {length}" for length in lengths]
    columns = ["way", "seconds", *of_a_cell, "all", "pml, all, twice", "way/pml"]
    rows = []
    for way, by_length in timings.of_cells.items():
        means = [np.mean(by_length[length], axis=0) for length in lengths]
        all_cells = cells / len(lengths) * np.sum(means, axis=0)
        for i, clock in enumerate(("wall", "CPU")):
            both_sweeps = ", ".join(f"{seconds[i]:.1f}" for seconds in timings.sweeps)
            row = [way, clock, *(f"{mean[i]:.1f}" for mean in means)]
            row += [f"{all_cells[i]:.0f}", both_sweeps, f"{all_cells[i] / sweep[i]:.1f}"]
            rows.append(row)

    return [
        "",
        f"What `pml sweep -f {file}` costs, {cells} cells, start and imports included. "
        f"A: the paper's loop, three processes a cell; B: PEFT + Trainer, one process a cell; "
        f"both from {trained} cells:",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Final losses differ by {timings.largest_difference:.1e} at most.",
    ]


def stage(name: str, file: str, rank: str, seqlen: str, folder: str) -> None:
    """One of the processes of a cell."""
    request = load("sweep", [f"rank={rank}", f"seqlen={seqlen}"], Path(file))
    (planned,) = check(request.runs)
    run = planned.run
    base = load_model(run.model)
    adapter_folder = Path(folder) / f"{rank}-{seqlen}"
    if name == "peft":
        losses: Losses = {}
        peft(base, planned, losses, Path(folder) / f"peft-{rank}-{seqlen}")
        print(losses[planned.id])
        return
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
        else:
            decode(base.model, sample)


if __name__ == "__main__":
    stage(*sys.argv[1:])
