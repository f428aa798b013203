"""Effective parameters against bits: the thresholds of finished runs and of the scan, on one line.

    pml sweep -f bits
    pml memft -f smollm2_thresholds
    python benchmarks/bits.py outputs/bits outputs/smollm2_thresholds

Writes bits.csv, a row for each group and length, and bits.png; prints the line and the groups. The
scan's cells (scan.csv: 800 steps, three texts) are three more groups: random tokens, mixed, text.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from pml_cli.law.bits_line import BitsLine, fit_line, threshold_points
from pml_cli.law.fit_groups import with_columns
from pml_cli.law.half_recall import WITHIN
from pml_cli.report.figures.bits_line import bits_figure
from pml_cli.report.tables.bits_line import line_table
from pml_cli.results.groups import group_name, split_groups
from pml_cli.results.read import finished_runs

HERE = Path(__file__).parent

# Tokens of the embedded model.
VOCABULARY = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()

    by_group = [*_of_folders(options.folders), *_of_scan()]
    # A group without thresholds has columns of no type.
    points = pd.concat([points for points in by_group if len(points)], ignore_index=True)
    line = fit_line("sft", points)
    assert line is not None
    Console(width=120).print(line_table(line))
    _by_length(points, line).to_csv(HERE / "bits.csv", index=False)
    bits_figure(line, points).savefig(HERE / "bits.png", dpi=100)


def _of_folders(folders: list[Path]) -> list[pd.DataFrame]:
    """Thresholds of each group of the finished runs, under plain fine-tuning."""
    runs = with_columns(finished_runs(folders, "`pml sweep -f bits`", []))
    plain = runs[runs["loss"] == "sft"]
    # Where several rates were tried, the one that recalls most.
    by_setting: dict[str, list[pd.DataFrame]] = {}
    for key, cells in split_groups(plain):
        key.pop("lr", None)
        by_setting.setdefault(group_name(key), []).append(cells)
    points = []
    for name, tried in by_setting.items():
        best = max(tried, key=lambda cells: cells["exact_match"].mean())
        points.append(threshold_points(name, best))
    return points


def _of_scan() -> list[pd.DataFrame]:
    """Thresholds of the scan, of each kind of data."""
    cells = pd.read_csv(HERE / "scan.csv").rename(columns={"seqlen": "target_tokens"})
    is_random = cells["data"] == "random"
    nats = np.where(is_random, math.log(VOCABULARY), np.nan)
    cells = with_columns(cells.assign(model="tiny", adapter="mlp_block", source_nats=nats))
    return [threshold_points(f"scan, {data}", group) for data, group in cells.groupby("data")]


def _by_length(points: pd.DataFrame, line: BitsLine) -> pd.DataFrame:
    """Geometric means over texts of each group and length, and the ratio to the line."""
    within = points["outside"] == WITHIN
    by_length = points.assign(beyond=~within).groupby(["group", "length"], sort=False)
    rows = []
    for (group, length), cells in by_length:
        inside = cells[~cells["beyond"]]
        bits = float(np.exp(np.log(cells["bits"]).mean()))
        parameters = float(np.exp(np.log(inside["parameters"]).mean()))
        rows.append(
            {
                "group": group,
                "length": int(length),
                "texts": len(inside),
                "beyond": int(cells["beyond"].sum()),
                "bits": round(bits, 1),
                "parameters": round(parameters, 1),
                "ratio": round(parameters / (line.c * bits**line.s), 3),
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
