"""What `pml lasting` measured, as tables of numbers.

A row for each run and condition; means with intervals; losses against plain fine-tuning. Intervals
and pairs are those of `paired`: over texts, a text's seeds and pooled ranks taken together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pml_cli.analysis.paired import BEYOND_GREEDY, EQUAL, comparable_runs, compare, unit_of
from pml_cli.evaluation.conditions import CONDITIONS, TRAINED
from pml_cli.stats import t_half_width

# What the runs of one table share.
SETUP = ["model", "data", "adapter", "layer", "setting", "seqlen", "lr", "steps"]

RECALL = [
    "token_accuracy",
    "exact_match",
    "final_loss",
    "share_above_threshold",
    "lost",
    "lost_above",
    "won",
    "kept_whole",
    "least_right_margin",
    "shift_rms",
    "fall_worst",
    "violations",
    "free_exact_match",
    *BEYOND_GREEDY,
    # As trained alone.
    "log10_p_07",
    "t50",
    "recall_after_wrong",
    "accuracy_after_wrong",
]

# Not averaged: they may be missing in some runs.
RECALL_OF_A_RUN = ["first_failure", "least_margin"]

# Compared with sft.
COMPARED = [
    "token_accuracy",
    "exact_match",
    "log10_p",
    "lost",
    "kept_whole",
    "shift_rms",
    "fall_worst",
]

# Forgetting, on each of two texts.
TEXTS = ["text", "random"]
FORGETTING = [
    f"{text}_{measure}"
    for text in TEXTS
    for measure in ("base_loss", "loss", "rise", "kl", "changed")
]

# Of lasting.json's entry of a run, what does not go into every row of the table.
NESTED = ["key", "conditions", "damage", "offenders"]


def measurement_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows of lasting.csv.

    Args:
        runs: entries of lasting.json.

    Returns:
        A row for each run and condition: what the run is, method, condition, status, recall under
        the condition; forgetting in the row of the condition `trained`.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        columns = [name for name in run if name not in NESTED]
        run_columns = {name: run[name] for name in columns}
        # A list of layers cannot be grouped by.
        run_columns["layer"] = str(run["layer"])
        run_columns["setting"] = run["setting"] or ""

        for condition in CONDITIONS:
            measured = run["conditions"][condition.name]
            row = dict(run_columns)
            row["condition"] = condition.name
            row["status"] = measured["status"].partition(":")[0]
            for name in [*RECALL, *RECALL_OF_A_RUN]:
                row[name] = measured.get(name)
            if condition.name == TRAINED:
                row |= _forgetting_columns(run["damage"])
            rows.append(row)

    table = pd.DataFrame(rows)
    numeric = [*RECALL, *RECALL_OF_A_RUN, *FORGETTING]
    table[numeric] = table.reindex(columns=numeric).apply(pd.to_numeric)
    # A curriculum is a method of its own, not a setting.
    named = comparable_runs(table)
    return table.assign(method=named["method"], setting=named["setting"])


def _forgetting_columns(texts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for text in TEXTS:
        values = dict(texts[text])
        has_loss = values["loss"] is not None
        values["rise"] = values["loss"] - values["base_loss"] if has_loss else None
        for name, value in values.items():
            columns[f"{text}_{name}"] = value
    return columns


def mean_table(table: pd.DataFrame) -> pd.DataFrame:
    """Means with their 95 % t intervals.

    Args:
        table: from `measurement_table`.

    Returns:
        A row for each setup, method, condition and rank (missing: all ranks together): runs; worst
        (largest fall of a margin); least_whole (least margin of the runs recalled verbatim); whole
        (runs recalled verbatim as trained) and still_whole (those that still are); the mean of each
        measure and half the width of its interval (_half), over texts (`paired.unit_of`).
    """
    keys = [*SETUP, "method", "condition"]
    measured = table[table["status"] == "measured"]

    rows: list[dict[str, Any]] = []
    for values, group in measured.groupby(keys, sort=False):
        key = dict(zip(keys, values, strict=True))
        for rank, cells in group.groupby("rank"):
            rows.append({**key, "rank": rank} | _mean_row(cells))
        rows.append({**key, "rank": None} | _mean_row(group))
    return pd.DataFrame(rows).astype({"rank": "Int64"})


def _mean_row(cells: pd.DataFrame) -> dict[str, Any]:
    """The means over `cells`, the runs of one method under one condition."""
    measures = [*RECALL, *FORGETTING]
    units = cells.groupby(unit_of(cells))[measures].mean()

    # Missing in runs that were not recalled verbatim as trained.
    kept_whole = cells["kept_whole"].dropna()
    row: dict[str, Any] = {
        "runs": len(cells),
        "worst": cells["fall_worst"].max(),
        "whole": len(kept_whole),
        "still_whole": int((kept_whole == 1).sum()),
        "least_whole": cells.loc[cells["exact_match"] == 1, "least_margin"].min(),
    }

    for name in measures:
        values = units[name].dropna().to_numpy(float)
        row[name] = values.mean() if len(values) else math.nan
        row[f"{name}_half"] = t_half_width(values)
    return row


def sft_comparison(table: pd.DataFrame) -> pd.DataFrame:
    """Each method against sft under each condition, pair by pair, at equal setup and budget.

    Args:
        table: from `measurement_table`.

    Returns:
        The columns of `paired.compare` with SETUP and condition; empty where there are no pairs.
    """
    keys = [*SETUP, "condition"]
    comparisons: list[pd.DataFrame] = []
    measured = table[table["status"] == "measured"]
    for values, cells in measured.groupby(keys, sort=False):
        key = dict(zip(keys, values, strict=True))
        measures = COMPARED
        if key["condition"] == TRAINED:
            measures = [*COMPARED, *FORGETTING]

        compared = compare(cells, measures)
        if len(compared):
            compared = compared[compared["terms"] == EQUAL]
        if compared.empty:
            continue
        repeated = ["terms", "budget", "lr_sft", *keys]
        compared = compared.drop(columns=repeated, errors="ignore")
        key_columns = pd.DataFrame([key] * len(compared), compared.index)
        comparisons.append(compared.join(key_columns))
    return pd.concat(comparisons, ignore_index=True) if comparisons else pd.DataFrame()
