"""Where recall breaks: earliest stubborn position against first failure, and their concentration.

A sequence is one sample of one run. A token is stubborn if p <= 0.5 at the last logged step. The
first failure of a sequence cannot come before its earliest stubborn position, because p > 0.5
suffices for recall. So part of the correlation of the two is arithmetic: `FailureAgreement.chance`
is the correlation that is left when the wrong tokens of each sequence are drawn at random among its
stubborn ones.

Shapes: N sequences, P distinct pairs (x, y), C clusters, D draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special, stats

from pml_cli.stats import CONFIDENCE, FEW_CLUSTERS, MIN_CLUSTERS, Array, Mask, t_quantile

Ints = NDArray[np.int64]

MIN_SEQUENCES = 3  # for a correlation
MIN_FAILURES = 5  # of one text, for its most common position
MAX_NUMBERS = 4_000_000  # of one array of bootstrap draws

MIN_CHANCE_DRAWS = 20
MAX_CHANCE_DRAWS = 200

# Draws of first failures at random, and how many numbers they may take in all.
MIN_CONCENTRATION_DRAWS = 100
MAX_CONCENTRATION_DRAWS = 1000
MAX_CONCENTRATION_NUMBERS = 2e7

TOO_FEW_SEQUENCES = "too_few_sequences"
CONSTANT = "constant"
TOO_FEW_CLUSTERS = "too_few_clusters"
NO_DRAWS = "no_draws"


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's rho with a 95 % interval by resampling clusters."""

    rho: float
    low: float
    high: float
    n: int
    """Sequences."""

    clusters: int
    problem: str = ""
    """Why there is no rho or no interval: TOO_FEW_SEQUENCES, CONSTANT, TOO_FEW_CLUSTERS or
    NO_DRAWS; empty where there are both."""


@dataclass(frozen=True, kw_only=True)
class FailureAgreement:
    """Earliest stubborn position against first failure, over the sequences of a group."""

    both: Correlation
    """Over the sequences that have a stubborn token and a failure."""

    censored: Correlation
    """Over all sequences; where one of the two does not occur, the length stands for it."""

    chance: float
    """rho of `both` if the wrong tokens were drawn at random among the stubborn ones."""

    neither: int
    """Sequences without a stubborn and without a wrong token."""

    no_failure: int
    """Sequences with stubborn tokens, none of them wrong."""

    no_stubborn: int
    """Sequences with a wrong token and no stubborn one: violations only."""

    same: int
    """Of the sequences with both: the first failure is the earliest stubborn token."""

    gap: float
    """Median distance from the earliest stubborn token to the first failure, tokens."""


@dataclass(frozen=True, kw_only=True)
class FailureConcentration:
    """How many first failures lie at the most common position of their text."""

    texts: pd.DataFrame
    """A row for each text: data_seed, sample, failures, position, count, share, chance, p."""

    failures: int
    """First failures of these texts."""

    share: float
    """Share of the first failures that lie at the most common position of their text."""

    chance: float
    """Expected share if the wrong tokens lay anywhere in their sequences."""

    p: float
    """Probability of at least this share by chance."""


TEXT_COLUMNS = ["data_seed", "sample", "failures", "position", "count", "share", "chance", "p"]


