"""Losses against plain fine-tuning, pair by pair: numpy, pandas and scipy only.

A pair is two runs that agree in all but the loss: the same text, the same initial adapter. So differences are taken within
pairs, and intervals and tests are over texts and seeds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pml_cli.stats import t_half_width

PAIR = [
    "model",
    "data",
    "data_seed",
    "adapter",
    "layer",
    "setting",
    "rank",
    "seqlen",
    "seed",
    "lr",
    "steps",
]
PLACE = [
    "model",
    "data",
    "adapter",
    "setting",
    "steps",
    "seqlen",
]  # one figure's panel, one choice of a learning rate
SOURCE = PLACE[:-1]  # one figure
MEASURES = [
    "token_accuracy", "exact_match", "free_accuracy", "free_exact_match", "share_above_threshold", "delta_loss",
    "first_failure", "steps_to_recall", "gradient_above", "unseen_exact_match",
]  # fmt: skip
EQUAL, BEST, UNEQUAL = "equal", "each its best rate", "unequal budget"  # terms of a comparison
CURRICULUM = re.compile(r"train\.curriculum=\[[^\]]*\]")
EXACT = 12  # up to so many pairs every flip of signs is tried, beyond it a random part
FLIPS = 20_000
ALIKE = 1e-12  # differences nearer than this are equal but for rounding


def methods(runs: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """Runs with a column `method`, the loss and the curriculum where there is one; what never came counts as the most.

    A first failure that never came is the target's length, a full recall that never came the number of steps.
    """
    runs = runs.copy()
    found = runs["setting"].str.findall(CURRICULUM).str[0]
    runs["method"] = runs["loss"] + found.map(
        lambda word: "" if pd.isna(word) else f" + {word.removeprefix('train.')}"
    )
    runs["setting"] = runs["setting"].str.replace(CURRICULUM, "", regex=True).str.strip()
    for measure in dict.fromkeys([*MEASURES, *measures]):
        if measure not in runs:  # of runs that an earlier version left
            runs[measure] = np.nan
        runs[measure] = pd.to_numeric(runs[measure])
    told = runs["gradient_above"].notna()
    runs["steps_to_recall"] = runs["steps_to_recall"].fillna(runs["steps"].where(told))
    runs["first_failure"] = runs["first_failure"].fillna(
        runs["target_tokens"].where(runs["samples"] == 1)
    )
    return runs


def best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Of each method and length the runs at the learning rate with the best mean accuracy over ranks, texts and seeds.

    Only rates with as many finished runs as the fullest one count. A tie goes to the larger gain.
    """
    parts: list[pd.DataFrame] = []
    for _, group in runs.groupby([*PLACE, "method"]):
        rates = group.groupby("lr").agg(
            runs=("lr", "size"), accuracy=("token_accuracy", "mean"), gain=("delta_loss", "mean")
        )  # fmt: skip
        best = rates.sort_values(["runs", "accuracy", "gain"]).index[-1]
        parts.append(group[group["lr"] == best])
    return pd.concat(parts, ignore_index=True)


