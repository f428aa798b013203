"""The cells of sweeps as one table beside this script, a row a cell.

    pml memft -f memft_rates
    python benchmarks/cells.py memft_rates_cells.csv outputs/memft_rates

    pml memft -f smollm2_thresholds && pml sweep -f smollm2_law
    python benchmarks/cells.py smollm2.csv outputs/smollm2_thresholds outputs/smollm2_law

The tables and intervals of README.md are those that `pml memft` and `pml fit` print of the folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pml_cli.results.read import read_runs

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
    parser.add_argument("table", help="name of the CSV file")
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()

    runs = read_runs(options.folders)
    # Where the weights lie says nothing of the cell.
    runs["setting"] = runs["setting"].str.replace(r"model\.path=\S+ ?", "", regex=True)
    order = ["data", "loss", "setting", "seqlen", "rank", "lr", "data_seed"]
    cells = runs[COLUMNS].sort_values(order)
    cells.to_csv(HERE / options.table, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
