"""Maximum likelihood on all cells, saturated ones as lower limits of the gain.

The paper's own estimator is `power_law.fit_paper`, a robust one for the same law
`robust.fit_robust`.

For given exponents the rest of a law is easy: every node of a grid of exponents is first solved
for the rest alone (variable projection), and the best nodes are polished in all parameters.

Shapes: B problems, N cells, P = 8 parameters (parameters.THETA_NAMES), F free ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pml_cli.law.findings import BOUND_HIT, NOT_IDENTIFIED, OK, Finding, finding
from pml_cli.law.forms import Form, log_gain, log_gain_slopes, relative_spread
from pml_cli.law.likelihood import Design, derivatives, minimise, scores
from pml_cli.law.observations import Observations
from pml_cli.law.parameters import (
    ALPHA,
    BETA,
    FLOOR,
    LEVEL,
    LOG_K,
    LOG_SPREAD,
    NATURAL_NAMES,
    THETA_NAMES,
    B,
    C,
    intervals_of,
    to_interval_scale,
    to_natural,
    uncentring,
)
from pml_cli.law.power_law import at_exponent_bound, identifiability
from pml_cli.stats import CONFIDENCE, Array, percent_error, r_squared

# exponents at the nodes of the grid
EXPONENT_GRID = np.geomspace(0.05, 2.5, 8)
# nodes that are polished in all parameters
POLISHED_NODES = 5
# nats per token at which the search for a floor starts
FLOOR_START = 0.2
# share of the mean base loss at which the search for a level starts
LEVEL_START = 0.8
# a parameter with a scaled information below this does not act on the likelihood
LEAST_INFORMATION = 1e-9


@dataclass(frozen=True, kw_only=True)
class LikelihoodFit:
    """A law fitted to all cells (a `fit_result.FitResult`), or the finding why there is none.

    The covariance is the inverse of the information: it takes every cell as an independent draw;
    `bootstrap.bootstrap` does not. Parameters that are not free have no variance; all parameters
    are nan when the status is NOT_IDENTIFIED.
    """

    form: Form
    status: str
    """OK, BOUND_HIT or NOT_IDENTIFIED."""
    finding: Finding | None
    """Why the status is not OK; a note where it is."""
    theta: Array
    """(P,) in the order of parameters.THETA_NAMES."""
    centre: tuple[float, float]
    """Mean log rank and log length, where c is centred."""
    covariance: Array
    """(P, P) of theta, from the information; nan unless OK."""
    clustered: Array
    """(P, P) of theta, from the scores of the clusters.

    It holds where the residuals of cells that share text and length are correlated.
    """
    clusters: int
    nll: float
    """Negative log-likelihood, a sum over the cells."""
    n: int
    """Cells."""
    n_saturated: int
    """Of them censored."""
    r2: float
    """Over the unsaturated cells, as for the paper's fit."""
    mape: float
    """Per cent of the measured gain, over the unsaturated cells."""
    r2_all: float
    """Over every cell."""
    mape_all: float
    fingerprint: str = field(repr=False)
    """Of the cells."""

    @property
    def name(self) -> str:
        return self.form.name

    @property
    def uses_saturated(self) -> bool:
        return True

    @property
    def n_used(self) -> int:
        """Every cell takes part."""
        return self.n

    @property
    def parameters(self) -> dict[str, float]:
        """C, alpha, beta, those of b, k, floor and level that the form has, and the spread."""
        values = to_natural(self.theta[None], self.centre)[0]
        return {NATURAL_NAMES[p]: float(values[p]) for p in sorted({*self.form.free, BETA})}

    @property
    def aicc(self) -> float:
        """Akaike's criterion, small-sample version; nan without a fit or with too few cells."""
        p = len(self.form.free)
        if self.n <= p + 1:
            return math.nan
        return 2 * self.nll + 2 * p + 2 * p * (p + 1) / (self.n - p - 1)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals from the covariance: too narrow where cells share texts."""
        matrix = uncentring(self.centre)
        uncentred = matrix @ self.covariance @ matrix.T
        half = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(np.diag(uncentred))
        middle = to_interval_scale(to_natural(self.theta[None], self.centre))[0]
        return intervals_of(middle - half, middle + half, self.form.free)

    def predict(self, rank: ArrayLike, length: ArrayLike, base: ArrayLike) -> Array:
        """Gain in nats per token; never above `base` unless the form has no ceiling.

        Args:
            rank, length, base: shapes that broadcast to that of the result.
        """
        columns = (np.asarray(values, float) for values in (rank, length, base))
        ranks, lengths, bases = np.broadcast_arrays(*columns)
        x = np.log(ranks.ravel()) - self.centre[0]
        y = np.log(lengths.ravel()) - self.centre[1]
        log_gains = log_gain(self.theta[None], x, y, bases.ravel(), self.form.link)
        return np.asarray(np.exp(log_gains)[0].reshape(ranks.shape))

    def band(self, rank: ArrayLike, length: ArrayLike, base: ArrayLike) -> tuple[Array, Array]:
        """95 % prediction interval of new cells: their spread and the error of the parameters.

        That error is the larger of the naive and the clustered one, with Student's t of as many
        degrees of freedom as there are clusters, less one.

        Args:
            rank, length, base: shapes that broadcast to N values.

        Returns:
            Lower and upper end, (N,) each, nats per token.
        """
        ranks, lengths, bases = (
            np.asarray(values, float).ravel() for values in np.broadcast_arrays(rank, length, base)
        )
        x = np.log(ranks) - self.centre[0]
        y = np.log(lengths) - self.centre[1]
        of_law = tuple(p for p in self.form.free if p != LOG_SPREAD)
        log_gains, slopes = log_gain_slopes(
            self.theta[None], x, y, bases, link=self.form.link, wanted=of_law
        )
        naive = _variance(slopes[0], self.covariance[np.ix_(of_law, of_law)])
        clustered = _variance(slopes[0], self.clustered[np.ix_(of_law, of_law)])

        cell_degrees = max(1, self.n - self.n_saturated - len(self.form.free))
        law_degrees = max(1, self.clusters - 1)
        cell_t = float(stats.t.ppf((1 + CONFIDENCE) / 2, cell_degrees))
        law_t = float(stats.t.ppf((1 + CONFIDENCE) / 2, law_degrees))

        spread = relative_spread(self.theta[None], x, y, bases, self.form.link)[0]
        cell_half = cell_t * np.exp(self.theta[LOG_SPREAD]) * spread
        half = np.sqrt(cell_half**2 + law_t**2 * np.maximum(naive, clustered))
        middle = np.exp(log_gains[0])
        low = middle * np.maximum(0, 1 - half)
        high = middle * (1 + half)
        return low, (np.minimum(high, bases) if self.form.kind.has_ceiling else high)


def fit_saturating(cells: Observations, form: Form) -> LikelihoodFit:
    """Censored maximum likelihood on all cells.

    A saturated cell counts as "at least this much was gained". A link whose k runs to its upper
    bound becomes its limit (Hill becomes hard): that form is returned, with a note.
    """
    centre = (0.0, 0.0)
    if len(cells):
        centre = (float(np.log(cells.rank).mean()), float(np.log(cells.length).mean()))
    problem = _identifiability(cells, form)
    if problem:
        return _unidentified(cells, form, centre, problem)

    design = design_of(cells, centre)
    theta, nll = minimise(_starts(design, form), design, form)
    best = int(np.argmin(nll))
    if not math.isfinite(nll[best]):
        return _unidentified(cells, form, centre, finding("no_finite_likelihood"))

    limit = form.kind.limit
    if limit is not None and theta[best][LOG_K] >= form.bounds[1][LOG_K] - 1e-6:
        fit = fit_saturating(cells, replace(form, link=limit))
        note = finding("k_at_upper_bound", link=form.link, limit=limit)
        return replace(fit, finding=fit.finding or note)
    return _result(cells, form, design, centre=centre, theta=theta[best], nll=float(nll[best]))


def design_of(cells: Observations, centre: tuple[float, float]) -> Design:
    """The cells as the likelihood sees them, their logs centred at `centre`."""
    return Design(
        x=np.log(cells.rank) - centre[0],
        y=np.log(cells.length) - centre[1],
        base=cells.base,
        delta=cells.delta,
        limit=cells.limit,
        censored=cells.saturated,
        sd=cells.sd,
    )


def _variance(slopes: Array, covariance: Array) -> Array:
    """Variance of log gain, (N,), from its slopes (N, F) and the parameters' covariance (F, F)."""
    return np.asarray(np.maximum(0, np.einsum("nf,fg,ng->n", slopes, covariance, slopes)))


