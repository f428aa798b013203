"""How certain a fit is: a cluster bootstrap, and profile likelihoods.

Cells that share a text share what is hard about it: they are not independent draws. The bootstrap
resamples texts whole, with every length, rank and seed inside; with fewer than four texts, those at
one length, and `exponents.py` widens alpha and beta by how far the texts disagree. The spread
over optimiser starts is not a standard error and is not reported as one.

Shapes: D draws, N cells, G clusters, P = 8 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pml_cli.law.findings import NOT_IDENTIFIED, OK, Finding, finding
from pml_cli.law.likelihood import Design, minimise
from pml_cli.law.mle import LikelihoodFit, design_of
from pml_cli.law.observations import Observations
from pml_cli.law.parameters import (
    LOG_K,
    NATURAL_NAMES,
    Interval,
    intervals_of,
    to_interval_scale,
    to_natural,
)
from pml_cli.law.power_law import MIN_DISTINCT
from pml_cli.stats import (
    CONFIDENCE,
    MIN_CLUSTERS,
    Array,
    few_cluster_factor,
    normal_quantile,
)

Progress = Callable[[int, int], None]
"""Is called with the draws done and all draws."""

# Cells times draws that are solved together.
CELLS_AT_ONCE = 60_000

# Scoring steps of a draw, which starts at the fit to all cells.
STEPS = 40

# Values at which a profile likelihood is computed, and the parameters that have one.
PROFILE_POINTS = 21
PROFILED = ("alpha", "beta", "b", "k")

# Width of a profile to each side of the optimum, standard errors.
PROFILE_REACH = 4.5

# A fall of the deviance outward by more than this is a second minimum.
MONOTONE_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The fits to resampled clusters, or the finding that says why there is none."""

    status: str
    """OK or NOT_IDENTIFIED."""
    finding: Finding | None
    draws: Array
    """(D, P) natural parameters of the draws that converged."""
    failed: int
    """Draws that did not."""
    clusters: int
    intervals: dict[str, Interval]
    """95 %, of the free parameters by name."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Profile likelihood of one parameter: it is held at V values, the others adapt."""

    name: str
    values: Array
    """(V,) natural."""
    deviance: Array
    """(V,) twice the fall of the log-likelihood from the optimum."""
    interval: Interval
    """95 %; nan at a side that the likelihood does not close."""
    monotone: bool = True
    """Whether the deviance rises on both sides of the optimum, as from a single minimum."""


def _resampled(cells: Observations) -> tuple[NDArray[np.intp], int]:
    """What the bootstrap draws: texts where there are enough, else texts at one length.

    Returns:
        (N,) the cluster of each cell, and the number of clusters.
    """
    if cells.texts[1] >= MIN_CLUSTERS:
        return cells.texts
    return cells.clusters


def no_bootstrap(cells: Observations, reason: Finding) -> Bootstrap:
    """A bootstrap without draws."""
    return Bootstrap(
        status=NOT_IDENTIFIED,
        finding=reason,
        draws=np.empty((0, len(NATURAL_NAMES))),
        failed=0,
        clusters=_resampled(cells)[1],
        intervals={},
    )


