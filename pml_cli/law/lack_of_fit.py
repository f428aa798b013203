"""Is the truth among the forms? Tests of the residuals of a chosen law.

Three F tests of the relative residuals. Where several texts were trained on one grid, a cell's mean
residual over the texts is compared with how much the texts disagree about it (pure error). The
other two add columns that the law lacks: curvature, as powers and products of log rank and log
length; and a bend of another kind, as powers of what the law has predicted (RESET: Ramsey 1969).
Both have an effect for every text and length, so that a text that is harder at one length is no
evidence.

A fourth test is about the exponent of the length, which shows twice: in the level of the gain, and
in where it saturates. A share of the gain that is missing from long texts, as in cells that had not
converged, lowers the level alone (a test of two estimates: Hausman 1978).

Shapes: N cells, M of them measured, F parameters of the law's curve, K columns, G groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pml_cli.law.forms import log_gain_slopes
from pml_cli.law.mle import LikelihoodFit, design_of
from pml_cli.law.observations import Observations
from pml_cli.law.parameters import ALPHA, BETA, LOG_SPREAD
from pml_cli.stats import Array

# p below which the form is rejected.
REJECTED = 0.01
# One-sided p below which long texts are said to miss a share of their gain.
SHORT = 0.05
# Degrees of freedom that must remain.
MIN_DEGREES = 5
# Singular values below this share of the largest are 0.
RANK_TOLERANCE = 1e-8
# Stands in for a divisor of 0.
TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Nuisance effects: a level of each group of cells, and a slope of each text.

    They are removed group by group. As columns of a design they would be as many as there are
    texts, which takes minutes where there are a thousand.
    """

    group: NDArray[np.intp]
    """(N,) group of each cell; the cells of a group share a level."""
    x: Array | None = None
    """(N,) values along which every text has a slope of its own; None: no slopes."""
    text: NDArray[np.intp] | None = None
    """(N,) the text of each cell; each group lies in one. Needed with `x`."""

    def remove(self, columns: Array) -> tuple[Array, int]:
        """(N, K) columns without what the effects explain of them, and the rank of the effects."""
        centred = _less_means(columns, self.group)
        rank = len(np.unique(self.group))
        if self.x is None or self.text is None:
            return centred, rank

        # Least squares in each text: x' column / x' x. x has mean 0 in each group, so that the
        # levels of the columns do not count.
        x = _less_means(self.x[:, None], self.group)
        products = _sums(columns * x, self.text)
        squares = np.bincount(self.text, weights=x[:, 0] ** 2)
        # A text whose groups have one x each has no slope.
        sloped = squares > RANK_TOLERANCE**2 * float(self.x @ self.x)
        divisors = np.where(sloped, squares, 1)
        slopes = np.where(sloped[:, None], products / divisors[:, None], 0)
        return centred - slopes[self.text] * x, rank + int(sloped.sum())


def _less_means(columns: Array, group: NDArray[np.intp]) -> Array:
    """(N, K) columns less their mean over each group."""
    counts = np.maximum(np.bincount(group), 1)
    means = _sums(columns, group) / counts[:, None]
    return np.asarray(columns - means[group])


def _sums(columns: Array, group: NDArray[np.intp]) -> Array:
    """(N, K) columns summed over each of G groups, (G, K)."""
    groups = int(group.max(initial=-1)) + 1
    sums = np.zeros((groups, columns.shape[1]))
    np.add.at(sums, group, columns)
    return sums


@dataclass(frozen=True, kw_only=True)
class LackOfFit:
    """p of the tests; nan where the cells do not carry one."""

    replicates: float
    """p that the mean over texts fits the law: F test against the disagreement of texts."""
    curvature: float
    """p that there is no further curvature in log rank and log length."""
    bend: float
    """p that there is no further bend in what the law predicts (RESET)."""
    pattern: float
    """Root mean square of what curvature and bend explain, as a share of the gain."""

    shortfall: float
    """One-sided p that the longest texts miss nothing of their gain."""
    missing: float
    """Share of the gain that the longest texts miss, compared with the shortest ones."""

    @property
    def p(self) -> float:
        """Smallest p of the three F tests; nan without a test."""
        tested = [p for p in (self.replicates, self.curvature, self.bend) if math.isfinite(p)]
        return min(tested, default=math.nan)

    @property
    def rejected(self) -> bool:
        """Whether no form of pml fits the cells."""
        return self.p < REJECTED

    @property
    def long_texts_short(self) -> bool:
        """Whether long texts gain less than any form predicts."""
        return self.shortfall < SHORT


