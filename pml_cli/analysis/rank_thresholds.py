"""The rank at which half of the samples are recalled verbatim, and its ratio between losses.

The rank of one text is that of `law/half_recall.py`.

Texts are the units (`paired.unit_of`): ratios are taken within a text and seed, averaged over the
seeds of a text, and intervals are t intervals of the log over texts. Where learning rates differ, a
text's rate is the one that does best on the *other* texts, so that choosing a rate does not favour
a method.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pml_cli.analysis.paired import ROUNDING_ERROR, SOURCE, TASK, comparable_runs, unit_of
from pml_cli.law.half_recall import ABOVE, BELOW, half_recall_rank
from pml_cli.stats import t_half_width

# What has a threshold of its own: an adapter of a text, grown over the ranks.
ADAPTER = ["data_seed", "seed"]

# The methods whose rank the others are compared with.
REFERENCES = ["sft", "memft_ot"]

COLUMNS = [
    *TASK,
    "method",
    "texts",
    "rank",
    "low",
    "high",
    "outside",
    "lr",
    "to_sft",
    "to_sft_low",
    "to_sft_high",
    "to_memft_ot",
    "to_memft_ot_low",
    "to_memft_ot_high",
]


def thresholds(runs: pd.DataFrame) -> pd.DataFrame:
    """`half_recall_rank` of every text and seed under every method and learning rate.

    Args:
        runs: rows of result.json.

    Returns:
        The columns TASK, method, lr and ADAPTER, rank, outside and accuracy (mean token accuracy).
        Those with a single rank are left out.
    """
    keys = [*TASK, "method", "lr", *ADAPTER]
    rows: list[dict[str, Any]] = []
    for values, group in comparable_runs(runs).groupby(keys):
        recalled = group.groupby("rank")["exact_match"].mean().sort_index()
        if len(recalled) < 2:
            continue
        ranks = recalled.index.to_numpy(float)
        rank, outside = half_recall_rank(ranks, recalled.to_numpy(float))

        row = dict(zip(keys, values, strict=True))
        row |= {"rank": rank, "outside": outside}
        row["accuracy"] = group["token_accuracy"].mean()
        rows.append(row)
    return pd.DataFrame(rows, columns=[*keys, "rank", "outside", "accuracy"])


def at_cross_validated_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The threshold of each text at the learning rate that is best on the other texts.

    Args:
        table: from `thresholds`.
    """
    chosen_rows = []
    for _, group in table.groupby([*TASK, "method"]):
        unit = unit_of(group)
        for text, of_text in group.groupby(unit):
            is_other = group[unit] != text
            # With a single text, the rate can only be chosen on that text.
            judges = group[is_other] if is_other.any() else group

            rates = _rates_best_first(judges)
            available = [rate for rate in rates if rate in set(of_text["lr"])]
            if available:
                chosen_rows.append(of_text[of_text["lr"] == available[0]])
    return pd.concat(chosen_rows, ignore_index=True) if chosen_rows else table


def _rates_best_first(table: pd.DataFrame) -> list[float]:
    """The learning rates: those with the most texts, then lowest mean log rank, best accuracy."""
    log_rank = np.log(table["rank"])
    # Above all ranks tried the threshold is a bound that was not reached: one doubling is added.
    log_rank += np.log(2) * (table["outside"] == ABOVE)

    rates = table.assign(log_rank=log_rank).groupby("lr")
    ranking = rates.agg(
        texts=("log_rank", "size"),
        rank=("log_rank", "mean"),
        accuracy=("accuracy", "mean"),
    )
    ranking = ranking.sort_values(["texts", "rank", "accuracy"], ascending=[False, True, False])
    return list(ranking.index)


def rank_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The rank at which half of the samples are recalled, for each task and method.

    Args:
        runs: rows of result.json.

    Returns:
        A row for each task (seqlen missing: all lengths together) and method, with COLUMNS: texts;
        rank (geometric mean over texts) with its 95 % interval; outside (how many texts lie below
        or above all ranks tried; they count with that bound); lr (the rates chosen); to_sft and
        to_memft_ot (ratios over the texts that both have) with their intervals. For all lengths
        together a text's threshold is the geometric mean over the lengths.
    """
    chosen = at_cross_validated_rates(thresholds(runs))
    if chosen.empty:
        return pd.DataFrame(columns=COLUMNS)

    rows: list[dict[str, Any]] = []
    for values, group in chosen.groupby(SOURCE):
        source = dict(zip(SOURCE, values, strict=True))
        by_length = group.groupby("seqlen")
        for length, cells in by_length:
            rows += _method_rows(source | {"seqlen": length}, cells)
        if len(by_length) > 1:
            rows += _method_rows(source | {"seqlen": None}, group)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seqlen": "Int64"})


def _method_rows(task: dict[str, Any], table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row of `rank_table` for each method.

    Args:
        task: the first columns of each row.
        table: the chosen thresholds of the task.
    """
    log_ranks = _log_ranks(table)
    rows = []
    for method in log_ranks:
        of_method = table[table["method"] == method]
        rates = sorted(of_method["lr"].unique())
        row = {**task, "method": method, "outside": _outside_counts(of_method)}
        row["texts"] = int(log_ranks[method].count())
        row["lr"] = " ".join(f"{lr:g}" for lr in rates)

        row |= _geometric_mean(log_ranks[method], "rank", prefix="")
        for reference in REFERENCES:
            log_ratio = pd.Series(dtype=float)
            if reference in log_ranks:
                log_ratio = log_ranks[method] - log_ranks[reference]
            name = f"to_{reference}"
            row |= _geometric_mean(log_ratio, name, prefix=f"{name}_")
        rows.append(row)
    return rows


def _log_ranks(cells: pd.DataFrame) -> pd.DataFrame:
    """Log threshold, a row for each text, a column for each method.

    Over its seeds and several lengths, it is the mean of those that all methods have.
    """
    cells = cells.assign(log_rank=np.log(cells["rank"]))
    repeats = [*ADAPTER, "seqlen"]
    table = cells.pivot_table(index=repeats, columns="method", values="log_rank")
    unit = unit_of(cells)
    if len(table) > cells[unit].nunique():
        table = table.dropna()
    return table.groupby(level=unit).mean()


def _geometric_mean(logs: pd.Series[float], name: str, prefix: str) -> dict[str, float]:
    """The geometric mean over texts and the ends of its t interval, nan where all are equal.

    Args:
        logs: of each text.
        name, prefix: the columns are name, {prefix}low and {prefix}high.
    """
    values = logs.dropna().to_numpy(float)
    mean = float(values.mean()) if len(values) else np.nan
    half_width = np.nan
    # Equal ranks say nothing about their spread.
    if len(values) and np.ptp(values) > ROUNDING_ERROR:
        half_width = t_half_width(values)

    return {
        name: np.exp(mean),
        f"{prefix}low": np.exp(mean - half_width),
        f"{prefix}high": np.exp(mean + half_width),
    }


def _outside_counts(cells: pd.DataFrame) -> str:
    """How many texts lie outside the ranks tried: "1 below, 2 above"."""
    counts = cells["outside"].value_counts()
    return ", ".join(f"{counts[side]} {side}" for side in (BELOW, ABOVE) if side in counts)