def _identifiability(cells: Observations, form: Form) -> Finding | None:
    """Why these cells cannot carry this form; None when they can."""
    observed = ~cells.saturated
    delta = cells.delta[observed]
    problem = identifiability(cells.rank[observed], cells.length[observed], delta)
    if problem:
        return problem
    if (delta <= 0).any():
        return finding("gain_not_positive")
    parameters = len(form.free)
    if len(delta) < parameters + 1:
        return finding("few_cells", cells=len(delta), parameters=parameters, needed=parameters + 1)
    return None


def _starts(design: Design, form: Form) -> Array:
    """The best nodes of the grid of exponents and k, (S, P).

    Each is solved for the scale, the offset, the level and the spread alone.
    """
    betas: Sequence[float] = EXPONENT_GRID.tolist() if form.beta is None else [form.beta]
    nodes = np.array(list(itertools.product(EXPONENT_GRID, betas, form.kind.k_starts)))
    observed = ~design.censored
    theta = np.zeros((len(nodes), len(THETA_NAMES)))
    theta[:, ALPHA] = nodes[:, 0]
    theta[:, BETA] = nodes[:, 1]
    theta[:, LOG_K] = np.log(nodes[:, 2])
    theta[:, FLOOR] = FLOOR_START if form.floor else 0.0

    inner = design.delta[observed]
    if form.level:
        # As if the link were exp.
        start = LEVEL_START * float(design.base.mean())
        theta[:, LEVEL] = start
        final = (design.base - design.delta)[observed]
        inner = start * np.log(np.maximum(start / final, 1.05))

    by_rank = nodes[:, :1] * design.x[observed]
    by_length = nodes[:, 1:2] * design.y[observed]
    log_scale = np.log(inner) - by_rank + by_length
    theta[:, C] = np.median(log_scale, axis=1)
    theta[:, LOG_SPREAD] = np.log(np.maximum(log_scale.std(axis=1), 1e-3))

    solved = tuple(p for p in form.free if p in (C, B, LOG_SPREAD, LEVEL))
    theta, nll = minimise(theta, design, form, free=solved, iterations=8)
    return theta[np.argsort(nll)[:POLISHED_NODES]]


