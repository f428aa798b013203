"""The files of a transition report: transition.json, tables as CSV, and figures as PNG, SVG, PDF.

- `transition.json`, format 1: `versions`, `inputs` {runs, logged_tokens, left_out}, `by_dtype`
  (`violations_by_dtype`), and `groups` (`_group_content`). Proportions are {found, of, share, low,
  high}; numbers that are not finite are null.
- `cells.csv`, a row for each run: its loss and recall, and `token_counts`
- `sequences.csv`, a row for each sample of a run: `final_sequences` (empty: none)
- `recall.csv`, a row for each bin of p: `recall_table`
- `gathering.csv`, a row for each text: its most common first failure (`failure_concentration`)
- `waits.csv`, a row for each rank and length: `survival_table`
- `survival.csv`, a row for each rank, length and step: the share of tokens not above p = 0.5 for
  good (`survival`)
- `violations.csv`, a row for each token with p > 0.5 that greedy decoding does not pick

Figures: see `registry.write_group_figures`; index.md: `folder_index.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pml_cli import __version__
from pml_cli.analysis.first_failures import Correlation
from pml_cli.analysis.survival import survival
from pml_cli.analysis.trajectories import VIOLATION_COLUMNS
from pml_cli.analysis.transition import TransitionSummary, violations_by_dtype
from pml_cli.config.reports import Transition
from pml_cli.errors import UserError
from pml_cli.io import jsonable, write_csv, write_json
from pml_cli.report import folder_index
from pml_cli.report.figures.registry import write_group_figures
from pml_cli.report.tables.transition import correlation_problem
from pml_cli.stats import Proportion

FILE_NAME = "transition.json"

# Of transition.json.
FORMAT = 1

# Columns of cells.csv, in their order.
CELL_COLUMNS = [
    "id",
    "rank",
    "seqlen",
    "target_tokens",
    "data_seed",
    "seed",
    "base_loss",
    "final_loss",
    "token_accuracy",
    "exact_match",
    "free_accuracy",
    "first_step",
    "last_step",
    "logged_steps",
    "tokens",
    "above",
    "ever",
    "fell",
    "falls",
    "lost",
    "forgot",
    "stubborn",
    "wrong",
    "logged",
    "logged_above",
    "violations",
    "early_right",
    "highest_wrong",
    "lowest_right",
    "folder",
]

# Columns of sequences.csv, in their order.
SEQUENCE_COLUMNS = [
    "id",
    "rank",
    "target_tokens",
    "data_seed",
    "seed",
    "sample",
    "length",
    "wrong",
    "earliest_stubborn",
    "first_failure",
]


# Beside the figures.
WRITTEN = (
    FILE_NAME,
    *("cells.csv", "sequences.csv", "recall.csv", "gathering.csv"),
    *("waits.csv", "survival.csv", "violations.csv"),
)


def write(
    out: Path,
    groups: Sequence[TransitionSummary],
    settings: Transition,
    left_out: Sequence[dict[str, str]],
) -> list[str]:
    """Write every file of the report folder, each complete or absent.

    Args:
        left_out: folder and reason of each run that could not be read.

    Returns:
        The names of the files.

    Raises:
        UserError: the folder cannot be written.
    """
    tables = _tables(groups)

    try:
        write_json(out / FILE_NAME, _content(groups, left_out))
        for name, table in tables.items():
            write_csv(out / f"{name}.csv", table)
        figures: list[str] = []
        if settings.figures:
            by_slug = {group.slug: group for group in groups}
            figures = write_group_figures(out, "transition", by_slug)
        index = folder_index.write(out)
    except OSError as error:
        raise UserError(f"out={out}: cannot write the report ({error.strerror})") from error
    return [FILE_NAME, *(f"{name}.csv" for name in tables), *figures, *index]


def _tables(groups: Sequence[TransitionSummary]) -> dict[str, pd.DataFrame]:
    """The CSV files by name, the rows of all groups with the column `group` (the slug)."""
    of_groups: dict[str, list[pd.DataFrame]] = {}

    for group in groups:
        violations = pd.DataFrame(group.violations, columns=["id", *VIOLATION_COLUMNS, "folder"])
        tables = {
            "cells": group.cells[CELL_COLUMNS],
            "sequences": group.sequences[SEQUENCE_COLUMNS],
            "recall": group.recall_by_p,
            "gathering": group.concentration.texts,
            "waits": group.survival_by_cell,
            "survival": _survival_curves(group.crossings),
            "violations": violations,
        }
        for name, table in tables.items():
            with_group = table.assign(group=group.slug)
            of_groups.setdefault(name, []).append(with_group)

    joined = {}
    for name, tables_of_groups in of_groups.items():
        joined[name] = pd.concat(tables_of_groups, ignore_index=True)
    return joined


def _survival_curves(crossings: pd.DataFrame) -> pd.DataFrame:
    """`survival` of each rank and length."""
    curves = []
    for _, cells in crossings.groupby(["rank", "target_tokens"]):
        curve = survival(cells)
        for name in ("rank", "target_tokens"):
            curve[name] = cells[name].iloc[0]
        curves.append(curve)
    return pd.concat(curves)


def _content(
    groups: Sequence[TransitionSummary], left_out: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """transition.json."""
    cells = pd.concat([group.cells for group in groups])

    return {
        "format": FORMAT,
        "versions": {"pml": __version__, "numpy": np.__version__},
        "inputs": {
            "runs": len(cells),
            "logged_tokens": int(cells["logged"].sum()),
            "left_out": list(left_out),
        },
        "by_dtype": jsonable(violations_by_dtype(cells).to_dict("records")),
        "groups": [_group_content(group) for group in groups],
    }


def _group_content(group: TransitionSummary) -> Any:
    """One entry of `groups`; the full tables are in the CSV files."""
    agreement = group.agreement
    concentration = group.concentration

    # Some names of format 1 are older than those of the attributes.
    content = {
        "name": group.name,
        "slug": group.slug,
        "key": group.key,
        "cells": len(group.cells),
        "sequences": len(group.sequences),
        "logged_tokens": group.cells["logged"].sum(),
        "violations": group.cells["violations"].sum(),
        "recalled_above_half": _proportion_content(group.recall_above),
        "recalled_below_half": _proportion_content(group.recall_below),
        "stubborn_against_failure": {
            "both": _correlation_content(agreement.both),
            "censored": _correlation_content(agreement.censored),
            "chance": agreement.chance,
            "neither": agreement.neither,
            "no_failure": agreement.no_failure,
            "no_stubborn": agreement.no_stubborn,
            "same": agreement.same,
            "gap": agreement.gap,
        },
        "gathering": {
            "texts": len(concentration.texts),
            "failures": concentration.failures,
            "share": concentration.share,
            "chance": concentration.chance,
            "p": concentration.p,
        },
        "loss_against_recall": _proportion_contents(group.loss_against_recall),
        "behind_first_failure": _proportion_contents(group.behind_failure),
        "by_rank": group.survival_by_rank.to_dict("records"),
        "recall_by_p": group.recall_by_p.to_dict("records"),
    }
    return jsonable(content)


def _correlation_content(correlation: Correlation) -> dict[str, Any]:
    return {
        "rho": correlation.rho,
        "low": correlation.low,
        "high": correlation.high,
        "n": correlation.n,
        "clusters": correlation.clusters,
        "reason": correlation_problem(correlation),
    }


def _proportion_contents(proportions: dict[str, Proportion]) -> dict[str, Any]:
    return {name: _proportion_content(value) for name, value in proportions.items()}


def _proportion_content(proportion: Proportion) -> dict[str, Any]:
    # The names of format 1.
    return {
        "found": proportion.successes,
        "of": proportion.trials,
        "share": proportion.value,
        "low": proportion.low,
        "high": proportion.high,
    }
