"""The files of `pml memft` beside the runs: comparison.csv, ranks.csv, and figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pml_cli.analysis.paired import (
    BEST_RATES,
    SOURCE,
    UNEQUAL_BUDGET,
    at_best_rates,
    comparable_runs,
)
from pml_cli.io import write_csv
from pml_cli.results.groups import file_stems


def write_tables(
    out: Path,
    comparison: pd.DataFrame,
    ranks: pd.DataFrame,
) -> list[Path]:
    """comparison.csv, and ranks.csv where there are thresholds.

    Args:
        comparison: from `paired.compare`.
        ranks: from `rank_thresholds.rank_table`.

    Returns:
        The paths written.
    """
    tables = {"comparison": comparison}
    if len(ranks):
        tables["ranks"] = ranks

    for name, table in tables.items():
        write_csv(out / f"{name}.csv", table)
    return [out / f"{name}.csv" for name in tables]


def write_figures(
    out: Path,
    runs: pd.DataFrame,
    comparison: pd.DataFrame,
    ranks: pd.DataFrame,
) -> list[Path]:
    """The figures of each model and kind of data: `memft`, and `ranks` for several lengths.

    Args:
        runs: rows of result.json.
        comparison: from `paired.compare`.
        ranks: from `rank_thresholds.rank_table`.

    Returns:
        The paths written.
    """
    from pml_cli.report.figures.memft import accuracy_figure, rank_figure
    from pml_cli.report.figures.registry import write_figure

    runs = comparable_runs(runs)
    at_best = bool((comparison["terms"] == BEST_RATES).any())
    if at_best:
        runs = at_best_rates(runs)

    # At unequal budgets, the methods of one figure differ in steps and settings.
    unequal = (comparison["terms"] == UNEQUAL_BUDGET).any()
    shared = [key for key in SOURCE if key not in ("setting", "steps")] if unequal else SOURCE
    differing = [key for key in shared if runs[key].nunique() > 1]

    paths: list[Path] = []
    groups = list(runs.groupby(shared))
    distinguishing = [[group[key].iloc[0] for key in differing] for _, group in groups]
    accuracy_stems = file_stems("memft", distinguishing)
    rank_stems = file_stems("ranks", distinguishing)
    for index, (values, group) in enumerate(groups):
        names = write_figure(out / accuracy_stems[index], accuracy_figure(group, at_best))
        in_group = (ranks[shared] == list(values)).all(axis=1)
        of_group = ranks[in_group]
        if of_group["seqlen"].nunique() > 1:
            names += write_figure(out / rank_stems[index], rank_figure(of_group))
        paths += [out / name for name in names]
    return paths