def _unidentified(
    cells: Observations, form: Form, centre: tuple[float, float], reason: Finding
) -> LikelihoodFit:
    """A result without numbers."""
    square = np.full((len(THETA_NAMES), len(THETA_NAMES)), math.nan)
    return LikelihoodFit(
        form=form,
        status=NOT_IDENTIFIED,
        finding=reason,
        theta=np.full(len(THETA_NAMES), math.nan),
        centre=centre,
        covariance=square,
        clustered=square,
        clusters=cells.clusters[1],
        nll=math.nan,
        n=len(cells),
        n_saturated=int(cells.saturated.sum()),
        r2=math.nan,
        mape=math.nan,
        r2_all=math.nan,
        mape_all=math.nan,
        fingerprint=cells.fingerprint,
    )


def _result(
    cells: Observations,
    form: Form,
    design: Design,
    *,
    centre: tuple[float, float],
    theta: Array,
    nll: float,
) -> LikelihoodFit:
    """The fit at its optimum, with covariances unless a parameter stopped at a bound."""
    stopped = at_exponent_bound(theta[ALPHA], theta[BETA])
    stopped = stopped or _at_other_bound(theta, form, float(cells.base.max()))
    naive = np.full((len(THETA_NAMES), len(THETA_NAMES)), math.nan)
    clustered = naive
    if not stopped:
        silent = _uninformed(form, design, theta)
        if silent:
            return _unidentified(cells, form, centre, finding("no_information", parameter=silent))
        naive, clustered = _covariances(cells, form, design, theta)

    log_gains = log_gain(theta[None], design.x, design.y, design.base, form.link)
    predicted = np.exp(log_gains)[0]
    observed = ~cells.saturated
    return LikelihoodFit(
        form=form,
        status=BOUND_HIT if stopped else OK,
        finding=stopped,
        theta=theta,
        centre=centre,
        covariance=naive,
        clustered=clustered,
        clusters=cells.clusters[1],
        nll=nll,
        n=len(cells),
        n_saturated=int(cells.saturated.sum()),
        r2=r_squared(cells.delta[observed], predicted[observed]),
        mape=percent_error(cells.delta[observed], predicted[observed]),
        r2_all=r_squared(cells.delta, predicted),
        mape_all=percent_error(cells.delta, predicted),
        fingerprint=cells.fingerprint,
    )