def compare(runs: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """One row for each place, rank (and all ranks together: no rank), method, learning rate and measure.

    Columns: terms of the comparison; pairs; the means of sft and of the method; their paired difference with a 95 % t
    interval; p of the paired t test and of flipping the signs of the pairs' differences.

    For all ranks together a pair is a text and seed: the mean over the ranks that both have. Runs without a partner are left
    out. Where learning rates differ, a second comparison is of each method at its own best; where a method has no partner
    at equal steps, it is compared with another budget, and says so.
    """
    runs = methods(runs, measures)
    tables = [_compared(_paired(runs, PAIR), EQUAL, measures)]
    if runs["lr"].nunique() > 1 and (runs.groupby([*PLACE, "method"])["lr"].nunique() > 1).any():
        tables.append(
            _compared(
                _paired(best_rates(runs), [key for key in PAIR if key != "lr"]), BEST, measures
            )
        )
    done = set(tables[0]["method"]) if len(tables[0]) else set()
    apart = runs[~runs["method"].isin(done)]
    if len(apart):
        loose = _paired(apart, [key for key in PAIR if key not in ("lr", "steps", "setting")])
        tables.append(_compared(loose, UNEQUAL, measures))
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _paired(runs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    plain = runs[runs["method"] == "sft"]
    other = runs[runs["method"] != "sft"]
    return other.merge(plain, on=keys, suffixes=("", "_sft"))


def _compared(pairs: pd.DataFrame, terms: str, measures: Sequence[str]) -> pd.DataFrame:
    rows, keys = [], [*PLACE, "method", *(["lr"] if terms == EQUAL else [])]
    for key, group in pairs.groupby(keys):
        where = dict(zip(keys, key, strict=True))
        budget = _ratio(group)
        for rank, cell in [*group.groupby("rank"), (None, group)]:
            if rank is None and group["rank"].nunique() < 2:
                continue
            for measure in measures:
                both = cell[["seed", "data_seed", "rank", measure, f"{measure}_sft"]].dropna()
                unit = ["seed", "data_seed"] if rank is None else ["seed", "data_seed", "rank"]
                means = both.groupby(unit)[[measure, f"{measure}_sft"]].mean()
                if len(means):
                    told = {
                        "terms": terms,
                        **where,
                        "rank": rank,
                        "measure": measure,
                        "budget": budget,
                    }
                    rows.append(
                        told | _rates(cell) | _difference(means[measure], means[f"{measure}_sft"])
                    )
    table = pd.DataFrame(rows)
    return table.astype({"rank": "Int64"}) if len(table) else table


def _ratio(pairs: pd.DataFrame) -> float:
    """Target tokens seen, as a multiple of what sft saw; of steps where runs do not tell."""
    name = "tokens_seen" if {"tokens_seen", "tokens_seen_sft"} <= set(pairs) else "steps"
    plain = pairs[f"{name}_sft"] if f"{name}_sft" in pairs else pairs[name]
    return float(pairs[name].sum() / plain.sum())


def _rates(pairs: pd.DataFrame) -> dict[str, str]:
    plain = pairs["lr_sft"] if "lr_sft" in pairs else pairs["lr"]
    return {
        name: " ".join(f"{lr:g}" for lr in sorted(set(v)))
        for name, v in (("lr", pairs["lr"]), ("lr_sft", plain))
    }


def _difference(value: pd.Series[float], plain: pd.Series[float]) -> dict[str, float]:
    gain = (value - plain).to_numpy(float)
    varies = len(gain) > 1 and float(np.ptp(gain)) > ALIKE
    half = (
        t_half_width(gain) if varies else np.nan
    )  # equal differences tell nothing of their spread
    return {
        "pairs": len(gain), "sft": plain.mean(), "value": value.mean(), "difference": gain.mean(), "low": gain.mean() - half,
        "high": gain.mean() + half, "p_t": float(stats.ttest_1samp(gain, 0).pvalue) if varies else np.nan,
        "p_signs": sign_flips(gain),
    }  # fmt: skip


def sign_flips(gain: NDArray[Any]) -> float:
    """Two-sided p of a mean difference under all flips of its signs; exact up to twelve pairs, so never below 2 / 2^n."""
    if len(gain) < 2:
        return float("nan")
    means = np.abs(_signs(len(gain)) @ gain)
    return float((means >= abs(gain.sum()) * (1 - 1e-9) - 1e-12).mean())


@lru_cache(maxsize=64)
def _signs(count: int) -> NDArray[np.float64]:
    if count <= EXACT:
        return np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    drawn = np.random.default_rng(0).choice((1.0, -1.0), (FLIPS, count))
    return np.vstack([np.ones(count), drawn])  # the one that was found counts: p is never 0
