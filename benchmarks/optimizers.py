"""Forward-backward passes to converged cells, against AdamW's to the same mean loss.

The cells of `pml sweep -f law` (--cells: those at the corners and in the middle alone), each
optimiser on the same machine in one run:

1. L-BFGS with train.stop=converged: passes of each cell until its criterion is met.
2. AdamW, which has no criterion, for --times as many steps as the mean of those passes, at the best
   of several rates (on the nine cells): is its mean loss over all cells that of 1?
3. --truth: L-BFGS for four times the passes of the slowest: did each cell that said converged
   gain less than it had promised?

    python benchmarks/optimizers.py FOLDER [--cells 9] [--cap 1600] [--times 3] [--truth]

Finished cells are kept in FOLDER; prints the tables of docs/optimizers.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from pml_cli.results.read import read_runs

GRID = {
    "81": ["-f", "law"],
    "9": ["rank=1,6,24", "seqlen=32,128,512"],
    "4": ["rank=2,16", "seqlen=48,128"],
}
# The cells on which AdamW's rate is chosen.
TUNED_ON = "9"
RATES = (0.04, 0.08, 0.16, 0.32)
KEY = ["rank", "seqlen"]


def sweep(folder, grid, *settings):
    """Train the cells, or take up those that are there; their results."""
    settings = [f"train.{setting}" for setting in settings]
    command = ["sweep", *GRID[grid], *settings, "train.decode=false", f"out={folder}"]
    ended = subprocess.run([sys.executable, "-m", "pml_cli", *command], check=False)
    if ended.returncode:
        sys.exit(f"pml {' '.join(command)}: {ended.returncode}")
    return read_runs([folder]).sort_values(KEY).reset_index(drop=True)


def line(name, runs):
    """One row of the table of optimisers."""
    passes = runs["passes"]
    spread = f"{passes.min()} / {passes.median():g} / {passes.max()}"
    return f"| {name} | {spread} | {passes.mean():.0f} | {runs['final_loss'].mean():.4f} |"


def kept_promises(folder, grid, converged):
    """Of the cells that have converged: what four times their passes gained, and its promise."""
    most = int(4 * converged["passes"].max())
    runs = sweep(folder, grid, "optimizer=lbfgs", "lr=null", f"steps={most}")
    gains = []
    for (_, cell), (_, longer) in zip(converged.iterrows(), runs.iterrows(), strict=True):
        curve = pd.read_parquet(Path(longer["folder"]) / "curve.parquet")
        lowest = np.fmin.accumulate(curve["loss"].to_numpy())
        passes = int(cell["passes"])
        gains.append(lowest[passes - 1] - lowest[4 * passes - 1])
    return converged.assign(gained=gains)[converged["converged"].eq(True)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", choices=GRID, default="81")
    parser.add_argument("--cap", type=int, default=1600)
    parser.add_argument("--times", type=float, default=3, help="steps of AdamW, in mean passes")
    parser.add_argument("--truth", action="store_true")
    args = parser.parse_args()

    lbfgs = sweep(
        args.folder / "converged",
        args.cells,
        "optimizer=lbfgs",
        # Not that of the sweep's file.
        "lr=null",
        "stop=converged",
        f"steps={args.cap}",
    )
    rows = [line(f"L-BFGS, converged, {args.cells} cells", lbfgs)]

    steps = round(args.times * lbfgs["passes"].mean())
    tried = {}
    for rate in RATES:
        folder = args.folder / f"tuning-{rate}-{steps}"
        tried[rate] = sweep(folder, TUNED_ON, f"steps={steps}", f"lr={rate}")
        rows.append(line(f"AdamW {rate}, {TUNED_ON} cells", tried[rate]))
    best = min(RATES, key=lambda rate: tried[rate]["final_loss"].mean())
    folder = args.folder / f"adamw-{best}-{steps}"
    adamw = sweep(folder, args.cells, f"steps={steps}", f"lr={best}")
    rows.append(line(f"AdamW {best}, {args.cells} cells", adamw))

    print("| optimiser | passes of a cell: min / median / max | mean | mean loss |")
    print("|---|---|---|---|")
    print("\n".join(rows), "\n")
    count = int(lbfgs["converged"].eq(True).sum())
    print(f"{count} of {len(lbfgs)} cells converged within {args.cap} passes")
    if args.truth:
        cells = kept_promises(args.folder / "truth", args.cells, lbfgs)
        print(cells[[*KEY, "passes", "final_loss", "expected_gain", "gained"]].to_string())
        print(f"{(cells['gained'] <= cells['expected_gain']).sum()} of {len(cells)} kept")


if __name__ == "__main__":
    main()
