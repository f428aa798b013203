"""Statistics that every report shares: intervals of means and proportions, errors of a fit.

The bottom layer: numpy and scipy alone. scipy loads its submodules on first use, so a module that
needs only a constant does not wait for scipy.stats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Level of every interval.
CONFIDENCE = 0.95

# Negative log-likelihood (nats) of p = 1/2. Below it, greedy decoding must pick the token.
LN2 = math.log(2)

# Below this number of clusters, intervals use Student's t and are widened.
FEW_CLUSTERS = 40
# Below this number of clusters, the spread between them is not estimated.
MIN_CLUSTERS = 4


def normal_quantile() -> float:
    """Upper quantile of the standard normal for a two-sided interval at `CONFIDENCE`."""
    return float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))


def t_quantile(degrees: float) -> float:
    """Upper quantile of Student's t for a two-sided interval at `CONFIDENCE`."""
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, degrees))


def t_half_width(values: ArrayLike) -> float:
    """Half the width of the t interval of a mean.

    Args:
        values: independent observations, (n,).

    Returns:
        nan for fewer than two values.
    """
    sample = np.asarray(values, float)
    if len(sample) < 2:
        return math.nan

    # In this order the result equals that of earlier versions to the last bit;
    # scipy.stats.ttest_1samp(...).confidence_interval() agrees but for rounding.
    quantile = t_quantile(len(sample) - 1)
    return float(quantile * sample.std(ddof=1) / math.sqrt(len(sample)))


def few_cluster_factor(clusters: int) -> float:
    """How much a bootstrap over few clusters understates the spread.

    The ratio of Student's t to the normal quantile, times sqrt(G / (G - 1)), which falls to 1 as
    clusters are added; 1 below two clusters, where there is no spread to widen.
    """
    if clusters < 2:
        return 1.0
    t_ratio = t_quantile(clusters - 1) / normal_quantile()
    return t_ratio * math.sqrt(clusters / (clusters - 1))


def r_squared(measured: Array, predicted: Array) -> float:
    """Coefficient of determination; nan where all measured values are equal.

    Args:
        measured, predicted: (n,).
    """
    total = float(((measured - measured.mean()) ** 2).sum())
    if total == 0:
        return math.nan
    residual = float(((measured - predicted) ** 2).sum())
    return 1 - residual / total


def percent_error(measured: Array, predicted: Array) -> float:
    """Mean absolute percentage error over the measured values that are not 0; nan without any.

    Args:
        measured, predicted: (n,).
    """
    nonzero = measured != 0
    if not nonzero.any():
        return math.nan
    relative = (predicted - measured)[nonzero] / measured[nonzero]
    return float(100 * np.abs(relative).mean())


def safe_exp(value: float) -> float:
    """exp(value), or infinity where that overflows; nan of nan."""
    return math.inf if value >= 700 else math.exp(value)


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """A proportion with its 95 % interval; low and high are nan where there is none."""

    successes: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.successes / self.trials if self.trials else math.nan


def clustered_proportion(
    successes_C: ArrayLike, trials_C: ArrayLike, *, least_clusters: int = 1
) -> Proportion:
    """A proportion over clusters, such as the cells of one text.

    Wilson's interval with an effective number of trials, p (1 - p) / variance, where the variance
    is the linearised one of a ratio of sums over clusters; never more than the actual number.
    Where all clusters agree, and below `MIN_CLUSTERS`, the actual number is used: the interval is
    then a lower bound of the uncertainty.

    Args:
        successes_C, trials_C: counts of each cluster, (C,).
        least_clusters: with fewer that have trials there is no interval (nan).
    """
    successes = np.asarray(successes_C, float)
    trials = np.asarray(trials_C, float)
    successes, trials = successes[trials > 0], trials[trials > 0]
    clusters = len(trials)
    total = int(trials.sum())
    if not total:
        return Proportion(successes=0, trials=0, low=math.nan, high=math.nan)

    count = int(successes.sum())
    if clusters < least_clusters:
        return Proportion(successes=count, trials=total, low=math.nan, high=math.nan)

    p = count / total
    variance = 0.0
    if clusters >= MIN_CLUSTERS:
        deviations = float(((successes - p * trials) ** 2).sum())
        variance = clusters / (clusters - 1) * deviations / total**2
    low, high = _clustered_interval(p, variance, total, clusters)
    return Proportion(successes=count, trials=total, low=low, high=high)


# Shares that differ by less are equal.
SAME_SHARE = 1e-12


@dataclass(frozen=True, kw_only=True)
class MeanShare:
    """A mean of shares with its 95 % interval; nan without any."""

    value: float
    low: float
    high: float


def mean_share(shares_C: ArrayLike, trials_C: ArrayLike) -> MeanShare:
    """The mean of the shares of clusters, each with the same weight, however many trials it has.

    The interval is that of `clustered_proportion`, which it equals where all have as many trials.

    Args:
        shares_C: share of the trials of each cluster that succeeded, (C,).
        trials_C: how many it has, above 0, (C,).
    """
    shares = np.asarray(shares_C, float)
    trials = np.asarray(trials_C, float)
    clusters = len(shares)
    if not clusters:
        return MeanShare(value=math.nan, low=math.nan, high=math.nan)

    mean = float(shares.mean())
    variance = 0.0
    # The variance of equal shares may be rounding alone.
    if clusters >= MIN_CLUSTERS and float(np.ptp(shares)) > SAME_SHARE:
        variance = float(shares.var(ddof=1)) / clusters
    # As many trials of one binomial share have the variance of a mean of binomial shares.
    most_trials = clusters**2 / float((1 / trials).sum())
    low, high = _clustered_interval(mean, variance, most_trials, clusters)
    return MeanShare(value=mean, low=low, high=high)


def _clustered_interval(
    p: float, variance: float, trials: float, clusters: int
) -> tuple[float, float]:
    """Wilson's interval of a proportion with an effective number of trials.

    Args:
        p: the proportion.
        variance: of it, from how its clusters differ; 0 where that is not known, or they agree.
        trials: the effective number is never more.
        clusters: their number.
    """
    effective = float(trials)
    quantile = normal_quantile()
    if variance > 0:
        effective = min(effective, p * (1 - p) / variance)
        quantile = t_quantile(clusters - 1)
    return _wilson(p, effective, quantile)


def _wilson(p: float, trials: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval."""
    z = quantile**2 / trials
    centre = (p + z / 2) / (1 + z)
    variance = p * (1 - p) / trials + z / (4 * trials)
    half = quantile / (1 + z) * math.sqrt(variance)
    # Exactly 0 or 1 at the ends, where rounding would leave a tiny distance.
    low = 0.0 if p == 0 else max(centre - half, 0.0)
    high = 1.0 if p == 1 else min(centre + half, 1.0)
    return low, high
