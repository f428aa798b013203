"""Do the exponents of the law settle? The law on all cells, and on parts of them.

    pml sweep -f scan_converged launch=local
    python benchmarks/exponents.py outputs/scan_converged --csv benchmarks/exponents.csv

For every kind of data in FOLDER: each form on all cells, without rank 1, from rank 3 on, on the
shorter and on the longer half of the lengths, and on each text; with the held-out error of the
largest ranks and longest lengths. Then, for the form that is best on all cells, how far alpha and
beta move. --old takes the cells of scan.csv instead: AdamW, a number of steps for all.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from pml_cli.law.findings import OK
from pml_cli.law.fit_result import FitResult
from pml_cli.law.forms import FORMS
from pml_cli.law.mle import fit_saturating
from pml_cli.law.model_selection import EDGE, TEXT, Estimator, aicc_differences, checks, saturating
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import fit_paper
from pml_cli.runs.read import read_runs

HERE = Path(__file__).parent
ALL = "all cells"


def read_cells(folders: list[Path], old: bool) -> pd.DataFrame:
    """One row a cell."""
    if old:
        return pd.read_csv(HERE / "scan.csv").assign(converged=None)
    runs = read_runs(folders)
    return runs.assign(seqlen=runs["target_tokens"])


def parts(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All cells of one kind of data, and the parts that are looked at."""
    lengths = np.unique(cells["seqlen"])
    middle = len(lengths) // 2
    yield ALL, cells
    yield "without rank 1", cells[cells["rank"] > 1]
    yield "from rank 3 on", cells[cells["rank"] > 2]
    yield "shorter half of the lengths", cells[cells["seqlen"] <= lengths[middle]]
    yield "longer half of the lengths", cells[cells["seqlen"] >= lengths[middle]]
    for text, group in cells.groupby("data_seed"):
        yield f"text {text} alone", group
    if cells["converged"].eq(False).any():
        yield "without cells that had not converged", cells[cells["converged"].ne(False)]


def observations(cells: pd.DataFrame) -> Observations:
    """The cells as a law takes them."""
    return Observations.of(
        cells["rank"],
        cells["seqlen"],
        cells["delta_loss"],
        cells["base_loss"],
        final=cells["final_loss"],
        text=cells["data_seed"].astype(str).to_numpy(str),
    )


def laws(cells: Observations) -> Iterator[tuple[FitResult, float, Estimator]]:
    """The paper's law and each form, with its AICc above the least and its estimator."""
    yield fit_paper(cells), np.nan, fit_paper
    fits = [fit_saturating(cells, form) for form in FORMS]
    for form, fit, difference in zip(FORMS, fits, aicc_differences(fits), strict=True):
        yield fit, difference, saturating(form)


def table_of(data: str, cells: pd.DataFrame) -> pd.DataFrame:
    """A row for each part and law that is identified on it."""
    rows = []
    for part, of_part in parts(cells):
        seen = observations(of_part)
        for fit, difference, estimator in laws(seen):
            if fit.status != OK:
                continue
            held_out = checks(seen, estimator) if part == ALL else {}
            row = {
                "data": data,
                "part": part,
                "cells": len(of_part),
                "law": fit.name,
                "aicc": difference,
                **fit.parameters,
                "mape": fit.mape,
            }
            for what in (EDGE, TEXT):
                if what in held_out:
                    row[f"unseen {what}"] = held_out[what].mape
                    row[f"unseen {what}, all"] = held_out[what].mape_all
            rows.append(row)
    return pd.DataFrame(rows)


def moves(table: pd.DataFrame) -> str:
    """How far the exponents of each well supported form move over the parts."""
    whole = table[(table["part"] == ALL) & (table["aicc"] <= 4)]
    lines = []
    for _, best in whole.sort_values("aicc").iterrows():
        same = table[table["law"] == best["law"]]
        spread = [
            f"{name} {same[name].min():.2f} to {same[name].max():.2f}" for name in ("alpha", "beta")
        ]
        lines.append(f"{best['data']}, {best['law']}: {', '.join(spread)} over {len(same)} parts")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--old", action="store_true", help="the cells of scan.csv")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()

    cells = read_cells(args.folders, args.old)
    tables = [table_of(data, of_data) for data, of_data in cells.groupby("data")]
    for table in tables:
        print(table.dropna(axis=1, how="all").round(3).to_string(index=False))
        print(moves(table), "\n")
    if args.csv:
        pd.concat(tables).to_csv(args.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
