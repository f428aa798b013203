"""Where recall breaks: earliest stubborn position against first failure, and their concentration.

A sequence is one sample of one run. A token is stubborn if p <= 0.5 at the last logged step. The
first failure of a sequence cannot come before its earliest stubborn position, because p > 0.5
suffices for recall. So part of the correlation of the two is arithmetic: `FailureAgreement.chance`
is the correlation that is left when the wrong tokens of each sequence are drawn at random among its
stubborn ones.

Shapes: N sequences, P distinct pairs (x, y), C clusters, D draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special, stats

from pml_cli.stats import MIN_CLUSTERS, Array, t_quantile

Ints = NDArray[np.int64]

# Fewer sequences have no correlation.
MIN_SEQUENCES = 3

# With fewer failures of one text, its most common position means little.
MIN_FAILURES = 5

# Bounds the memory of one array of draws.
MAX_NUMBERS = 4_000_000

# Draws of the correlation by chance, as many as MAX_NUMBERS allows.
MIN_CHANCE_DRAWS = 20
MAX_CHANCE_DRAWS = 200

# Draws of first failures by chance, and how many numbers they may take in all.
MIN_CONCENTRATION_DRAWS = 100
MAX_CONCENTRATION_DRAWS = 1000
MAX_CONCENTRATION_NUMBERS = 2e7

# Values of `Correlation.problem`.
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
    """Correlation over the sequences that have both a stubborn token and a failure."""

    censored: Correlation
    """Correlation over all sequences; where one of the two does not occur, the length stands for
    it."""

    chance: float
    """rho of `both` if the wrong tokens were drawn at random among the stubborn ones."""

    neither: int
    """Sequences without a stubborn and without a wrong token."""

    no_failure: int
    """Sequences with stubborn tokens, none of them wrong."""

    no_stubborn: int
    """Sequences with a wrong token and no stubborn one: violations only."""

    same: int
    """Number of sequences whose first failure is the earliest stubborn token."""

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
    sequences: pd.DataFrame,
    stubborn: list[Ints],
    draws: int,
    seed: int = 0,
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
    cluster = pd.factorize(sequences["cluster"], sort=True)[0]
    has_x = np.isfinite(x)
    has_y = np.isfinite(y)
    has_both = has_x & has_y

    # What does not occur is censored: it lies at the end of the sequence or beyond.
    length = sequences["length"].to_numpy(float)
    censored_x = np.where(has_x, x, length)
    censored_y = np.where(has_y, y, length)
    censored = correlation(censored_x, censored_y, cluster, draws, rng)

    x_both = x[has_both]
    y_both = y[has_both]
    both = correlation(x_both, y_both, cluster[has_both], draws, rng)
    indices = np.flatnonzero(has_both)
    positions = [stubborn[index] for index in indices]
    wrong = sequences["wrong"].to_numpy(np.int64)[indices]

    gaps = y_both - x_both
    return FailureAgreement(
        both=both,
        censored=censored,
        chance=_chance_correlation(x_both, positions, wrong, rng),
        neither=int((~has_x & ~has_y).sum()),
        no_failure=int((has_x & ~has_y).sum()),
        no_stubborn=int((~has_x & has_y).sum()),
        same=int((gaps == 0).sum()),
        gap=float(np.median(gaps)) if len(gaps) else math.nan,
    )


def correlation(
    x: Array,
    y: Array,
    cluster: NDArray[Any],
    draws: int,
    rng: np.random.Generator,
) -> Correlation:
    """Spearman's rho; its interval by drawing clusters with replacement (cluster bootstrap).

    With G clusters it is Student's t(G - 1) on Fisher's scale, with the spread of the draws times
    sqrt(G / (G - 1)).

    Args:
        x, y: (N,).
        cluster: which cluster each pair belongs to, (N,).
        draws: bootstrap draws; 0 for no interval.
    """
    cluster_names, cluster_index = np.unique(cluster, return_inverse=True)
    n = len(x)
    clusters = len(cluster_names)

    def without_interval(rho: float, problem: str) -> Correlation:
        return Correlation(
            rho=rho,
            low=math.nan,
            high=math.nan,
            n=n,
            clusters=clusters,
            problem=problem,
        )

    if n < MIN_SEQUENCES:
        return without_interval(math.nan, TOO_FEW_SEQUENCES)

    # Few positions are distinct, so ranks are computed of distinct pairs with multiplicities.
    xy = np.stack([x, y])
    pairs_2P, pair_index = np.unique(xy, axis=1, return_inverse=True)
    entries = (np.ones(n), (cluster_index, pair_index.ravel()))
    counts_CP = sparse.csr_matrix(entries, shape=(clusters, pairs_2P.shape[1]))
    all_clusters = np.asarray(counts_CP.sum(0))
    rho = float(spearman(pairs_2P, all_clusters)[0])

    if not np.isfinite(rho):
        return without_interval(math.nan, CONSTANT)
    if not draws:
        return without_interval(rho, NO_DRAWS)
    if clusters < MIN_CLUSTERS:
        return without_interval(rho, TOO_FEW_CLUSTERS)

    drawn = _bootstrap(pairs_2P, counts_CP, draws, rng)
    low, high = _interval(rho, drawn[np.isfinite(drawn)], clusters)
    return Correlation(rho=rho, low=low, high=high, n=n, clusters=clusters)


def _bootstrap(
    pairs_2P: Array,
    counts_CP: sparse.csr_matrix,
    draws: int,
    rng: np.random.Generator,
) -> Array:
    """rho of each draw of clusters with replacement, (D,)."""
    clusters, pairs = counts_CP.shape
    probabilities = np.full(clusters, 1 / clusters)
    chunk = max(1, MAX_NUMBERS // pairs)

    rho: list[Array] = []
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        # How often each cluster is drawn.
        times_DC = rng.multinomial(clusters, probabilities, size=size)
        counts_DP = np.asarray(times_DC @ counts_CP)
        rho.append(spearman(pairs_2P, counts_DP))
    return np.concatenate(rho)


def _interval(rho: float, drawn: Array, clusters: int) -> tuple[float, float]:
    """The 95 % interval of rho from the finite draws of the bootstrap."""
    if len(drawn) < 2:
        return math.nan, math.nan

    spread = float(_fisher(drawn).std(ddof=1))
    few_clusters = math.sqrt(clusters / (clusters - 1))
    half_width = t_quantile(clusters - 1) * spread * few_clusters
    centre = float(_fisher(rho))
    low, high = np.tanh([centre - half_width, centre + half_width])
    return float(low), float(high)


def _fisher(rho: ArrayLike) -> Array:
    """Fisher's transformation of correlations, kept finite at -1 and 1."""
    limit = 1 - 1e-9
    return np.asarray(np.arctanh(np.clip(rho, -limit, limit)))


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

    # Where a side does not vary, rounding errors are left of its sum of squares.
    varies = (xx > 1e-9) & (yy > 1e-9)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = xy / np.sqrt(xx * yy)
    return np.where(varies, rho, np.nan)


