"""Paired comparison of losses with plain fine-tuning (sft). Imports numpy, pandas and scipy only.

A pair is two runs that agree in all but the loss: the same text, the same initial adapter. So
differences are taken within pairs. Intervals and tests are over texts (`unit_of`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pml_cli.stats import t_half_width

# What the runs of one figure share.
SOURCE = ["model", "data", "adapter", "setting", "steps"]

# What the runs of one panel of it share; a learning rate is chosen for each task.
TASK = ["model", "data", "adapter", "setting", "steps", "seqlen"]

# What the two runs of a pair share.
PAIRED_BY = [*TASK, "data_seed", "layer", "rank", "seed", "lr"]

# Recall beyond greedy exact match (evaluation/recall_scores.py); null in runs of earlier versions.
BEYOND_GREEDY = [
    "log10_p",
    "prefix_share",
    "recall_from_8",
    "recall_from_32",
    "extractable_50",
    "compression_ratio",
    "edit_distance",
]

MEASURES = [
    "token_accuracy",
    "exact_match",
    *BEYOND_GREEDY,
    "free_accuracy",
    "free_exact_match",
    "share_above_threshold",
    "delta_loss",
    "first_failure",
    "steps_to_recall",
    "gradient_above",
    "unseen_exact_match",
]

# Terms of a comparison: at equal steps and learning rate; each method at its best learning rate;
# at other steps, learning rates or settings.
EQUAL = "equal"
BEST_RATES = "each its best rate"
UNEQUAL_BUDGET = "unequal budget"

CURRICULUM = re.compile(r"train\.(curriculum=\[[^\]]*\])")

# Sign flips are enumerated up to this number (14 pairs), else so many are drawn at random.
SIGN_FLIPS = 20_000

# Differences up to this are equal but for rounding.
ROUNDING_ERROR = 1e-12


def comparable_runs(
    runs: pd.DataFrame,
    measures: Sequence[str] = MEASURES,
) -> pd.DataFrame:
    """Runs with the column `method`, and with censored measures filled in.

    The method is the loss, and the curriculum where there is one (which leaves `setting`). A first
    failure that does not occur counts as the target's length; a full recall that is never reached
    counts as the number of steps.

    Args:
        runs: rows of result.json.
        measures: columns to convert to numbers besides MEASURES.
    """
    runs = runs.copy()
    curriculum = runs["setting"].str.extract(CURRICULUM, expand=False)
    runs["method"] = runs["loss"] + (" + " + curriculum).fillna("")
    without_curriculum = runs["setting"].str.replace(CURRICULUM, "", regex=True)
    runs["setting"] = without_curriculum.str.strip()

    for measure in dict.fromkeys([*MEASURES, *measures]):
        if measure not in runs:
            # An earlier version did not measure it.
            runs[measure] = np.nan
        runs[measure] = pd.to_numeric(runs[measure])

    # gradient_above is in every result of a version that also has steps_to_recall.
    has_steps_to_recall = runs["gradient_above"].notna()
    most_steps = runs["steps"].where(has_steps_to_recall)
    runs["steps_to_recall"] = runs["steps_to_recall"].fillna(most_steps)

    # With several samples there is no single first failure.
    target_length = runs["target_tokens"].where(runs["samples"] == 1)
    runs["first_failure"] = runs["first_failure"].fillna(target_length)
    return runs


def unit_of(runs: pd.DataFrame) -> str:
    """The column that tells independent runs apart: that of their texts.

    Adapters of one text are alike, whatever their seeds and ranks: they are averaged first. With a
    single text it is the seed, and intervals say nothing about other texts.

    Args:
        runs: with the columns data_seed and seed.
    """
    return "data_seed" if runs["data_seed"].nunique() > 1 else "seed"


def at_best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of each method and task at its best learning rate.

    That is the rate with the best mean token accuracy over ranks, texts and seeds (then the largest
    gain in loss), among the rates with the most finished runs.

    Args:
        runs: from `comparable_runs`.
    """
    best_runs: list[pd.DataFrame] = []

    for _, group in runs.groupby([*TASK, "method"]):
        rates = group.groupby("lr").agg(
            runs=("lr", "size"),
            accuracy=("token_accuracy", "mean"),
            gain=("delta_loss", "mean"),
        )
        ascending = rates.sort_values(["runs", "accuracy", "gain"])
        best = ascending.index[-1]
        best_runs.append(group[group["lr"] == best])
    return pd.concat(best_runs, ignore_index=True)


def compare(
    runs: pd.DataFrame,
    measures: Sequence[str] = MEASURES,
) -> pd.DataFrame:
    """Each method against sft, for each task, rank, learning rate and measure.

    Runs without a partner are left out. Where learning rates differ, a second comparison has each
    method at its best rate. A method without a partner at equal steps is compared at another
    budget (UNEQUAL_BUDGET).

    Args:
        runs: rows of result.json.
        measures: which columns to compare.

    Returns:
        A row for each task, rank (missing: all ranks together), method, lr, lr_sft and measure:
        terms; budget (target tokens seen, as a multiple of sft's); pairs; sft and value (the two
        means); difference with its 95 % t interval (low, high); p_t (paired t test) and p_signs
        (sign-flip permutation test). A pair is a text (`unit_of`): the mean over its seeds and,
        for all ranks together, over the ranks that both have.
    """
    runs = comparable_runs(runs, measures)
    equal = _differences(_pairs(runs, PAIRED_BY), EQUAL, measures)
    tables = [equal]

    rates_of_method = runs.groupby([*TASK, "method"])["lr"].nunique()
    if (rates_of_method > 1).any():
        by = [key for key in PAIRED_BY if key != "lr"]
        pairs = _pairs(at_best_rates(runs), by)
        tables.append(_differences(pairs, BEST_RATES, measures))

    compared = set(equal["method"]) if len(equal) else set()
    unpaired = runs[~runs["method"].isin(compared)]
    if len(unpaired):
        by = [key for key in PAIRED_BY if key not in ("lr", "steps", "setting")]
        pairs = _pairs(unpaired, by)
        tables.append(_differences(pairs, UNEQUAL_BUDGET, measures))

    filled = [table for table in tables if len(table)]
    return pd.concat(filled or [equal], ignore_index=True)


