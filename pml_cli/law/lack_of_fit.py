"""Is the truth among the forms? Tests of what a chosen law leaves over.

Three F tests of the relative residuals. Where several texts were trained on one grid, a cell's mean
residual over the texts is compared with how much the texts disagree about it (pure error). To the
others is added what the law has not: curvature, as powers and products of log rank and log length;
and a bend of another kind, as powers of what the law has predicted (RESET: Ramsey 1969). Both have
an effect of its own for every text and length, so that a text that is harder at one length is no
evidence.

A fourth test is about the exponent of the length, which shows twice: in the level of the gain, and
in where it bends. A share of the gain that is missing from long texts, as of cells that had not
converged, lowers the level alone (a test of two estimates: Hausman 1978).
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

# p below which the form is said not to describe the cells.
REJECTED = 0.01
# p, of one side, below which long texts are said to miss a share of their gain.
SHORT = 0.05
# Degrees of freedom that must remain.
MIN_DEGREES = 5
# Singular values below this share of the largest are 0.
RANK_TOLERANCE = 1e-8


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What is no evidence against a law: levels of groups of cells, and slopes of texts.

    They are taken away group by group. As columns of a design they would be as many as there are
    texts, which takes minutes where there are a thousand.
    """

    group: NDArray[np.intp]
    """(N,) cells of one group share a level."""
    x: Array | None = None
    """(N,) along which every text has a slope of its own; None: no slopes."""
    text: NDArray[np.intp] | None = None
    """(N,) the text of each cell; each group lies in one. Needed with `x`."""

    def remove(self, columns: Array) -> tuple[Array, int]:
        """(N, K) columns without what the effects explain of them, and the rank of the effects."""
        rest = _less_means(columns, self.group)
        rank = len(np.unique(self.group))
        if self.x is None or self.text is None:
            return rest, rank

        x = _less_means(self.x[:, None], self.group)[:, 0]
        power = np.bincount(self.text, weights=x**2)
        # A text whose groups have one x each has no slope.
        sloped = power > RANK_TOLERANCE**2 * float(self.x @ self.x)
        products = _sums(columns * x[:, None], self.text)
        slopes = np.where(sloped[:, None], products / np.where(sloped, power, 1)[:, None], 0)
        return rest - slopes[self.text] * x[:, None], rank + int(sloped.sum())


def _less_means(columns: Array, group: NDArray[np.intp]) -> Array:
    """(N, K) columns less their mean over each group."""
    counts = np.maximum(np.bincount(group), 1)
    return np.asarray(columns - (_sums(columns, group) / counts[:, None])[group])


def _sums(columns: Array, group: NDArray[np.intp]) -> Array:
    """(N, K) columns summed over each of G groups, (G, K)."""
    sums = np.zeros((int(group.max(initial=-1)) + 1, columns.shape[1]))
    np.add.at(sums, group, columns)
    return sums


@dataclass(frozen=True, kw_only=True)
class LackOfFit:
    """p of the tests; nan where the cells do not carry one."""

    replicates: float
    """Of the mean over texts."""
    curvature: float
    """In log rank and log length."""
    bend: float
    """In what the law predicts."""
    pattern: float
    """Root mean square of what curvature and bend explain of the residuals, as a share of the gain.
    """

    shortfall: float
    """p that the longest texts miss nothing, of one side."""
    missing: float
    """What they miss against the shortest ones, as a share of their gain."""

    @property
    def p(self) -> float:
        """The smaller; nan without a test."""
        tested = [p for p in (self.replicates, self.curvature, self.bend) if math.isfinite(p)]
        return min(tested, default=math.nan)

    @property
    def rejected(self) -> bool:
        """Whether no form of pml describes the cells."""
        return self.p < REJECTED

    @property
    def long_texts_short(self) -> bool:
        """Whether long texts gain less than where they bend tells."""
        return self.shortfall < SHORT


def lack_of_fit(cells: Observations, fit: LikelihoodFit) -> LackOfFit:
    """The tests of the chosen law."""
    predicted = fit.predict(cells.rank, cells.length, cells.base)
    residual = cells.delta / predicted - 1
    parameters = len(fit.form.free) - 1

    observed = cells.measured
    known = _slopes(cells, fit)[observed]
    curves = _curves(cells, fit)[observed]
    bends = _bends(cells, fit)[observed]
    residual_there = residual[observed]

    text, _ = cells.texts
    cluster, _ = cells.clusters
    x = _standardised(design_of(cells, fit.centre).x)
    effects = Effects(group=cluster[observed], x=x[observed], text=text[observed])

    both = np.concatenate([known, curves, bends], axis=1)
    left, _ = _unexplained(known, residual_there, effects)
    less, _ = _unexplained(both, residual_there, effects)

    shortfall, missing = _shortfall(cells, fit, residual)
    return LackOfFit(
        replicates=_replicates(cells, residual, parameters),
        curvature=_added(known, curves, residual_there, effects),
        bend=_added(known, bends, residual_there, effects),
        pattern=math.sqrt(max(0.0, left - less) / max(1, int(observed.sum()))),
        shortfall=shortfall,
        missing=missing,
    )