def lack_of_fit(cells: Observations, fit: LikelihoodFit) -> LackOfFit:
    """The tests of the chosen law."""
    predicted = fit.predict(cells.rank, cells.length, cells.base)
    residual = cells.delta / predicted - 1
    # The spread of the residuals is free too, but no parameter of the curve.
    parameters = len(fit.form.free) - 1

    measured = cells.measured
    jacobian_MF = _slopes(cells, fit)[measured]
    curvature_M5 = _curves(cells, fit)[measured]
    bend_M4 = _bends(cells, fit)[measured]
    residual_M = residual[measured]

    text, _ = cells.texts
    cluster, _ = cells.clusters
    x = _standardised(design_of(cells, fit.centre).x)
    effects = Effects(group=cluster[measured], x=x[measured], text=text[measured])

    extended = np.concatenate([jacobian_MF, curvature_M5, bend_M4], axis=1)
    rss_law, _ = _residual_sum(jacobian_MF, residual_M, effects)
    rss_extended, _ = _residual_sum(extended, residual_M, effects)
    explained = max(0.0, rss_law - rss_extended)

    shortfall, missing = _shortfall(cells, fit, residual)
    return LackOfFit(
        replicates=_replicates(cells, residual, parameters),
        curvature=_added(jacobian_MF, curvature_M5, residual_M, effects),
        bend=_added(jacobian_MF, bend_M4, residual_M, effects),
        pattern=math.sqrt(explained / max(1, int(measured.sum()))),
        shortfall=shortfall,
        missing=missing,
    )


def _shortfall(cells: Observations, fit: LikelihoodFit, residual: Array) -> tuple[float, float]:
    """One-sided p that long texts miss no share of their gain, and that share; nan untested.

    A regression of the residuals on log length, beside the Jacobian of the law and a level of every
    text. The error of its slope is the larger of that of independent cells and that clustered by
    text and length.

    Args:
        residual: (N,) relative.
    """
    measured = cells.measured
    text, texts = cells.texts
    all_clusters, _ = cells.clusters
    cluster = all_clusters[measured]
    clusters = len(np.unique(cluster))
    log_length = np.log(cells.length[measured])

    # Both sides without what the law and the texts explain.
    jacobian_MF = _slopes(cells, fit)[measured]
    effects = Effects(group=text[measured])
    regressor_M, rank = _partial_out(jacobian_MF, log_length, effects)
    residual_M, _ = _partial_out(jacobian_MF, residual[measured], effects)

    square = float(regressor_M @ regressor_M)
    is_explained = square <= RANK_TOLERANCE * len(residual_M)
    degrees = len(residual_M) - rank - 1
    cluster_degrees = clusters - texts - 1
    if min(degrees, cluster_degrees) < MIN_DEGREES or is_explained:
        return math.nan, math.nan

    slope = float(regressor_M @ residual_M) / square
    noise_M = residual_M - slope * regressor_M
    # The slope is off by regressor' noise / square. Two variances of that numerator:
    cell_variance = float(noise_M @ noise_M) / degrees * square
    scores = np.bincount(cluster, weights=regressor_M * noise_M)
    cluster_variance = float(scores @ scores) * clusters / (clusters - 1)
    error = math.sqrt(max(cell_variance, cluster_variance, TINY)) / square

    p = float(stats.t.cdf(slope / error, cluster_degrees))
    missing = -slope * float(np.ptp(log_length))
    return p, missing


