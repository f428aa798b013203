"""How much rank does recall take under each loss? The rank at which half is recalled whole, and its ratio to another loss's.

For one text the share recalled whole is made monotone in rank (isotonic regression), and the rank where it passes one half
is read off between the ranks tried, on the log of rank: with one sample that is the geometric mean of the largest rank that
fails and the least that recalls. Texts are the units: ratios are taken within a text, intervals are t intervals of the log
over texts. Where learning rates differ, that of a text is the one which does best on the **other** texts, so that choosing
a rate does not flatter a method.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize

from pml_cli.analysis.paired import ALIKE, PLACE, SOURCE, methods
from pml_cli.stats import t_half_width

TEXT = ["data_seed", "seed"]
WITHIN, BELOW, ABOVE = (
    "",
    "below",
    "above",
)  # where a threshold lies: among the ranks tried, under or over all of them
COLUMNS = [
    *PLACE, "method", "texts", "rank", "low", "high", "outside", "lr",
    "to_sft", "to_sft_low", "to_sft_high", "to_memft_ot", "to_memft_ot_low", "to_memft_ot_high",
]  # fmt: skip


def half_rank(ranks: NDArray[np.float64], shares: NDArray[np.float64]) -> tuple[float, str]:
    """The rank at which the share recalled whole passes one half, and where that lies.

    Args:
        ranks: rising, (N,).
        shares: of samples recalled whole, 0..1, (N,).

    Returns:
        rank, and "" where ranks tried lie on both sides; else the least with "below" or the largest with "above": a bound.
    """
    rising = optimize.isotonic_regression(shares).x
    under, over = (
        int((rising < 0.5).sum()) - 1,
        int((rising <= 0.5).sum()),
    )  # the last rank below, the first above
    if over == 0:
        return float(ranks[0]), BELOW
    if under == len(ranks) - 1:
        return float(ranks[-1]), ABOVE
    logs = np.log(ranks)
    first = logs[0] if under < 0 else _crossing(logs, rising, under)
    last = logs[-1] if over == len(ranks) else _crossing(logs, rising, over - 1)
    return float(np.exp((first + last) / 2)), WITHIN  # of a stretch at one half, its middle


def _crossing(logs: NDArray[np.float64], rising: NDArray[np.float64], under: int) -> float:
    """Where the line from one rank to the next passes one half."""
    low, high = rising[under], rising[under + 1]
    return float(logs[under] + (0.5 - low) / (high - low) * (logs[under + 1] - logs[under]))


def thresholds(runs: pd.DataFrame) -> pd.DataFrame:
    """`half_rank` of every text under every method and learning rate: columns PLACE, method, lr, TEXT and what was found."""
    rows = []
    keys = [*PLACE, "method", "lr", *TEXT]
    for key, group in methods(runs).groupby(keys):
        by_rank = group.groupby("rank")["exact_match"].mean().sort_index()
        if len(by_rank) > 1:
            rank, outside = half_rank(by_rank.index.to_numpy(float), by_rank.to_numpy(float))
            accuracy = float(group["token_accuracy"].mean())
            rows.append(
                {
                    **dict(zip(keys, key, strict=True)),
                    "rank": rank,
                    "outside": outside,
                    "accuracy": accuracy,
                }
            )
    return pd.DataFrame(rows, columns=[*keys, "rank", "outside", "accuracy"])


def at_best_rates(found: pd.DataFrame) -> pd.DataFrame:
    """Of every text the threshold at the learning rate that is best on the others: least mean log rank, then accuracy."""
    parts = []
    for _, group in found.groupby([*PLACE, "method"]):
        for text, own in group.groupby(TEXT):
            others = group[(group[TEXT] != list(text)).any(axis=1)]
            scores = _merit(others if len(others) else group)
            scores = scores[scores.index.isin(own["lr"])]
            if len(scores):
                parts.append(
                    own[own["lr"] == scores.sort_values(["texts", "rank", "accuracy"]).index[0]]
                )
    return pd.concat(parts, ignore_index=True) if parts else found


def _merit(group: pd.DataFrame) -> pd.DataFrame:
    """Of each rate what to sort by, ascending: most texts, least log rank, highest accuracy."""
    logs = np.log(group["rank"]) + np.log(2) * (
        group["outside"] == ABOVE
    )  # a bound from below is not an attainment
    rates = group.assign(logs=logs).groupby("lr")
    table = rates.agg(texts=("logs", "size"), rank=("logs", "mean"), accuracy=("accuracy", "mean"))
    return table.assign(texts=-table["texts"], accuracy=-table["accuracy"])


def rank_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The rank at even chance of exact recall, one row for each place and method, and for all lengths together.

    Columns: rank with its 95 % interval (geometric mean over texts), outside (how many texts lie below or above all ranks
    tried, which count with that bound), the learning rates chosen, and the ratios to sft and memft_ot with intervals, over
    the texts that both have. For all lengths together (no seqlen) a text's threshold is the geometric mean over the lengths.
    """
    chosen = at_best_rates(thresholds(runs))
    if chosen.empty:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    for place, group in chosen.groupby(SOURCE):
        where = dict(zip(SOURCE, place, strict=True))
        lengths: list[tuple[int | None, pd.DataFrame]] = list(group.groupby("seqlen"))  # type: ignore[arg-type]
        if len(lengths) > 1:
            lengths.append((None, group))
        for length, cells in lengths:
            logs = _logs(cells)
            for method in logs:
                by = {
                    other: logs[method] - logs[other] if other in logs else None
                    for other in ("sft", "memft_ot")
                }
                own = cells[cells["method"] == method]
                rows.append(
                    where | {"seqlen": length, "method": method, "texts": int(logs[method].count())}
                    | _interval("rank", "", logs[method]) | {"outside": _outside(own), "lr": _rates(own)}
                    | _interval("to_sft", "to_sft_", by["sft"])
                    | _interval("to_memft_ot", "to_memft_ot_", by["memft_ot"])
                )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seqlen": "Int64"})


def _logs(cells: pd.DataFrame) -> pd.DataFrame:
    """Log threshold, a row a text and a column a method; over several lengths the mean of those that all methods have."""
    table = cells.assign(logs=np.log(cells["rank"])).pivot_table(
        index=[*TEXT, "seqlen"], columns="method", values="logs"
    )
    if cells["seqlen"].nunique() > 1:
        table = table.dropna()
    return table.groupby(level=TEXT).mean()


def _interval(name: str, prefix: str, logs: pd.Series[float] | None) -> dict[str, float]:
    """exp of the mean of logs over texts, and of the ends of its t interval; ends nan where all are equal."""
    values = np.empty(0) if logs is None else logs.dropna().to_numpy(float)
    if not len(values):
        return dict.fromkeys((name, f"{prefix}low", f"{prefix}high"), float("nan"))
    mean = float(values.mean())
    half = (
        t_half_width(values) if np.ptp(values) > ALIKE else np.nan
    )  # equal ranks tell nothing of their spread
    return {
        name: np.exp(mean),
        f"{prefix}low": np.exp(mean - half),
        f"{prefix}high": np.exp(mean + half),
    }


def _outside(cells: pd.DataFrame) -> str:
    counts = cells["outside"].value_counts()
    return ", ".join(f"{counts[where]} {where}" for where in (BELOW, ABOVE) if where in counts)


def _rates(cells: pd.DataFrame) -> str:
    return " ".join(f"{lr:g}" for lr in sorted(cells["lr"].unique()))