def _shortfall(cells: Observations, fit: LikelihoodFit, residual: Array) -> tuple[float, float]:
    """p of one side that long texts miss no share of their gain, and that share; nan untested.

    One more column, log length, beside what the law can follow and a level of every text. The error
    of its coefficient is the wider of that of cells and that of texts at one length.

    Args:
        residual: (N,) relative.
    """
    measured = cells.measured
    text, texts = cells.texts
    cluster = cells.clusters[0][measured]
    clusters = len(np.unique(cluster))
    known = _slopes(cells, fit)[measured]
    effects = Effects(group=text[measured])
    log_length = np.log(cells.length[measured])
    column, rank = _left_over(known, log_length, effects)
    left, _ = _left_over(known, residual[measured], effects)
    own = float(column @ column)
    degrees = len(left) - rank - 1
    if min(degrees, clusters - texts - 1) < MIN_DEGREES or own <= RANK_TOLERANCE * len(left):
        return math.nan, math.nan

    tilt = float(column @ left) / own
    noise = left - tilt * column
    of_cells = float(noise @ noise) / degrees * own
    sums = np.bincount(cluster, weights=column * noise)
    of_clusters = float(sums @ sums) * clusters / (clusters - 1)
    error = math.sqrt(max(of_cells, of_clusters, 1e-300)) / own
    p = float(stats.t.cdf(tilt / error, clusters - texts - 1))
    return p, -tilt * float(np.ptp(log_length))


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
    count = int(complete.sum())
    if texts < 2 or count - parameters < MIN_DEGREES:
        return math.nan

    mean = sums[complete] / counts[complete]
    # How hard a text is in all, is not about the form.
    mean = mean - mean.mean(axis=0)
    of_points = mean.mean(axis=1)
    within = mean - of_points[:, None]

    degrees = count - parameters
    within_degrees = (count - 1) * (texts - 1)
    lack = texts * float((of_points**2).sum()) / degrees
    pure = float((within**2).sum()) / within_degrees
    return float(stats.f.sf(lack / max(pure, 1e-300), degrees, within_degrees))


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
    """Derivatives of log gain by the free parameters of the law, (N, F - 1)."""
    design = design_of(cells, fit.centre)
    wanted = tuple(p for p in fit.form.free if p != LOG_SPREAD)
    _, slopes = log_gain_slopes(
        fit.theta[None], design.x, design.y, design.base, link=fit.form.link, wanted=wanted
    )
    return np.asarray(slopes[0])


def _added(known: Array, columns: Array, residual: Array, effects: Effects) -> float:
    """p that further columns explain nothing of (N,) residuals, (N, K) known and (N, L) others."""
    left, rank = _unexplained(known, residual, effects)
    less, larger_rank = _unexplained(np.concatenate([known, columns], axis=1), residual, effects)
    added = larger_rank - rank
    degrees = len(residual) - larger_rank

    if added < 1 or degrees < MIN_DEGREES:
        return math.nan

    f = (left - less) / added / max(less / degrees, 1e-300)
    return float(stats.f.sf(f, added, degrees))


def _unexplained(columns: Array, values: Array, effects: Effects) -> tuple[float, int]:
    """Sum of squares that effects and (N, K) columns leave of (N,) values, and their rank."""
    residual, rank = _left_over(columns, values, effects)
    return float(residual @ residual), rank


def _left_over(columns: Array, values: Array, effects: Effects) -> tuple[Array, int]:
    """What effects and (N, K) columns leave of (N,) values, (N,), and their rank.

    Both sides are freed from the effects first; regressed on each other they then give the
    residuals of the regression on all (Frisch, Waugh and Lovell).
    """
    if not len(values):
        return values, 0
    # Of length 1, so that one tolerance tells what the effects have left of each.
    units = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    freed, effects_rank = effects.remove(np.column_stack([units, values]))

    left, singular, _ = np.linalg.svd(freed[:, :-1], full_matrices=False)
    basis = left[:, singular > RANK_TOLERANCE]
    residual = freed[:, -1] - basis @ (basis.T @ freed[:, -1])
    return residual, effects_rank + basis.shape[1]
