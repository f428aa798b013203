"""How sure a fit is: a bootstrap that keeps cells of one text and length together, and profile likelihoods.

Cells that share a text and a length share what is hard about that text: they are not independent draws. The bootstrap
resamples those clusters whole, with every rank and seed inside. The spread over optimiser starts is no error and is not
reported as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pml_cli.io import finite_or_none
from pml_cli.law.forms import HIGH, LOG_K, LOW
from pml_cli.law.likelihood import Design, minimise
from pml_cli.law.mle import NATURAL, SaturatingFit, design_of, natural, on_scale, spans
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import MIN_VALUES, NOT_IDENTIFIED, OK
from pml_cli.stats import (
    CONFIDENCE,
    FEW_CLUSTERS,
    MIN_CLUSTERS,
    Array,
    few_cluster_factor,
    normal_quantile,
)

CHUNK = 60_000  # cells times draws solved together
ROUNDS = 40  # scoring steps of a draw, from the fit to all cells
POINTS = 31  # of a profile
REACH = 4.5  # standard errors to each side


@dataclass(frozen=True)
class Bootstrap:
    """The fit to resampled cells, or the reason why there is none."""

    status: str  # OK | NOT_IDENTIFIED
    reason: str
    draws: Array  # (D, 8) in the order of estimate.NATURAL; the draws that converged
    failed: int
    clusters: int
    intervals: dict[str, tuple[float, float]]  # 95 %, of the free parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the draws are apart."""
        return {
            "status": self.status,
            "reason": self.reason,
            "clusters": self.clusters,
            "draws": len(self.draws),
            "failed": self.failed,
            "intervals_95": {
                n: [finite_or_none(low), finite_or_none(high)]
                for n, (low, high) in self.intervals.items()
            },
        }


@dataclass(frozen=True)
class Profile:
    """Twice the fall of the log-likelihood when one parameter is held and the others adapt."""

    name: str
    values: Array  # (V,)
    deviance: Array  # (V,) above the optimum
    interval: tuple[float, float]  # 95 %; nan at a side that the likelihood does not close

    def to_dict(self) -> dict[str, Any]:
        ends = [finite_or_none(end) for end in self.interval]
        return {
            "values": self.values.tolist(),
            "deviance": self.deviance.tolist(),
            "interval_95": ends,
        }


def bootstrap(
    cells: Observations,
    fit: SaturatingFit,
    draws: int = 4000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Bootstrap:
    """Fit `draws` resamples of the clusters, each from the fit to all cells.

    Draws with fewer than three distinct unsaturated lengths carry no fit and are drawn again. Below 40 clusters (G) the
    intervals are the fit +- t(G - 1) times the spread of the draws times sqrt(G / (G - 1)); from 40 on, percentiles.

    Args:
        progress: called with draws done and all draws.
    """
    cluster, count = cells.clusters
    problem = fit.reason if fit.status != OK else ""
    if not problem and count < MIN_CLUSTERS:
        problem = f"only {count} clusters (texts x lengths); {MIN_CLUSTERS} are needed"
    if problem:
        return Bootstrap(NOT_IDENTIFIED, problem, np.empty((0, len(NATURAL))), 0, count, {})
    rng, design = np.random.default_rng(seed), design_of(cells, fit.centre)
    found = []
    chunk = max(1, CHUNK // len(cells))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        weights = _weights(rng, cells, cluster, count, size)
        theta, value = minimise(
            np.tile(fit.theta, (size, 1)),
            design,
            fit.form,
            weights_BN=weights[:, cluster],
            iterations=ROUNDS,
        )
        found.append(natural(theta[np.isfinite(value)], fit.centre))
        if progress:
            progress(start + size, draws)
    sample = np.concatenate(found)
    return Bootstrap(OK, "", sample, draws - len(sample), count, _intervals(fit, sample, count))


def _weights(
    rng: np.random.Generator, cells: Observations, cluster: NDArray[np.intp], count: int, size: int
) -> Array:
    """How often each cluster is drawn, (size, G)."""
    seen = ~cells.saturated
    _, length = np.unique(cells.length, return_inverse=True)
    holds = np.zeros((count, int(length.max()) + 1))
    holds[cluster[seen], length[seen]] = 1
    weights = np.empty((0, count))
    while len(weights) < size:
        drawn = rng.multinomial(count, np.full(count, 1 / count), size).astype(float)
        enough = ((drawn @ holds) > 0).sum(axis=1) >= MIN_VALUES
        weights = np.concatenate([weights, drawn[enough]])
    return weights[:size]


def _intervals(fit: SaturatingFit, sample: Array, count: int) -> dict[str, tuple[float, float]]:
    draws = on_scale(sample)
    if count >= FEW_CLUSTERS:
        low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
        return spans(low, high, fit.form)
    middle = on_scale(natural(fit.theta[None], fit.centre))[0]
    half = normal_quantile() * few_cluster_factor(count) * draws.std(axis=0, ddof=1)
    return spans(middle - half, middle + half, fit.form)


def profiles(
    cells: Observations, fit: SaturatingFit, names: tuple[str, ...] = ("alpha", "beta", "b", "k")
) -> dict[str, Profile]:
    """Profile likelihood of each named parameter that is free in the form; empty unless the fit is OK."""
    if fit.status != OK:
        return {}
    design = design_of(cells, fit.centre)
    return {
        name: _profile(fit, design, NATURAL.index(name))
        for name in names
        if NATURAL.index(name) in fit.form.free
    }


def _profile(fit: SaturatingFit, design: Design, place: int) -> Profile:
    at, error = float(fit.theta[place]), float(np.sqrt(fit.covariance[place, place]))
    values = np.unique(
        np.clip(at + error * np.linspace(-REACH, REACH, POINTS), LOW[place], HIGH[place])
    )
    slope = fit.covariance[:, place] / error**2  # how the others move along, to first order
    starts = fit.theta + (values - at)[:, None] * slope
    starts[:, place] = values
    others = tuple(p for p in fit.form.free if p != place)
    _, nll = minimise(starts, design, fit.form, free=others)
    deviance = np.maximum(0, 2 * (nll - fit.nll))
    interval = _crossing(values, deviance, at, -1), _crossing(values, deviance, at, 1)
    if place == LOG_K:
        values, interval = np.exp(values), (float(np.exp(interval[0])), float(np.exp(interval[1])))
    good = np.isfinite(deviance)
    return Profile(NATURAL[place], values[good], deviance[good], interval)


def _crossing(values: Array, deviance: Array, at: float, side: int) -> float:
    """Where the root of the deviance passes that of chi2(1) at 95 %, on one side of the optimum; nan where it does not."""
    chosen = ((values - at) * side >= 0) & np.isfinite(deviance)
    order = np.argsort(np.abs(values[chosen] - at))
    root = np.concatenate([[0.0], np.sqrt(deviance[chosen][order])])
    place = np.concatenate([[at], values[chosen][order]])
    limit = np.sqrt(stats.chi2.ppf(CONFIDENCE, 1))
    above = np.flatnonzero(root >= limit)
    if not len(above):
        return float("nan")
    k = int(above[0])
    return float(np.interp(limit, root[k - 1 : k + 1], place[k - 1 : k + 1]))
