"""Where recall breaks: the earliest stubborn position against the first failure, and where first failures gather.

A sequence is one sample of one run. Its first failure cannot come before its earliest stubborn position: p > 0.5 suffices
for recall. So part of their correlation is arithmetic; `Agreement.chance` says how much: it is the correlation that is left
when the wrong tokens of each sequence are drawn at random among its stubborn ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse, special, stats

from pml_cli.io import finite_or_none
from pml_cli.stats import CONFIDENCE, FEW_CLUSTERS, MIN_CLUSTERS, Array, t_quantile

Ints = NDArray[np.int64]
CHANCE_DRAWS = 200
LEAST_SEQUENCES = 3
LEAST_FAILURES = 5  # of one text, before its most common position means something
GATHER_DRAWS = 1000
CHUNK = 4_000_000  # numbers held at once


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho with a 95 % interval by resampling whole clusters, or the reason why there is none."""

    rho: float
    low: float
    high: float
    n: int
    clusters: int
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        values = {
            "rho": finite_or_none(self.rho),
            "low": finite_or_none(self.low),
            "high": finite_or_none(self.high),
        }
        return values | {"n": self.n, "clusters": self.clusters, "reason": self.reason}


@dataclass(frozen=True)
class Agreement:
    """Earliest stubborn position against first failure, over the sequences of a group."""

    both: Correlation  # sequences that have both
    censored: Correlation  # all sequences; what never came counts as the length
    chance: float  # rho of `both` if the wrong tokens were drawn at random among the stubborn ones
    neither: int  # sequences without any stubborn or wrong token
    no_failure: int  # with stubborn tokens, and none wrong
    no_stubborn: int  # with a wrong token, and none stubborn: violations only
    same: int  # of those with both: the first failure is the earliest stubborn token itself
    gap: float  # median distance, tokens

    def to_dict(self) -> dict[str, Any]:
        counts = {
            name: getattr(self, name) for name in ("neither", "no_failure", "no_stubborn", "same")
        }
        return {"both": self.both.to_dict(), "censored": self.censored.to_dict(), "chance": finite_or_none(self.chance), **counts,
                "gap": finite_or_none(self.gap)}  # fmt: skip


def agree(sequences: pd.DataFrame, stubborn: list[Ints], draws: int, seed: int = 0) -> Agreement:
    """How well the earliest stubborn position tells the first failure.

    Args:
        sequences: cluster, length, earliest_stubborn, first_failure (nan: none), wrong.
        stubborn: the stubborn positions of each sequence, ascending.
        draws: of the bootstrap; 0 for no interval.
    """
    x, y = (sequences[name].to_numpy(float) for name in ("earliest_stubborn", "first_failure"))
    length = sequences["length"].to_numpy(float)
    _, cluster = np.unique(sequences["cluster"].to_numpy(), return_inverse=True)
    both, rng = np.isfinite(x) & np.isfinite(y), np.random.default_rng(seed)
    censored = correlation(
        np.where(np.isfinite(x), x, length),
        np.where(np.isfinite(y), y, length),
        cluster,
        draws,
        rng,
    )
    gaps = y[both] - x[both]
    return Agreement(
        correlation(x[both], y[both], cluster[both], draws, rng),
        censored,
        _chance(x, sequences["wrong"].to_numpy(np.int64), stubborn, both, rng),
        int((np.isnan(x) & np.isnan(y)).sum()),
        int((np.isfinite(x) & np.isnan(y)).sum()),
        int((np.isnan(x) & np.isfinite(y)).sum()),
        int((gaps == 0).sum()),
        float(np.median(gaps)) if len(gaps) else float("nan"),
    )