def _replicates(cells: Observations, residual: Array, parameters: int) -> float:
    """p that points of the grid deviate in all texts alike, no more than texts disagree.

    Args:
        residual: (N,) relative.
        parameters: of the law.
    """
    text, texts = cells.texts
    pairs = np.stack([cells.rank, cells.length])
    _, point = np.unique(pairs, axis=1, return_inverse=True)
    point = point.ravel()
    points = int(point.max()) + 1

    # Mean residual of each point and text; points with a censored or missing cell do not count.
    sums = np.zeros((points, texts))
    counts = np.zeros((points, texts))
    np.add.at(sums, (point, text), residual)
    np.add.at(counts, (point, text), 1)
    censored = np.bincount(point, weights=~cells.measured, minlength=points) > 0
    complete = (counts > 0).all(axis=1) & ~censored
    complete_points = int(complete.sum())

    lack_degrees = complete_points - parameters
    pure_degrees = (complete_points - 1) * (texts - 1)
    if texts < 2 or lack_degrees < MIN_DEGREES:
        return math.nan

    mean = sums[complete] / counts[complete]
    # How hard a text is in all, is not about the form.
    mean = mean - mean.mean(axis=0)
    over_texts = mean.mean(axis=1)
    disagreement = mean - over_texts[:, None]

    # Mean squares of the lack of fit and of the pure error.
    lack = texts * float((over_texts**2).sum()) / lack_degrees
    pure = float((disagreement**2).sum()) / pure_degrees
    return float(stats.f.sf(lack / max(pure, TINY), lack_degrees, pure_degrees))


def _curves(cells: Observations, fit: LikelihoodFit) -> Array:
    """Powers and products of log rank and log length, (N, 5)."""
    design = design_of(cells, fit.centre)
    x = _standardised(design.x)
    y = _standardised(design.y)
    return np.stack([x**2, x**3, x * y, x * x * y, x * y * y], axis=1)


def _bends(cells: Observations, fit: LikelihoodFit) -> Array:
    """Powers of the logarithm of the power law, which the link bends, (N, 4)."""
    design = design_of(cells, fit.centre)
    load = _standardised(fit.theta[ALPHA] * design.x - fit.theta[BETA] * design.y)
    return np.stack([load**power for power in (2, 3, 4, 5)], axis=1)


def _standardised(values: Array) -> Array:
    """(N,) of mean 0 and standard deviation 1."""
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-12))


def _slopes(cells: Observations, fit: LikelihoodFit) -> Array:
    """Derivatives of log gain by the free parameters of the law, (N, F)."""
    design = design_of(cells, fit.centre)
    wanted = tuple(p for p in fit.form.free if p != LOG_SPREAD)
    _, slopes = log_gain_slopes(
        fit.theta[None], design.x, design.y, design.base, link=fit.form.link, wanted=wanted
    )
    return np.asarray(slopes[0])


def _added(jacobian: Array, columns: Array, residual: Array, effects: Effects) -> float:
    """p that further columns explain nothing of the residuals: an F test.

    Args:
        jacobian: of the law, (M, F).
        columns: the further ones, (M, K).
        residual: (M,) relative.
        effects: nuisance effects of both models.
    """
    rss_law, rank = _residual_sum(jacobian, residual, effects)
    extended = np.concatenate([jacobian, columns], axis=1)
    rss_extended, larger_rank = _residual_sum(extended, residual, effects)
    added = larger_rank - rank
    degrees = len(residual) - larger_rank

    if added < 1 or degrees < MIN_DEGREES:
        return math.nan

    explained = (rss_law - rss_extended) / added
    noise = rss_extended / degrees
    return float(stats.f.sf(explained / max(noise, TINY), added, degrees))


def _residual_sum(columns: Array, values: Array, effects: Effects) -> tuple[float, int]:
    """Residual sum of squares of (N,) values on effects and (N, K) columns, and their rank."""
    residual, rank = _partial_out(columns, values, effects)
    return float(residual @ residual), rank


def _partial_out(columns: Array, values: Array, effects: Effects) -> tuple[Array, int]:
    """Residuals (N,) of values regressed on effects and (N, K) columns, and their rank.

    The effects are removed from both sides first; regressed on each other these then give the
    residuals of the regression on all (Frisch, Waugh and Lovell).
    """
    if not len(values):
        return values, 0
    # Columns of length 1, so that one tolerance tells which of them the effects explain whole.
    units = columns / np.maximum(np.linalg.norm(columns, axis=0), TINY)
    without_effects, effects_rank = effects.remove(np.column_stack([units, values]))

    vectors, singular, _ = np.linalg.svd(without_effects[:, :-1], full_matrices=False)
    basis = vectors[:, singular > RANK_TOLERANCE]
    target = without_effects[:, -1]
    residual = target - basis @ (basis.T @ target)
    return residual, effects_rank + basis.shape[1]
