"""Recall against harm to other text: rows of forgetting.csv, means over texts and seeds, the front.

Imports neither torch nor the trainer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pml_cli.analysis.deployment import SETUP
from pml_cli.analysis.paired import unit_of
from pml_cli.data.generic_text import KINDS
from pml_cli.stats import mean_share, safe_exp, t_half_width

# What the runs of one mean share: one cell of a sweep, with all its texts and seeds.
CELL = [*SETUP, "method", "penalty", "rank"]

# Of forgetting.json's entry of a run, what does not go into every row of the table.
NESTED = ["key", "kinds"]

# The kind of the rows that say what all KINDS say together.
ALL = "all"

# Of each kind of text.
MEASURES = ["harm", "kl", "changed"]


def measurement_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows of forgetting.csv.

    Args:
        runs: entries of forgetting.json.

    Returns:
        A row for each run and kind of text: what the run is and recalls; windows and tokens of the
        text; text_base_loss, text_loss, harm and kl (nats per token), changed (share of first
        choices), standard errors over windows (_se) and perplexity_ratio, exp(harm). Rows of kind
        `all` are means over KINDS, with harm_low and harm_high, where each of them was measured.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        run_columns = {name: run[name] for name in run if name not in NESTED}
        of_run = {name: run_columns.pop(name) for name in ("harm", "harm_low", "harm_high")}
        # A list of layers cannot be grouped by.
        run_columns["layer"] = str(run["layer"])
        run_columns["setting"] = run["setting"] or ""

        kinds = run["kinds"]
        for kind, measured in kinds.items():
            values = dict(measured)
            values["text_base_loss"] = values.pop("base_loss")
            values["text_loss"] = values.pop("loss")
            rows.append({**run_columns, "kind": kind, **values})
        if of_run["harm"] is not None:
            rows.append({**run_columns, "kind": ALL, **_over_kinds(kinds), **of_run})

    table = pd.DataFrame(rows)
    if "harm_low" not in table:
        table = table.assign(harm_low=math.nan, harm_high=math.nan)
    table["perplexity_ratio"] = [safe_exp(harm) for harm in table["harm"].astype(float)]
    return table


def _over_kinds(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sums of windows and tokens, and means of the rest, over KINDS."""
    of_kinds = [kinds[kind] for kind in KINDS]
    values: dict[str, Any] = {}
    for name in ("windows", "tokens"):
        values[name] = sum(row[name] for row in of_kinds)
    values["text_base_loss"] = float(np.mean([row["base_loss"] for row in of_kinds]))
    values["text_loss"] = float(np.mean([row["loss"] for row in of_kinds]))
    for name in ("kl", "changed"):
        values[name] = float(np.mean([row[name] for row in of_kinds]))
    return values


def mean_table(table: pd.DataFrame) -> pd.DataFrame:
    """Each cell of a sweep: means over its texts and seeds, sorted by loss, penalty and rank.

    Args:
        table: from `measurement_table`.

    Returns:
        A row for each CELL: runs; recall, the share of samples recalled whole, with recall_low and
        recall_high (95 %), where each text counts the same, however many samples it has, as in
        `paired.compare`; keep, the penalty's mean weight as it ended; harm, kl and
        changed over KINDS; harm_<kind>. harm_low and harm_high are the 95 % t interval over texts
        (`paired.unit_of`), or of a single run that over windows of text. Missing is nan.
    """
    rows: list[dict[str, Any]] = []
    for values, cells in table.groupby(CELL, sort=False, dropna=False):
        key = dict(zip(CELL, values, strict=True))
        rows.append({**key, **_mean_row(cells)})
    means = pd.DataFrame(rows)

    # Plain fine-tuning first (False sorts before True), then by the size of the penalty.
    is_memft = means["method"].ne("sft")
    means = means.assign(is_memft=is_memft)
    order = [*SETUP, "is_memft", "method", "asked_harm", "asked_keep", "penalty", "rank"]
    # Less harm allowed is more penalty.
    ascending = [name != "asked_harm" for name in order]
    return means.sort_values(order, ascending=ascending).drop(columns="is_memft", errors="ignore")


def _mean_row(cells: pd.DataFrame) -> dict[str, Any]:
    """The means over the runs of one cell."""
    by_run = cells.drop_duplicates("id")
    unit = unit_of(by_run)
    recalled = by_run[[unit, "exact_match", "samples"]].dropna().astype(float)
    of_units = recalled.groupby(unit)
    recall = mean_share(of_units["exact_match"].mean(), of_units["samples"].sum())
    row: dict[str, Any] = {
        "runs": len(by_run),
        "asked_keep": by_run["asked_keep"].iloc[0],
        "asked_harm": by_run["asked_harm"].iloc[0],
        "keep": by_run["keep"].astype(float).mean(),
        "recall": recall.value,
        "recall_low": recall.low,
        "recall_high": recall.high,
    }

    overall = cells[cells["kind"] == ALL]
    units = overall.groupby(unit, dropna=False)[MEASURES].mean()
    for name in MEASURES:
        row[name] = units[name].mean() if len(units) else math.nan
    row["harm_low"], row["harm_high"] = _harm_interval(overall, units["harm"])

    for kind, of_kind in cells.groupby("kind"):
        if kind != ALL:
            row[f"harm_{kind}"] = of_kind["harm"].mean()
    return row


def _harm_interval(overall: pd.DataFrame, units: pd.Series[float]) -> tuple[float, float]:
    if len(units) > 1:
        half = t_half_width(units)
        return units.mean() - half, units.mean() + half
    if len(overall) == 1:
        low, high = overall[["harm_low", "harm_high"]].astype(float).iloc[0]
        return low, high
    return math.nan, math.nan


def pareto_front(means: pd.DataFrame) -> pd.DataFrame:
    """The cells that no other one beats in recall and harm, by growing harm.

    Args:
        means: rows of `mean_table`.
    """
    measured = means.dropna(subset=["recall", "harm"])
    measured = measured.sort_values(["harm", "recall"], ascending=[True, False])
    best_so_far = measured["recall"].cummax().shift(fill_value=-1.0)
    return measured[measured["recall"] > best_so_far]


def least_harm(means: pd.DataFrame, recall: float) -> pd.DataFrame:
    """The cell with the smallest harm among those that recall enough, for each loss.

    Args:
        means: rows of `mean_table`.
        recall: the share of samples recalled whole, at least.
    """
    enough = means[(means["recall"] >= recall) & means["harm"].notna()]
    least = enough.sort_values("harm").drop_duplicates([*SETUP, "method"])
    return least.sort_values("harm")
