"""Paired comparison of losses with plain fine-tuning (sft). Imports numpy, pandas and scipy only.

A pair is two runs that agree in all but the loss: the same text, the same initial adapter. So
differences are taken within pairs, and intervals and tests are over texts and seeds.
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

UNIT = ["seed", "data_seed"]

MEASURES = [
    "token_accuracy",
    "exact_match",
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

ROUNDING_ERROR = 1e-12  # differences up to this are equal


def comparable_runs(runs: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
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
    runs["setting"] = runs["setting"].str.replace(CURRICULUM, "", regex=True).str.strip()

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
        best = rates.sort_values(["runs", "accuracy", "gain"]).index[-1]
        best_runs.append(group[group["lr"] == best])
    return pd.concat(best_runs, ignore_index=True)


def compare(runs: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
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
        (sign-flip permutation test). For all ranks together a pair is a text and seed: the mean
        over the ranks that both have.
    """
    runs = comparable_runs(runs, measures)
    equal = _differences(_pairs(runs, PAIRED_BY), EQUAL, measures)
    tables = [equal]

    rates_of_method = runs.groupby([*TASK, "method"])["lr"].nunique()
    if (rates_of_method > 1).any():
        by = [key for key in PAIRED_BY if key != "lr"]
        tables.append(_differences(_pairs(at_best_rates(runs), by), BEST_RATES, measures))

    compared = set(equal["method"]) if len(equal) else set()
    unpaired = runs[~runs["method"].isin(compared)]
    if len(unpaired):
        by = [key for key in PAIRED_BY if key not in ("lr", "steps", "setting")]
        tables.append(_differences(_pairs(unpaired, by), UNEQUAL_BUDGET, measures))

    filled = [table for table in tables if len(table)]
    return pd.concat(filled or [equal], ignore_index=True)


def _pairs(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Each run of another method beside the sft run that agrees in `by` (columns _sft)."""
    sft = runs[runs["method"] == "sft"]
    methods = runs[runs["method"] != "sft"]
    return methods.merge(sft, on=by, suffixes=("", "_sft"))


def _differences(pairs: pd.DataFrame, terms: str, measures: Sequence[str]) -> pd.DataFrame:
    """The rows of `compare` under one of its terms."""
    keys = [*TASK, "method", "lr"] if terms == EQUAL else [*TASK, "method"]
    rows: list[dict[str, Any]] = []
    for values, group in pairs.groupby(keys):
        key = dict(zip(keys, values, strict=True))
        budget = _budget_ratio(group)

        ranks: list[tuple[Any, pd.DataFrame]] = list(group.groupby("rank"))
        if len(ranks) > 1:
            ranks.append((None, group))
        for rank, cells in ranks:
            unit = UNIT if rank is None else [*UNIT, "rank"]
            common = {"terms": terms, **key, "rank": rank}
            rates = _learning_rates(cells)
            for measure in measures:
                both = cells[[*UNIT, "rank", measure, f"{measure}_sft"]].dropna()
                means = both.groupby(unit)[[measure, f"{measure}_sft"]].mean()
                if means.empty:
                    continue
                difference = _paired_difference(means[measure], means[f"{measure}_sft"])
                row = common | {"measure": measure, "budget": budget} | rates | difference
                rows.append(row)

    table = pd.DataFrame(rows)
    return table.astype({"rank": "Int64"}) if len(table) else table


def _budget_ratio(pairs: pd.DataFrame) -> float:
    """Target tokens seen, as a multiple of sft's; of steps where the runs do not have the tokens."""
    has_tokens = {"tokens_seen", "tokens_seen_sft"} <= set(pairs)
    name = "tokens_seen" if has_tokens else "steps"
    sft = pairs[f"{name}_sft"] if f"{name}_sft" in pairs else pairs[name]
    return float(pairs[name].sum() / sft.sum())


def _learning_rates(pairs: pd.DataFrame) -> dict[str, str]:
    """The learning rates of both, as text; several where each task has its own."""
    sft = pairs["lr_sft"] if "lr_sft" in pairs else pairs["lr"]
    columns = {"lr": pairs["lr"], "lr_sft": sft}
    return {
        name: " ".join(f"{lr:g}" for lr in sorted(set(rates))) for name, rates in columns.items()
    }


def _paired_difference(value: pd.Series[float], sft: pd.Series[float]) -> dict[str, float]:
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
    return np.asarray(np.rint(values.mean(axis=axis) * 2**40))