def bootstrap(
    cells: Observations,
    fit: LikelihoodFit,
    draws: int = 4000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bootstrap:
    """Refit to resampled texts (texts at one length where there are fewer than four).

    A draw whose unsaturated cells have fewer than three lengths is drawn again. The intervals are
    the fit +- t(G - 1) times the spread of the draws times sqrt(G / (G - 1)) for G clusters.

    Args:
        progress: called with draws done and all draws.
    """
    # Scoring cannot start at a bound, and fewer clusters than MIN_CLUSTERS cannot be resampled.
    cluster, count = _resampled(cells)
    if fit.status != OK:
        assert fit.finding is not None
        return no_bootstrap(cells, fit.finding)
    if count < MIN_CLUSTERS:
        return no_bootstrap(cells, finding("few_clusters", clusters=count, needed=MIN_CLUSTERS))

    rng = np.random.default_rng(seed)
    design = design_of(cells, fit.centre)
    converged = []
    at_once = max(1, CELLS_AT_ONCE // len(cells))
    # In batches, for the memory of the problems solved together.
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        weights_DG = _cluster_weights(rng, cells, size)
        theta, nll = minimise(
            np.tile(fit.theta, (size, 1)),
            design,
            fit.form,
            weights_BN=weights_DG[:, cluster],
            iterations=STEPS,
        )
        finite = np.isfinite(nll)
        converged.append(to_natural(theta[finite], fit.centre))
        if progress:
            progress(start + size, draws)

    sample = np.concatenate(converged)
    return Bootstrap(
        status=OK,
        finding=None,
        draws=sample,
        failed=draws - len(sample),
        clusters=count,
        intervals=_intervals(fit, sample, count),
    )


def _cluster_weights(
    rng: np.random.Generator,
    cells: Observations,
    size: int,
) -> Array:
    """How often each cluster is drawn, (size, G)."""
    cluster, count = _resampled(cells)
    observed = ~cells.saturated
    _, length = np.unique(cells.length, return_inverse=True)
    # (G, lengths) whether a cluster has an unsaturated cell at a length
    lengths = int(length.max()) + 1
    occupied = np.zeros((count, lengths))
    occupied[cluster[observed], length[observed]] = 1

    equal = np.full(count, 1 / count)
    weights = np.empty((0, count))
    while len(weights) < size:
        drawn = rng.multinomial(count, equal, size).astype(float)
        # Beta is not identifiable from fewer lengths.
        drawn_lengths = ((drawn @ occupied) > 0).sum(axis=1)
        enough = drawn_lengths >= MIN_DISTINCT
        weights = np.concatenate([weights, drawn[enough]])
    return weights[:size]


def _intervals(
    fit: LikelihoodFit,
    sample: Array,
    clusters: int,
) -> dict[str, Interval]:
    """95 % intervals from the draws, (D, P)."""
    draws = to_interval_scale(sample)
    # Student's t around the fit, as draws of few clusters vary too little.
    natural = to_natural(fit.theta[None], fit.centre)[0]
    middle = to_interval_scale(natural)
    deviation = draws.std(axis=0, ddof=1)
    half = normal_quantile() * few_cluster_factor(clusters) * deviation
    return intervals_of(middle - half, middle + half, fit.form.free)


def profiles(
    cells: Observations,
    fit: LikelihoodFit,
    names: tuple[str, ...] = PROFILED,
) -> dict[str, Profile]:
    """Profile likelihood of each named parameter that is free; empty unless the fit is OK."""
    if fit.status != OK:
        return {}
    design = design_of(cells, fit.centre)
    positions = {name: NATURAL_NAMES.index(name) for name in names}
    return {
        name: _profile(fit, design, position)
        for name, position in positions.items()
        if position in fit.form.free
    }


def _profile(fit: LikelihoodFit, design: Design, position: int) -> Profile:
    """The profile of the parameter at one position of theta."""
    optimum = float(fit.theta[position])
    error = float(np.sqrt(fit.covariance[position, position]))
    lower, upper = (bound[position] for bound in fit.form.bounds)

    # Equally spaced in standard errors.
    steps = error * np.linspace(-PROFILE_REACH, PROFILE_REACH, PROFILE_POINTS)
    values = np.unique(np.clip(optimum + steps, lower, upper))

    deviance = _outward(fit, design, position, values)

    low = _crossing(values, deviance, optimum, side=-1)
    high = _crossing(values, deviance, optimum, side=1)
    if position == LOG_K:
        values = np.exp(values)
        low = float(np.exp(low))
        high = float(np.exp(high))

    finite = np.isfinite(deviance)
    return Profile(
        name=NATURAL_NAMES[position],
        values=values[finite],
        deviance=deviance[finite],
        interval=(low, high),
        monotone=_rises(
            values[finite] if position != LOG_K else np.log(values[finite]),
            deviance[finite],
            optimum,
        ),
    )


def _outward(fit: LikelihoodFit, design: Design, position: int, values: Array) -> Array:
    """Deviance at each of (V,) values of one parameter, (V,).

    From the optimum outward, each point starts where its inner neighbour ended, and from where the
    information says that the other parameters follow: one start for all points sticks far out.
    """
    optimum = float(fit.theta[position])
    slope = fit.covariance[:, position] / fit.covariance[position, position]
    others = tuple(p for p in fit.form.free if p != position)
    deviance = np.full(len(values), np.nan)

    for side in (values[values < optimum][::-1], values[values >= optimum]):
        inner = fit.theta
        for value in side:
            starts = np.stack([inner, inner + (value - inner[position]) * slope, fit.theta])
            starts[:, position] = value
            theta, nll = minimise(starts, design, fit.form, free=others)
            best = int(np.argmin(nll))
            if np.isfinite(nll[best]):
                inner = theta[best]
            deviance[values == value] = max(0.0, 2 * (float(nll[best]) - fit.nll))
    return deviance


def _rises(values: Array, deviance: Array, optimum: float) -> bool:
    """Whether (V,) deviances rise with the distance from the optimum, up to rounding."""
    for side in (deviance[values < optimum][::-1], deviance[values >= optimum]):
        if (np.diff(side) < -MONOTONE_TOLERANCE).any():
            return False
    return True


def _crossing(
    values: Array,
    deviance: Array,
    optimum: float,
    *,
    side: int,
) -> float:
    """Where the root of the deviance crosses that of chi2(1) at 95 %; nan where it does not.

    Args:
        values, deviance: (V,) each.
        side: -1 below the optimum, 1 above.
    """
    # From the optimum outwards.
    on_side = ((values - optimum) * side >= 0) & np.isfinite(deviance)
    distance = np.abs(values[on_side] - optimum)
    order = np.argsort(distance)
    position = np.concatenate([[optimum], values[on_side][order]])
    # The root of the deviance is nearly linear in the parameter.
    root = np.sqrt(deviance[on_side][order])
    root = np.concatenate([[0.0], root])

    limit = np.sqrt(stats.chi2.ppf(CONFIDENCE, 1))
    above = np.flatnonzero(root >= limit)
    if not len(above):
        return math.nan
    k = int(above[0])
    around = slice(k - 1, k + 1)
    return float(np.interp(limit, root[around], position[around]))
