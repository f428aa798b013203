"""The cells of SmolLM2's sweeps as one table, smollm2.csv beside this script.

    pml memft -f smollm2_thresholds && pml fit outputs/smollm2_thresholds
    pml sweep -f smollm2_law && pml fit outputs/smollm2_law --by data
    python benchmarks/smollm2.py outputs/smollm2_thresholds outputs/smollm2_law

A row a cell. The tables and intervals of README.md are those that the commands above print.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pml_cli.runs.read import read_runs

HERE = Path(__file__).parent

COLUMNS = [
    "data",
    "data_seed",
    "loss",
    "setting",
    "lr",
    "steps",
    "rank",
    "seqlen",
    "trainable_parameters",
    "base_loss",
    "final_loss",
    "token_accuracy",
    "exact_match",
    "first_failure",
    "share_above_threshold",
    "log10_p",
    "control_gain",
    "passes",
    "converged",
    "expected_gain",
]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()

    runs = read_runs(options.folders)
    # Where the weights lie says nothing of the cell.
    runs["setting"] = runs["setting"].str.replace(r"model\.path=\S+ ?", "", regex=True)
    order = ["data", "loss", "setting", "seqlen", "rank", "lr", "data_seed"]
    cells = runs[COLUMNS].sort_values(order)
    cells.to_csv(HERE / "smollm2.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