def correlation(
    x: Array, y: Array, cluster: NDArray[Any], draws: int, rng: np.random.Generator
) -> Correlation:
    """Spearman's rho; its interval by drawing clusters with replacement.

    Below 40 clusters (G) the interval is Student's t(G - 1) on Fisher's scale, with the spread of the draws times
    sqrt(G / (G - 1)); from 40 on percentiles.
    """
    names, place = np.unique(cluster, return_inverse=True)
    count, nan = len(names), float("nan")
    if len(x) < LEAST_SEQUENCES:
        return Correlation(nan, nan, nan, len(x), count, f"{len(x)} sequences")
    pairs, which = np.unique(np.stack([x, y]), axis=1, return_inverse=True)
    counts_CP = sparse.csr_matrix(
        (np.ones(len(x)), (place, which.ravel())), shape=(count, pairs.shape[1])
    )
    rho = float(spearman(pairs, np.asarray(counts_CP.sum(0)))[0])
    if not np.isfinite(rho):
        return Correlation(nan, nan, nan, len(x), count, "one of the two never varies")
    if not draws or count < MIN_CLUSTERS:
        why = (
            f"no interval: {count} texts and lengths, {MIN_CLUSTERS} are needed"
            if draws
            else "no interval: draws=0"
        )
        return Correlation(rho, nan, nan, len(x), count, why)
    found, at_once = [], max(1, CHUNK // pairs.shape[1])
    for start in range(0, draws, at_once):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, draws - start))
        found.append(spearman(pairs, np.asarray(drawn @ counts_CP)))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    low, high = _interval(rho, values, count)
    return Correlation(rho, low, high, len(x), count)