def _uninformed(form: Form, design: Design, theta: Array) -> str | None:
    """The parameter that the likelihood does not depend on, by its natural name."""
    free = np.array(form.free)
    _, information = derivatives(theta[None], design, form, np.ones((1, 1)), free)
    scale = np.sqrt(np.diag(information[0]))
    if (scale > LEAST_INFORMATION).all():
        return None
    return NATURAL_NAMES[free[int(np.argmin(scale))]]


def _covariances(
    cells: Observations, form: Form, design: Design, theta: Array
) -> tuple[Array, Array]:
    """Covariances of theta, (P, P) each: from the information, and the clustered sandwich.

    The sandwich: Liang and Zeger (1986), with G / (G - 1) for G clusters.
    """
    free = np.array(form.free)
    _, information = derivatives(theta[None], design, form, np.ones((1, 1)), free)
    scale = np.sqrt(np.diag(information[0]))
    inverse = np.linalg.pinv(information[0] / np.outer(scale, scale), hermitian=True)

    cluster, count = cells.clusters
    cluster_scores = np.zeros((count, len(free)))
    np.add.at(cluster_scores, cluster, scores(theta, design, form, free))
    scaled = cluster_scores / scale
    sandwich = inverse @ (scaled.T @ scaled) @ inverse

    naive = np.zeros((len(THETA_NAMES), len(THETA_NAMES)))
    clustered = np.zeros_like(naive)
    block = np.ix_(free, free)
    naive[block] = inverse / np.outer(scale, scale)
    clustered[block] = sandwich / np.outer(scale, scale) * count / max(1, count - 1)
    return naive, clustered


def _at_other_bound(theta: Array, form: Form, largest_base: float) -> Finding | None:
    """Which of k, floor and level stopped at a bound, or lies where it has no meaning.

    Args:
        largest_base: the largest base loss of the cells, nats per token.
    """
    if form.kind.has_k and theta[LOG_K] <= form.bounds[0][LOG_K] + 1e-6:
        return finding("k_at_lower_bound", link=form.link)
    if form.floor and theta[FLOOR] <= 1e-9:
        return finding("floor_at_zero")
    if form.level and theta[LEVEL] <= 1e-6:
        return finding("level_at_zero")
    if form.level and theta[LEVEL] > largest_base:
        return finding("level_above_base_loss", level=float(theta[LEVEL]))
    return None