def stubborn_against_failure(
    sequences: pd.DataFrame, stubborn: list[Ints], draws: int, seed: int = 0
) -> FailureAgreement:
    """How well the earliest stubborn position predicts the first failure.

    Args:
        sequences: N rows with cluster, length, earliest_stubborn and first_failure (positions from
            0; nan where there is none) and wrong (the number of wrong tokens).
        stubborn: the stubborn positions of each sequence, ascending.
        draws: bootstrap draws of each interval; 0 for no interval.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    x = sequences["earliest_stubborn"].to_numpy(float)
    y = sequences["first_failure"].to_numpy(float)
    length = sequences["length"].to_numpy(float)
    cluster = np.unique(sequences["cluster"].to_numpy(), return_inverse=True)[1]
    has_x = np.isfinite(x)
    has_y = np.isfinite(y)
    has_both = has_x & has_y

    censored = correlation(
        np.where(has_x, x, length), np.where(has_y, y, length), cluster, draws, rng
    )
    both = correlation(x[has_both], y[has_both], cluster[has_both], draws, rng)
    chance = _chance_correlation(x, sequences["wrong"].to_numpy(np.int64), stubborn, has_both, rng)

    gaps = y[has_both] - x[has_both]
    return FailureAgreement(
        both=both,
        censored=censored,
        chance=chance,
        neither=int((~has_x & ~has_y).sum()),
        no_failure=int((has_x & ~has_y).sum()),
        no_stubborn=int((~has_x & has_y).sum()),
        same=int((gaps == 0).sum()),
        gap=float(np.median(gaps)) if len(gaps) else float("nan"),
    )


def correlation(
    x: Array, y: Array, cluster: NDArray[Any], draws: int, rng: np.random.Generator
) -> Correlation:
    """Spearman's rho; its interval by drawing clusters with replacement (cluster bootstrap).

    From `FEW_CLUSTERS` on the interval is that of the draws' percentiles. Below (G clusters) it is
    Student's t(G - 1) on Fisher's scale, with the spread of the draws times sqrt(G / (G - 1)).

    Args:
        x, y: (N,).
        cluster: which cluster each pair belongs to, (N,).
        draws: bootstrap draws; 0 for no interval.
    """
    cluster_names, cluster_index = np.unique(cluster, return_inverse=True)
    n = len(x)
    clusters = len(cluster_names)

    def without_interval(rho: float, problem: str) -> Correlation:
        nan = float("nan")
        return Correlation(rho=rho, low=nan, high=nan, n=n, clusters=clusters, problem=problem)

    if n < MIN_SEQUENCES:
        return without_interval(float("nan"), TOO_FEW_SEQUENCES)

    pairs_2P, pair_index = np.unique(np.stack([x, y]), axis=1, return_inverse=True)
    counts_CP = sparse.csr_matrix(
        (np.ones(n), (cluster_index, pair_index.ravel())), shape=(clusters, pairs_2P.shape[1])
    )
    rho = float(spearman(pairs_2P, np.asarray(counts_CP.sum(0)))[0])
    if not np.isfinite(rho):
        return without_interval(float("nan"), CONSTANT)
    if not draws:
        return without_interval(rho, NO_DRAWS)
    if clusters < MIN_CLUSTERS:
        return without_interval(rho, TOO_FEW_CLUSTERS)

    drawn = _bootstrap(pairs_2P, counts_CP, draws, rng)
    low, high = _interval(rho, drawn[np.isfinite(drawn)], clusters)
    return Correlation(rho=rho, low=low, high=high, n=n, clusters=clusters)


def _bootstrap(
    pairs_2P: Array, counts_CP: sparse.csr_matrix, draws: int, rng: np.random.Generator
) -> Array:
    """rho of each draw of clusters with replacement, (D,)."""
    clusters, pairs = counts_CP.shape
    even = np.full(clusters, 1 / clusters)
    chunk = max(1, MAX_NUMBERS // pairs)

    rho: list[Array] = []
    for start in range(0, draws, chunk):
        times_DC = rng.multinomial(clusters, even, size=min(chunk, draws - start))
        rho.append(spearman(pairs_2P, np.asarray(times_DC @ counts_CP)))
    return np.concatenate(rho)


def _interval(rho: float, drawn: Array, clusters: int) -> tuple[float, float]:
    """The 95 % interval of rho from the finite draws of the bootstrap."""
    if len(drawn) < 2:
        return float("nan"), float("nan")

    if clusters >= FEW_CLUSTERS:
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)

    # Fisher's transformation is infinite at -1 and 1.
    limit = 1 - 1e-9
    spread = float(np.arctanh(np.clip(drawn, -limit, limit)).std(ddof=1))
    half = t_quantile(clusters - 1) * spread * float(np.sqrt(clusters / (clusters - 1)))
    centre = float(np.arctanh(np.clip(rho, -limit, limit)))
    return float(np.tanh(centre - half)), float(np.tanh(centre + half))


def spearman(pairs_2P: Array, counts_DP: NDArray[Any]) -> Array:
    """Spearman's rho of distinct pairs with multiplicities; nan where a side does not vary.

    Args:
        pairs_2P: the distinct pairs, (2, P).
        counts_DP: how often each pair occurs, (D, P).

    Returns:
        rho for each row of counts, (D,).
    """
    x_DP = _centred_ranks(pairs_2P[0], counts_DP)
    y_DP = _centred_ranks(pairs_2P[1], counts_DP)
    xy = (counts_DP * x_DP * y_DP).sum(1)
    xx = (counts_DP * x_DP * x_DP).sum(1)
    yy = (counts_DP * y_DP * y_DP).sum(1)
    varies = (xx > 1e-9) & (yy > 1e-9)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(varies, xy / np.sqrt(xx * yy), np.nan)


def _centred_ranks(values_P: Array, counts_DP: NDArray[Any]) -> Array:
    """Midranks of the values among all that each row counts, minus their mean, (D, P)."""
    order = np.argsort(values_P, kind="stable")
    # Where each run of equal values starts.
    starts = np.flatnonzero(np.diff(values_P[order], prepend=np.nan) != 0)
    tied = np.add.reduceat(counts_DP[:, order], starts, axis=1)
    midranks = np.cumsum(tied, axis=1) - tied / 2

    ranks_DP = np.empty(counts_DP.shape)
    run_lengths = np.diff(np.append(starts, len(order)))
    ranks_DP[:, order] = np.repeat(midranks, run_lengths, axis=1)

    total = counts_DP.sum(1, keepdims=True)
    mean: Array = (ranks_DP * counts_DP).sum(1, keepdims=True) / total
    return ranks_DP - mean


def _chance_correlation(
    earliest_N: Array, wrong_N: Ints, stubborn: list[Ints], has_both: Mask, rng: np.random.Generator
) -> float:
    """Mean rho over draws of the wrong tokens among the stubborn ones, in sequences with both."""
    chosen = np.flatnonzero(has_both)
    if len(chosen) < MIN_SEQUENCES:
        return float("nan")

    draws = int(np.clip(MAX_NUMBERS // len(chosen), MIN_CHANCE_DRAWS, MAX_CHANCE_DRAWS))
    positions = [stubborn[index] for index in chosen]
    sizes = np.array([len(row) for row in positions])
    wrong = np.minimum(wrong_N[chosen], sizes)
    index_ND = first_of_random(sizes, wrong, draws, rng)
    offsets = np.cumsum(sizes) - sizes
    failure_ND = np.concatenate(positions)[offsets[:, None] + index_ND].astype(float)

    x = stats.rankdata(earliest_N[chosen])
    x -= x.mean()
    rho: list[float] = []
    for failure_N in failure_ND.T:
        y = stats.rankdata(failure_N)
        y -= y.mean()
        scale = float(np.sqrt((y**2).sum() * (x**2).sum()))
        rho.append(float(y @ x) / scale if scale > 0 else np.nan)
    return float(np.nanmean(rho)) if np.isfinite(rho).any() else float("nan")


def first_of_random(sizes: Ints, chosen: Ints, draws: int, rng: np.random.Generator) -> Ints:
    """The smallest of `chosen` distinct indices below `sizes`, drawn at random.

    With n = sizes and k = chosen, P(smallest >= i) = C(n - i, k) / C(n, k).

    Args:
        sizes: how many indices there are, (N,).
        chosen: how many of them are drawn, at least 1, (N,).

    Returns:
        (N, draws).
    """
    smallest = np.zeros((len(sizes), draws), np.int64)
    kinds, kind_index = np.unique(np.stack([sizes, chosen]), axis=1, return_inverse=True)
    for kind, (size, count) in enumerate(kinds.T.tolist()):
        rows = np.flatnonzero(kind_index.ravel() == kind)
        i = np.arange(1, size - count + 1)
        at_least_i = np.exp(_log_choose(size - i, count) - _log_choose(size, count))
        uniform = rng.random((len(rows), draws))
        # Both negated, because searchsorted needs ascending values.
        smallest[rows] = np.searchsorted(-at_least_i, -uniform)
    return smallest


def _log_choose(n: ArrayLike, k: int) -> Any:
    """log of the binomial coefficient C(n, k)."""
    n = np.asarray(n)
    return special.gammaln(n + 1.0) - special.gammaln(k + 1.0) - special.gammaln(n - k + 1.0)


def failure_concentration(sequences: pd.DataFrame, seed: int = 0) -> FailureConcentration:
    """Whether first failures of one text share a position, over ranks, lengths and seeds.

    Under the null hypothesis, the wrong tokens of each sequence (as many as it has) lie anywhere in
    it. Then too first failures share positions, most of all where nearly every token is wrong.

    Args:
        sequences: rows with data_seed, sample, length, wrong and first_failure (nan: none).
        seed: of the draws under the null hypothesis.
    """
    failed = sequences[sequences["first_failure"].notna()]
    rng = np.random.default_rng(seed)
    affordable = MAX_CONCENTRATION_NUMBERS // max(len(failed), 1)
    draws = int(np.clip(affordable, MIN_CONCENTRATION_DRAWS, MAX_CONCENTRATION_DRAWS))

    rows: list[dict[str, Any]] = []
    total = 0
    total_by_chance_D = np.zeros(draws)
    for (text, sample), group in failed.groupby(["data_seed", "sample"], dropna=False):
        if len(group) < MIN_FAILURES:
            continue
        lengths = group["length"].to_numpy(np.int64)
        wrong = group["wrong"].to_numpy(np.int64)
        by_chance_D = _largest_count(first_of_random(lengths, wrong, draws, rng))
        row = _text_row(group["first_failure"].to_numpy(np.int64), by_chance_D)
        rows.append({"data_seed": text, "sample": sample} | row)
        total += row["count"]
        total_by_chance_D += by_chance_D

    texts = pd.DataFrame(rows, columns=TEXT_COLUMNS)
    texts = texts.sort_values(["failures", "share"], ascending=False, ignore_index=True)
    failures = int(texts["failures"].sum())
    if not failures:
        nan = float("nan")
        return FailureConcentration(texts=texts, failures=0, share=nan, chance=nan, p=nan)
    return FailureConcentration(
        texts=texts,
        failures=failures,
        share=total / failures,
        chance=float(total_by_chance_D.mean()) / failures,
        p=_p_value(total_by_chance_D, total),
    )


def _text_row(first_failures: Ints, by_chance_D: Array) -> dict[str, Any]:
    """The most common first failure of one text, against its count in the draws by chance."""
    positions, counts = np.unique(first_failures, return_counts=True)
    count = int(counts.max())
    failures = len(first_failures)
    return {
        "failures": failures,
        "position": int(positions[counts.argmax()]),
        "count": count,
        "share": count / failures,
        "chance": float(by_chance_D.mean()) / failures,
        "p": _p_value(by_chance_D, count),
    }


def _p_value(by_chance_D: Array, observed: int) -> float:
    """Share of the draws that reach the observed value; the observation counts as one of them."""
    return float(1 + (by_chance_D >= observed).sum()) / (1 + len(by_chance_D))


def _largest_count(values_ND: Ints) -> Array:
    """How often the most common value of each column occurs, (D,)."""
    ordered_ND = np.sort(values_ND, axis=0)
    run_D = np.ones(ordered_ND.shape[1])
    longest_D = run_D
    for below, above in pairwise(ordered_ND):
        run_D = np.where(above == below, run_D + 1, 1)
        longest_D = np.maximum(longest_D, run_D)
    return longest_D