def _interval(rho: float, drawn: Array, clusters: int) -> tuple[float, float]:
    if len(drawn) < 2:
        return float("nan"), float("nan")
    if clusters >= FEW_CLUSTERS:
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)
    edge = 1 - 1e-9
    scale = np.arctanh(np.clip(drawn, -edge, edge))
    quantile = t_quantile(clusters - 1)
    half = quantile * float(scale.std(ddof=1)) * float(np.sqrt(clusters / (clusters - 1)))
    middle = float(np.arctanh(np.clip(rho, -edge, edge)))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def spearman(pairs_2P: Array, weights_DP: NDArray[Any]) -> Array:
    """Rho of distinct pairs that occur so often, for each row of counts; nan where a side does not vary."""
    ranks = [_midranks(values, weights_DP) for values in pairs_2P]
    total = weights_DP.sum(1, keepdims=True)
    x, y = (rank - (rank * weights_DP).sum(1, keepdims=True) / total for rank in ranks)
    xy, xx, yy = ((weights_DP * a * b).sum(1) for a, b in ((x, y), (x, x), (y, y)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((xx > 1e-9) & (yy > 1e-9), xy / np.sqrt(xx * yy), np.nan)


def _midranks(values_P: Array, weights_DP: NDArray[Any]) -> Array:
    """The rank of each pair's value among all that its row counts, ties in the middle."""
    order = np.argsort(values_P, kind="stable")
    starts = np.flatnonzero(np.diff(values_P[order], prepend=np.nan) != 0)
    counts = np.add.reduceat(weights_DP[:, order], starts, axis=1)
    middle = np.cumsum(counts, axis=1) - counts / 2
    ranks = np.empty(weights_DP.shape)
    ranks[:, order] = np.repeat(middle, np.diff(np.append(starts, len(order))), axis=1)
    return ranks


def _chance(
    x: Array, wrong: Ints, stubborn: list[Ints], both: NDArray[np.bool_], rng: np.random.Generator
) -> float:
    """Mean rho over draws of the wrong tokens among the stubborn ones, in the sequences that have both."""
    chosen = np.flatnonzero(both)
    if len(chosen) < LEAST_SEQUENCES:
        return float("nan")
    sizes = np.array([len(stubborn[k]) for k in chosen])
    draws = int(np.clip(CHUNK // len(chosen), 20, CHANCE_DRAWS))
    index = first_of_random(sizes, np.minimum(wrong[chosen], sizes), draws, rng)
    starts = np.cumsum(sizes) - sizes
    drawn = np.concatenate([stubborn[k] for k in chosen])[starts[:, None] + index].astype(float)
    earliest = stats.rankdata(x[chosen])
    earliest -= earliest.mean()
    found = []
    for column in drawn.T:
        ranks = stats.rankdata(column)
        ranks -= ranks.mean()
        scale = float(np.sqrt((ranks**2).sum() * (earliest**2).sum()))
        found.append(float(ranks @ earliest) / scale if scale > 0 else np.nan)
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def first_of_random(sizes: Ints, chosen: Ints, draws: int, rng: np.random.Generator) -> Ints:
    """The least of `chosen` distinct indices below `sizes`, drawn at random: (N, draws). At least one is chosen."""
    index = np.zeros((len(sizes), draws), np.int64)
    kinds, which = np.unique(np.stack([sizes, chosen]), axis=1, return_inverse=True)
    for k, (size, count) in enumerate(kinds.T.tolist()):
        rows = np.flatnonzero(which.ravel() == k)
        later = np.arange(
            1, size - count + 1
        )  # P(least >= later) = C(size - later, count) / C(size, count)
        share = np.exp(_log_choose(size - later, count) - _log_choose(size, count))
        index[rows] = np.searchsorted(-share, -rng.random((len(rows), draws)))
    return index


def _log_choose(n: Any, k: int) -> Any:
    return (
        special.gammaln(np.asarray(n) + 1.0)
        - special.gammaln(k + 1.0)
        - special.gammaln(np.asarray(n) - k + 1.0)
    )


@dataclass(frozen=True)
class FailureConcentration:
    """The most common first failures: of each text, and over all texts."""

    texts: pd.DataFrame  # data_seed, sample, failures, position, count, share, chance, p
    failures: int  # of the texts above
    share: float  # of first failures that lie at their text's most common position
    chance: float  # that share if wrong tokens lay anywhere in their sequences
    p: float

    def to_dict(self) -> dict[str, Any]:
        values = {name: finite_or_none(getattr(self, name)) for name in ("share", "chance", "p")}
        return {"texts": len(self.texts), "failures": self.failures, **values}


def gather(sequences: pd.DataFrame, seed: int = 0) -> FailureConcentration:
    """Which position first failures of one text share, over ranks, lengths and seeds, against chance.

    By chance each sequence has as many wrong tokens as it has, anywhere: few distinct positions then also gather the first
    failures, most of all where nearly every token is wrong. p is the share of such draws that gather as much.

    Args:
        sequences: data_seed, sample, length, wrong, first_failure (nan: none).
    """
    failed = sequences[sequences["first_failure"].notna()]
    rng = np.random.default_rng(seed)
    draws = int(np.clip(2e7 // max(len(failed), 1), 100, GATHER_DRAWS))
    rows, total, expected = [], 0, np.zeros(draws)
    for (text, sample), group in failed.groupby(["data_seed", "sample"], dropna=False):
        if len(group) < LEAST_FAILURES:
            continue
        place, counts = np.unique(group["first_failure"].to_numpy(np.int64), return_counts=True)
        most = int(counts.max())
        drawn = first_of_random(
            group["length"].to_numpy(np.int64), group["wrong"].to_numpy(np.int64), draws, rng
        )
        by_chance = _most_common(drawn)
        total, expected = total + most, expected + by_chance
        rows.append({
            "data_seed": text, "sample": sample, "failures": len(group), "position": int(place[counts.argmax()]),
            "count": most, "share": most / len(group), "chance": float(by_chance.mean()) / len(group),
            "p": float(1 + (by_chance >= most).sum()) / (1 + draws),
        })  # fmt: skip
    names = ["data_seed", "sample", "failures", "position", "count", "share", "chance", "p"]
    texts = pd.DataFrame(rows, columns=names).sort_values(
        ["failures", "share"], ascending=False, ignore_index=True
    )
    count = int(texts["failures"].sum())
    if not count:
        return FailureConcentration(texts, 0, float("nan"), float("nan"), float("nan"))
    p = float(1 + (expected >= total).sum()) / (1 + draws)
    return FailureConcentration(texts, count, total / count, float(expected.mean()) / count, p)


def _most_common(values_ND: Ints) -> Array:
    """How often the most common value of each column occurs."""
    ordered = np.sort(values_ND, axis=0)
    best, run = np.ones(ordered.shape[1]), np.ones(ordered.shape[1])
    for upper, lower in zip(ordered[1:], ordered[:-1], strict=True):
        run = np.where(upper == lower, run + 1, 1)
        best = np.maximum(best, run)
    return best