def _centred_ranks(values_P: Array, counts_DP: NDArray[Any]) -> Array:
    """Midranks of the values among all that each row counts, minus their mean, (D, P)."""
    order = np.argsort(values_P, kind="stable")
    # Where each run of equal values starts.
    is_start = np.diff(values_P[order], prepend=np.nan) != 0
    starts = np.flatnonzero(is_start)
    ties = np.add.reduceat(counts_DP[:, order], starts, axis=1)
    midranks = np.cumsum(ties, axis=1) - ties / 2

    ranks_DP = np.empty(counts_DP.shape)
    run_lengths = np.diff(np.append(starts, len(order)))
    ranks_DP[:, order] = np.repeat(midranks, run_lengths, axis=1)

    total = counts_DP.sum(1, keepdims=True)
    mean: Array = (ranks_DP * counts_DP).sum(1, keepdims=True) / total
    return ranks_DP - mean


def _chance_correlation(
    earliest_N: Array,
    stubborn: list[Ints],
    wrong_N: Ints,
    rng: np.random.Generator,
) -> float:
    """Mean rho over draws of the wrong tokens at random among the stubborn ones.

    Args:
        earliest_N: earliest stubborn position of each sequence, (N,).
        stubborn: all stubborn positions of each sequence, ascending.
        wrong_N: number of wrong tokens, (N,).
    """
    if len(stubborn) < MIN_SEQUENCES:
        return math.nan

    affordable = MAX_NUMBERS // len(stubborn)
    draws = int(np.clip(affordable, MIN_CHANCE_DRAWS, MAX_CHANCE_DRAWS))
    sizes = np.array([len(positions) for positions in stubborn])
    # With violations, wrong tokens can be more than the stubborn ones.
    index_ND = first_of_random(sizes, np.minimum(wrong_N, sizes), draws, rng)
    offset_N = np.cumsum(sizes) - sizes
    failure_ND = np.concatenate(stubborn)[offset_N[:, None] + index_ND]

    x = _centred(stats.rankdata(earliest_N))
    xx = (x**2).sum()
    rho = np.full(draws, np.nan)
    for draw, failure_N in enumerate(failure_ND.T.astype(float)):
        y = _centred(stats.rankdata(failure_N))
        yy = (y**2).sum()
        # Where the drawn failures are all equal there is no rho.
        if xx * yy > 0:
            rho[draw] = (y @ x) / np.sqrt(yy * xx)
    return float(np.nanmean(rho)) if np.isfinite(rho).any() else math.nan


