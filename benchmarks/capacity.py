"""Does growth find the length that a grid finds, and at which cost?

Embedded model, random tokens, ranks 2, 4 and 8, three texts, sft and memft_margin. The grid trains
every length of a ladder, each from the start; what it says of a text is the longest length recalled
whole. `pml capacity` grows the same adapters. Both train by the same settings, and a cell of the
grid and an attempt of a growth end alike once all is recalled. Passes count forward-backward
passes. Two grids: the whole ladder, for who knows nothing, and the seven lengths about the answer,
for who knows it nearly.

    python benchmarks/capacity.py FOLDER

writes benchmarks/capacity.csv; finished cells are kept in FOLDER.
"""

import dataclasses
import math
import sys
from pathlib import Path

import pandas as pd
from rich.console import Console

from pml_cli.analysis.growth import Growth
from pml_cli.commands.capacity import GrownAdapter, begin, grow
from pml_cli.config.request import load_capacity
from pml_cli.launch.driver import plan_sweep, train_sweep
from pml_cli.report.progress import SweepDisplay
from pml_cli.results.read import read_runs
from pml_cli.results.run_folders import RunFolders

HERE = Path(__file__).parent

# A length is 1.25 of the one before it, rounded.
LADDER = (4, 5, 6, 8, 10, 12, 15, 19, 24, 30, 37, 46, 58, 72, 90, 113, 141, 176, 220, 275)
STEP = 1.25

# Lengths below and above the answer in the small grid.
STEPS_AROUND = 3

SETTINGS = [
    "rank=2,4,8",
    "data.seed=0,1,2",
    "loss=sft,memft_margin",
    "model.device=cpu",
]


def grid(asked, console: Console) -> pd.DataFrame:
    """Results of every cell of the grid."""
    runs = [
        dataclasses.replace(run, seqlen=length) for run in asked.request.runs for length in LADDER
    ]
    out = asked.request.out.parent / "grid"
    request = dataclasses.replace(asked.request, runs=runs, out=out, swept=["seqlen"])
    plan = plan_sweep(request)
    with SweepDisplay.of(plan, console, "grid") as display:
        if train_sweep(plan, display, wait=True).stopped is not None:
            sys.exit("stopped; the same command goes on")
    folders = RunFolders(out)
    return read_runs([folders.find(cell.id).path for cell in plan.cells])


def passes_to_a_step(growth: Growth) -> int:
    """Passes until what is recalled and what is not were one step of the ladder apart."""
    so_far = dataclasses.replace(growth, attempts=[])
    for attempt in growth.attempts:
        so_far = so_far.after(attempt)
        near = so_far.failed is not None and so_far.failed <= max(
            math.ceil(STEP * so_far.held), so_far.held + 1
        )
        if near or so_far.ended() is not None:
            break
    return so_far.passes


def row(adapter: GrownAdapter, cells: pd.DataFrame) -> dict:
    """Grid and growth of one rank, loss and text."""
    run = adapter.run
    growth = adapter.growth
    whole = cells[cells["exact_match"] == 1]
    longest = int(whole["seqlen"].max()) if len(whole) else 0
    # Where on the ladder each of the two stands.
    on_grid = sum(length <= longest for length in LADDER)
    grown = sum(length <= growth.held for length in LADDER)
    steps_off = cells["seqlen"].map(LADDER.index) - (on_grid - 1)
    near = cells[steps_off.abs() <= STEPS_AROUND]
    return {
        "loss": run.loss.kind,
        "rank": run.rank,
        "text": run.data.seed,
        "grid": longest,
        "grown": growth.held,
        "steps_apart": grown - on_grid,
        "ladder_passes": int(cells["steps_run"].sum()),
        "near_passes": int(near["steps_run"].sum()),
        "passes": growth.passes,
        "passes_to_a_step": passes_to_a_step(growth),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    asked = load_capacity([*SETTINGS, f"out={folder / 'grown'}"])
    console = Console(stderr=True, markup=False)
    adapters = [begin(run, asked) for run in asked.request.runs]
    if grow(adapters, asked, console, console) is not None:
        sys.exit("stopped; the same command goes on")

    cells = grid(asked, console)
    rows = []
    for adapter in adapters:
        run = adapter.run
        same = (cells["rank"] == run.rank) & (cells["data_seed"] == run.data.seed)
        rows.append(row(adapter, cells[same & (cells["loss"] == run.loss.kind)]))
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "capacity.csv", index=False)

    print(table.to_string(index=False))
    print(f"within one step: {(table['steps_apart'].abs() <= 1).sum()} of {len(table)}")
    for grown in ("passes", "passes_to_a_step"):
        for of_grid in ("ladder_passes", "near_passes"):
            shares = table[grown] / table[of_grid]
            spread = f"{shares.min():.2f} to {shares.max():.2f} of a growth"
            print(f"{grown} / {of_grid}: {table[grown].sum() / table[of_grid].sum():.2f}; {spread}")


if __name__ == "__main__":
    main()