def _pairs(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Each run of another method beside the sft run that agrees in `by` (columns _sft)."""
    # Inner join: a run without a partner is left out.
    sft = runs[runs["method"] == "sft"]
    methods = runs[runs["method"] != "sft"]
    return methods.merge(sft, on=by, suffixes=("", "_sft"))


def _differences(pairs: pd.DataFrame, terms: str, measures: Sequence[str]) -> pd.DataFrame:
    """The rows of `compare` under one of its terms."""
    keys = [*TASK, "method"]
    if terms == EQUAL:
        keys.append("lr")

    rows: list[dict[str, Any]] = []
    for values, group in pairs.groupby(keys):
        key = {"terms": terms, **dict(zip(keys, values, strict=True))}
        budget = _budget_ratio(group)
        by_rank = group.groupby("rank")
        for rank, cells in by_rank:
            key["rank"] = rank
            rows += _measure_rows(key, cells, budget, measures)
        if len(by_rank) > 1:
            key["rank"] = None
            rows += _measure_rows(key, group, budget, measures)

    table = pd.DataFrame(rows)
    return table.astype({"rank": "Int64"}) if len(table) else table


def _measure_rows(
    key: dict[str, Any],
    pairs: pd.DataFrame,
    budget: float,
    measures: Sequence[str],
) -> list[dict[str, Any]]:
    """A row for each measure that the pairs have.

    Args:
        key: the first columns of each row.
        budget: see `compare`.
    """
    rates = _learning_rates(pairs)
    unit = unit_of(pairs)
    rows = []

    for measure in measures:
        columns = [measure, f"{measure}_sft"]
        measured = pairs[[unit, *columns]].dropna()
        means = measured.groupby(unit)[columns].mean()
        if len(means):
            row = {**key, "measure": measure, "budget": budget, **rates}
            rows.append(row | _paired_difference(means[measure], means[f"{measure}_sft"]))
    return rows


def _budget_ratio(pairs: pd.DataFrame) -> float:
    """Target tokens seen, as a multiple of those of sft."""
    # Runs of an earlier version have no count of tokens; then the steps are compared.
    has_tokens = {"tokens_seen", "tokens_seen_sft"} <= set(pairs)
    name = "tokens_seen" if has_tokens else "steps"
    sft = pairs[f"{name}_sft"] if f"{name}_sft" in pairs else pairs[name]
    return float(pairs[name].sum() / sft.sum())


def _learning_rates(pairs: pd.DataFrame) -> dict[str, str]:
    """The learning rates of both, as text; several where each task has its own."""
    # Without the column, the rate is one that the runs of a pair share.
    of_sft = pairs["lr_sft"] if "lr_sft" in pairs else pairs["lr"]
    return {"lr": _rates_text(pairs["lr"]), "lr_sft": _rates_text(of_sft)}


def _rates_text(rates: pd.Series[float]) -> str:
    return " ".join(f"{lr:g}" for lr in sorted(set(rates)))


def _paired_difference(
    value: pd.Series[float],
    sft: pd.Series[float],
) -> dict[str, float]:
    """The means of both, and their difference with its interval and tests."""
    difference = (value - sft).to_numpy(float)
    mean = difference.mean()
    half = np.nan
    p_t = np.nan
    # Equal differences say nothing about their spread.
    if len(difference) > 1 and float(np.ptp(difference)) > ROUNDING_ERROR:
        half = t_half_width(difference)
        p_t = float(stats.ttest_1samp(difference, 0).pvalue)

    return {
        "pairs": len(difference),
        "sft": sft.mean(),
        "value": value.mean(),
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "p_t": p_t,
        "p_signs": sign_flip_p(difference),
    }


def sign_flip_p(difference: NDArray[np.floating[Any]]) -> float:
    """Two-sided p of a mean difference under all flips of its signs.

    Exact up to 14 pairs, so never below 2 / 2^n; beyond, from SIGN_FLIPS random flips.

    Args:
        difference: within pairs, (n,).

    Returns:
        nan for fewer than two pairs.
    """
    if len(difference) < 2:
        return float("nan")

    test = stats.permutation_test(
        (difference,),
        _mean_on_grid,
        permutation_type="samples",
        n_resamples=SIGN_FLIPS,
        vectorized=True,
        random_state=0,
    )
    return float(test.pvalue)


def _mean_on_grid(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Means as multiples of 2^-40 (9e-13), so that equal ones tie in spite of rounding errors."""
    multiples: NDArray[Any] = np.rint(values.mean(axis=axis) * 2**40)
    return multiples