def _centred(values: Array) -> Array:
    centred: Array = values - values.mean()
    return centred


def first_of_random(
    sizes: Ints,
    chosen: Ints,
    draws: int,
    rng: np.random.Generator,
) -> Ints:
    """The smallest of `chosen` distinct indices below `sizes`, drawn at random.

    With n = sizes and k = chosen, P(smallest >= i) = C(n - i, k) / C(n, k).

    Args:
        sizes: how many indices there are, (N,).
        chosen: how many of them are drawn, at least 1, (N,).

    Returns:
        (N, draws).
    """
    smallest = np.zeros((len(sizes), draws), np.int64)

    # Rows of equal size and count share a distribution.
    parameters = np.stack([sizes, chosen])
    distinct, distinct_index = np.unique(parameters, axis=1, return_inverse=True)
    for index, (size, count) in enumerate(distinct.T.tolist()):
        rows = np.flatnonzero(distinct_index.ravel() == index)
        i = np.arange(1, size - count + 1)
        log_share = _log_choose(size - i, count) - _log_choose(size, count)
        uniform = rng.random((len(rows), draws))
        # Both negated, because searchsorted needs ascending values.
        smallest[rows] = np.searchsorted(-np.exp(log_share), -uniform)
    return smallest


def _log_choose(n: ArrayLike, k: int) -> Any:
    """log of the binomial coefficient C(n, k)."""
    n = np.asarray(n)
    log_permutations = special.gammaln(n + 1.0) - special.gammaln(k + 1.0)
    return log_permutations - special.gammaln(n - k + 1.0)


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
    by_text = failed.groupby(["data_seed", "sample"], dropna=False)
    for (text, sample), group in by_text:
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
        return FailureConcentration(
            texts=texts,
            failures=0,
            share=math.nan,
            chance=math.nan,
            p=math.nan,
        )
    return FailureConcentration(
        texts=texts,
        failures=failures,
        share=total / failures,
        chance=float(total_by_chance_D.mean()) / failures,
        p=_p_value(total_by_chance_D, total),
    )


def _text_row(first_failures: Ints, by_chance_D: Array) -> dict[str, Any]:
    """The most common first failure of one text, against its count in the draws by chance."""
    failures = len(first_failures)
    positions, counts = np.unique(first_failures, return_counts=True)
    count = int(counts.max())

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
    reaching = int((by_chance_D >= observed).sum())
    return (1 + reaching) / (1 + len(by_chance_D))


def _largest_count(values_ND: Ints) -> Array:
    """How often the most common value of each column occurs, (D,)."""
    ordered_ND = np.sort(values_ND, axis=0)
    run_D = np.ones(ordered_ND.shape[1])
    longest_D = run_D
    for below, above in pairwise(ordered_ND):
        run_D = np.where(above == below, run_D + 1, 1)
        longest_D = np.maximum(longest_D, run_D)
    return longest_D
