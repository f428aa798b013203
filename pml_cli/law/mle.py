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
from numpy.typing import ArrayLike, NDArray

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
    Centre,
    Interval,
    intervals_of,
    to_interval_scale,
    to_natural,
    uncentring,
)
from pml_cli.law.power_law import at_exponent_bound, identifiability
from pml_cli.stats import Array, normal_quantile, percent_error, r_squared, t_quantile

# Values of alpha and of beta at the nodes of the grid.
EXPONENT_GRID = np.geomspace(0.05, 2.5, 8)

# Nodes from which all parameters are fitted.
POLISHED_NODES = 5

# The search for a floor starts at this loss, nats per token.
FLOOR_START = 0.2

# The search for a level starts at this share of the mean base loss.
LEVEL_START = 0.8

# A parameter nearer to its bound than this is at the bound.
BOUND_TOLERANCE = 1e-6

# The likelihood does not depend on a parameter whose scaled information is below this.
LEAST_INFORMATION = 1e-9


@dataclass(frozen=True, kw_only=True)
class LikelihoodFit:
    """A law fitted to all cells (a `fit_result.FitResult`), or the finding why there is none.

    The covariance is the inverse of the information: it takes every cell as an independent draw;
    `bootstrap.bootstrap` does not. Parameters that are not free have no variance; all parameters
    are nan when the status is NOT_IDENTIFIED.
    """

    form: Form
    """Which law."""
    status: str
    """OK, BOUND_HIT or NOT_IDENTIFIED."""
    finding: Finding | None
    """Why the status is not OK; a note where it is."""
    theta: Array
    """(P,) in the order of parameters.THETA_NAMES."""
    centre: Centre
    """Mean log rank and log length, where c is centred."""
    covariance: Array
    """(P, P) of theta, from the information; nan unless OK."""
    clustered: Array
    """(P, P) of theta, from the scores of the clusters.

    It holds where the residuals of cells that share text and length are correlated.
    """
    clusters: int
    """Number of clusters of one text and length."""
    by_text: Array
    """(P, P) of theta, from the scores of the texts; nan for one text."""
    texts: int
    by_cell: Array
    """(P, P) of theta, from the scores of the cells, whose spreads may differ."""
    inflation: float
    """How far the clusters' scores vary more than those of independent cells; 1 or more.

    The mean over the free parameters of the clustered over the naive variance, by which Wedderburn
    (1974) divides a log-likelihood of dependent cells.
    """
    nll: float
    """Negative log-likelihood, a sum over the cells."""
    n: int
    """Number of cells in the fit."""
    n_saturated: int
    """Number of saturated cells, whose gains are right-censored."""
    r2: float
    """R2 over the unsaturated cells, as for the paper's fit."""
    mape: float
    """MAPE over the unsaturated cells, per cent of the measured gain."""
    r2_all: float
    """R2 over all cells."""
    mape_all: float
    """MAPE over all cells, per cent; the gain of a saturated cell is a lower limit."""
    fingerprint: str = field(repr=False)
    """Hash of the cells; AICc of fits compares only where it is equal."""

    @property
    def name(self) -> str:
        """Name of the form: hill + b."""
        return self.form.name

    @property
    def uses_saturated(self) -> bool:
        """True: saturated cells enter as lower limits of their gain."""
        return True

    @property
    def n_used(self) -> int:
        """Every cell takes part."""
        return self.n

    @property
    def parameters(self) -> dict[str, float]:
        """C, alpha, beta, those of b, k, floor and level that the form has, and the spread."""
        values = to_natural(self.theta[None], self.centre)[0]
        # beta is reported where the form fixes it, too
        positions = sorted({*self.form.free, BETA})
        return {NATURAL_NAMES[p]: float(values[p]) for p in positions}

    @property
    def aicc(self) -> float:
        """Akaike's criterion, small-sample version; nan without a fit or with too few cells."""
        p = len(self.form.free)
        if self.n <= p + 1:
            return math.nan
        correction = 2 * p * (p + 1) / (self.n - p - 1)
        return 2 * self.nll + 2 * p + correction

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals from the covariance: too narrow where cells share texts."""
        matrix = uncentring(self.centre)
        covariance = matrix @ self.covariance @ matrix.T
        half = normal_quantile() * np.sqrt(np.diag(covariance))

        natural = to_natural(self.theta[None], self.centre)[0]
        middle = to_interval_scale(natural)
        return intervals_of(middle - half, middle + half, self.form.free)

    def half_width(self, position: int) -> float:
        """Half of the 95 % interval of one parameter of theta, from sandwich covariances.

        By Student's t with one degree less than there are texts, whose lengths are prefixes of one
        sequence. Of a single text, whose cells may vary less than its lengths do by chance, the
        wider of the intervals of its lengths and of its cells.
        """
        if self.texts > 1:
            return t_quantile(self.texts - 1) * _error(self.by_text, position)

        degrees = max(1, self.n - len(self.form.free))
        of_lengths = t_quantile(max(1, self.clusters - 1)) * _error(self.clustered, position)
        of_cells = t_quantile(degrees) * _error(self.by_cell, position)
        return max(of_lengths, of_cells)

    def predict(self, rank: ArrayLike, length: ArrayLike, base: ArrayLike) -> Array:
        """Gain in nats per token; never above `base` unless the form has no ceiling.

        Args:
            rank, length, base: shapes that broadcast to that of the result, (...).
        """
        x, y, bases, shape = self._centred(rank, length, base)
        log_gains = log_gain(self.theta[None], x, y, bases, self.form.link)
        gains: Array = np.exp(log_gains)[0].reshape(shape)
        return gains

    def band(
        self,
        rank: ArrayLike,
        length: ArrayLike,
        base: ArrayLike,
    ) -> tuple[Array, Array]:
        """95 % prediction interval of new cells: their spread and the error of the parameters.

        That error is the larger of the naive one and that of the texts, with Student's t of one
        degree less than there are texts, as in `half_width`: a new cell may be of a new text. Of a
        single text it is the larger of the naive one and that of its lengths, with as many degrees
        as there are lengths, less one.

        Args:
            rank, length, base: shapes that broadcast to N values.

        Returns:
            Lower and upper end, (N,) each, nats per token.
        """
        x, y, bases, _ = self._centred(rank, length, base)
        link = self.form.link
        theta = self.theta[None]
        of_law = tuple(p for p in self.form.free if p != LOG_SPREAD)
        log_gains, slopes = log_gain_slopes(theta, x, y, bases, link=link, wanted=of_law)

        # Error of the law.
        block = np.ix_(of_law, of_law)
        observed = self.n - self.n_saturated
        cell_t = t_quantile(max(1, observed - len(self.form.free)))
        naive = _variance(slopes[0], self.covariance[block])
        if self.texts > 1:
            of_texts = _variance(slopes[0], self.by_text[block])
            text_t = t_quantile(self.texts - 1)
            law_variance = np.maximum(cell_t**2 * naive, text_t**2 * of_texts)
        else:
            of_lengths = _variance(slopes[0], self.clustered[block])
            length_t = t_quantile(max(1, self.clusters - 1))
            law_variance = length_t**2 * np.maximum(naive, of_lengths)

        # Spread of a cell around the law.
        spread = relative_spread(theta, x, y, bases, link)[0]
        cell_half = cell_t * np.exp(self.theta[LOG_SPREAD]) * spread

        # Both are relative to the gain.
        half = np.sqrt(cell_half**2 + law_variance)
        middle = np.exp(log_gains[0])
        low = middle * np.maximum(0, 1 - half)
        high = middle * (1 + half)
        if self.form.kind.has_ceiling:
            high = np.minimum(high, bases)
        return low, high

    def _centred(
        self,
        rank: ArrayLike,
        length: ArrayLike,
        base: ArrayLike,
    ) -> tuple[Array, Array, Array, tuple[int, ...]]:
        """Centred log rank, centred log length and base loss, (N,) each, and their shape."""
        columns = (np.asarray(values, float) for values in (rank, length, base))
        ranks, lengths, bases = np.broadcast_arrays(*columns)
        x = np.log(ranks.ravel()) - self.centre[0]
        y = np.log(lengths.ravel()) - self.centre[1]
        return x, y, bases.ravel(), ranks.shape


def fit_saturating(cells: Observations, form: Form) -> LikelihoodFit:
    """Censored maximum likelihood on all cells.

    A saturated cell counts as "at least this much was gained". A link whose k runs to its upper
    bound becomes its limit (Hill becomes hard): that form is returned, with a note.
    """
    centre = cells.log_centre
    problem = _identifiability(cells, form)
    if problem:
        return _unidentified(cells, form, centre, problem)

    design = design_of(cells, centre)
    theta, nll = minimise(_starts(design, form), design, form)
    best = int(np.argmin(nll))
    # Every start may lie where there is no law.
    if not math.isfinite(nll[best]):
        return _unidentified(cells, form, centre, finding("no_finite_likelihood"))

    # At its upper bound of k the link is another one.
    limit = form.kind.limit
    k_bound = form.bounds[1][LOG_K]
    if limit is not None and theta[best][LOG_K] >= k_bound - BOUND_TOLERANCE:
        fit = fit_saturating(cells, replace(form, link=limit))
        note = finding("k_at_upper_bound", link=form.link, limit=limit)
        return replace(fit, finding=fit.finding or note)
    return _result(
        cells,
        form,
        design,
        centre=centre,
        theta=theta[best],
        nll=float(nll[best]),
    )


def design_of(cells: Observations, centre: Centre) -> Design:
    """The cells as the likelihood sees them, their logs centred at `centre`."""
    return Design(
        x=np.log(cells.rank) - centre[0],
        y=np.log(cells.length) - centre[1],
        base=cells.base,
        delta=cells.delta,
        limit=cells.limit,
        upper_limit=cells.upper_limit,
        censored=cells.saturated | cells.bracketed,
        sd=cells.sd,
    )


def _error(covariance: Array, position: int) -> float:
    """Standard error of one parameter of theta."""
    return math.sqrt(max(0.0, float(covariance[position, position])))


def _variance(slopes: Array, covariance: Array) -> Array:
    """Variance of log gain, (N,), from its slopes (N, F) and the parameters' covariance (F, F)."""
    variance: Array = np.einsum("nf,fg,ng->n", slopes, covariance, slopes)
    # Rounding makes a tiny variance negative.
    return np.maximum(0, variance)


def _identifiability(cells: Observations, form: Form) -> Finding | None:
    """Why these cells cannot carry this form; None when they can."""
    observed = cells.take(~cells.saturated)
    problem = identifiability(observed)
    if problem:
        return problem
    if (observed.delta <= 0).any():
        return finding("gain_not_positive")

    # One degree of freedom must remain.
    parameters = len(form.free)
    if len(observed) < parameters + 1:
        return finding(
            "few_cells",
            cells=len(observed),
            parameters=parameters,
            needed=parameters + 1,
        )
    return None


def _starts(design: Design, form: Form) -> Array:
    """The best nodes of the grid of exponents and k, (S, P).

    Each is solved for the scale, the offset, the level and the spread alone.
    """
    theta = _nodes(form)
    # What was measured of a cell that had not converged is near enough.
    observed = np.isfinite(design.upper_limit)

    # The argument of the link, x times its ceiling: far below the ceiling that is the gain.
    inner = design.delta[observed]
    if form.level:
        # Of an exponential link, whose inverse is a logarithm.
        start = LEVEL_START * float(design.base.mean())
        theta[:, LEVEL] = start
        final = (design.base - design.delta)[observed]
        inner = start * np.log(np.maximum(start / final, 1.05))

    # What a node leaves of the logarithm is the scale, and its deviation the spread.
    by_rank = theta[:, ALPHA, None] * design.x[observed]
    by_length = theta[:, BETA, None] * design.y[observed]
    log_scale = np.log(inner) - by_rank + by_length
    theta[:, C] = np.median(log_scale, axis=1)
    spread = np.maximum(log_scale.std(axis=1), 1e-3)
    theta[:, LOG_SPREAD] = np.log(spread)

    # The exponents and k stay at their nodes.
    solved = tuple(p for p in form.free if p in (C, B, LOG_SPREAD, LEVEL))
    theta, nll = minimise(theta, design, form, free=solved, iterations=8)
    return theta[np.argsort(nll)[:POLISHED_NODES]]


def _nodes(form: Form) -> Array:
    """Theta at the nodes of the grid of exponents and k, (nodes, P); the rest is 0."""
    betas: Sequence[float] = EXPONENT_GRID.tolist()
    if form.beta is not None:
        betas = [form.beta]
    grid = list(itertools.product(EXPONENT_GRID, betas, form.kind.k_starts))

    alpha, beta, k = np.array(grid).T
    theta = np.zeros((len(grid), len(THETA_NAMES)))
    theta[:, ALPHA] = alpha
    theta[:, BETA] = beta
    theta[:, LOG_K] = np.log(k)
    if form.floor:
        theta[:, FLOOR] = FLOOR_START
    return theta


@dataclass(frozen=True, kw_only=True)
class _Covariances:
    """Covariances of theta, (P, P) each.

    The last three are sandwiches over clusters (Liang and Zeger 1986, with G / (G - 1) for G
    clusters).
    """

    independent: Array
    """Inverse of the information: cells are independent."""
    by_text_and_length: Array
    """Clusters: the cells of one text at one length."""
    by_text: Array
    """Clusters: the cells of one text."""
    by_cell: Array
    """Every cell a cluster, so that spreads may differ."""
    inflation: float
    """Mean ratio of the variances by text and length to the independent ones, at least 1."""

    @classmethod
    def unknown(cls) -> _Covariances:
        """Without numbers: of a parameter at its bound, or of a law that is not identified."""
        size = len(THETA_NAMES)
        square = np.full((size, size), math.nan)
        return cls(
            independent=square,
            by_text_and_length=square,
            by_text=square,
            by_cell=square,
            inflation=1.0,
        )


def _unidentified(
    cells: Observations,
    form: Form,
    centre: Centre,
    reason: Finding,
) -> LikelihoodFit:
    """A result without numbers."""
    # Nothing about the parameters, everything about the cells.
    unknown = _Covariances.unknown()
    return LikelihoodFit(
        form=form,
        status=NOT_IDENTIFIED,
        finding=reason,
        theta=np.full(len(THETA_NAMES), math.nan),
        centre=centre,
        covariance=unknown.independent,
        clustered=unknown.by_text_and_length,
        clusters=cells.clusters[1],
        by_text=unknown.by_text,
        texts=cells.texts[1],
        by_cell=unknown.by_cell,
        inflation=unknown.inflation,
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
    centre: Centre,
    theta: Array,
    nll: float,
) -> LikelihoodFit:
    """The fit at its optimum, with covariances unless a parameter stopped at a bound.

    Args:
        theta: (P,) the optimum.
        nll: negative log-likelihood there.
    """
    # A parameter at its bound has no covariance: the law is reported without intervals.
    stopped = at_exponent_bound(theta[ALPHA], theta[BETA])
    stopped = stopped or _at_other_bound(theta, form, float(cells.base.max()))

    covariances = _Covariances.unknown()
    if not stopped:
        silent = _uninformed(form, design, theta)
        if silent:
            reason = finding("no_information", parameter=silent)
            return _unidentified(cells, form, centre, reason)
        covariances = _covariances(cells, form, design, theta)

    log_gains = log_gain(theta[None], design.x, design.y, design.base, form.link)
    predicted = np.exp(log_gains[0])
    observed = ~cells.saturated
    return LikelihoodFit(
        form=form,
        status=BOUND_HIT if stopped else OK,
        finding=stopped,
        theta=theta,
        centre=centre,
        covariance=covariances.independent,
        clustered=covariances.by_text_and_length,
        clusters=cells.clusters[1],
        by_text=covariances.by_text,
        texts=cells.texts[1],
        by_cell=covariances.by_cell,
        inflation=covariances.inflation,
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
    """The parameter that the likelihood does not depend on, by its natural name.

    Args:
        theta: (P,) the optimum.
    """
    free = np.array(form.free)
    information = _information(form, design, theta)
    scale = np.sqrt(np.diag(information))
    if np.isfinite(information).all() and (scale > LEAST_INFORMATION).all():
        return None
    return NATURAL_NAMES[free[int(np.argmin(scale))]]


def _information(form: Form, design: Design, theta: Array) -> Array:
    """Information matrix of the free parameters, (F, F); every cell counts once."""
    once = np.ones((1, 1))
    _, information = derivatives(theta[None], design, form, once, np.array(form.free))
    matrix: Array = information[0]
    return matrix


def _covariances(
    cells: Observations,
    form: Form,
    design: Design,
    theta: Array,
) -> _Covariances:
    """Covariances at the optimum.

    Args:
        theta: (P,) the optimum.
    """
    free = np.array(form.free)
    information = _information(form, design, theta)
    # Scaled to a unit diagonal, so that the inverse is accurate for parameters of any size.
    scale = np.sqrt(np.diag(information))
    scales = np.outer(scale, scale)
    inverse = np.linalg.pinv(information / scales, hermitian=True)
    scaled_scores = scores(theta, design, form, free) / scale

    size = len(THETA_NAMES)
    # Parameters that are not free have no variance.
    block = np.ix_(free, free)
    independent = np.zeros((size, size))
    independent[block] = inverse / scales

    def middle_of(cluster: NDArray[np.intp], count: int) -> Array:
        # What cells of one cluster have in common adds up.
        sums = np.zeros((count, len(free)))
        np.add.at(sums, cluster, scaled_scores)
        return np.asarray(sums.T @ sums * count / max(1, count - 1))

    def sandwich(middle: Array) -> Array:
        covariance = np.zeros((size, size))
        covariance[block] = inverse @ middle @ inverse / scales
        return covariance

    by_text_and_length = middle_of(*cells.clusters)
    inflation = float(np.trace(inverse @ by_text_and_length)) / len(free)
    return _Covariances(
        independent=independent,
        by_text_and_length=sandwich(by_text_and_length),
        by_text=sandwich(middle_of(*cells.texts)),
        by_cell=sandwich(middle_of(np.arange(len(cells)), len(cells))),
        inflation=max(1.0, inflation),
    )


def _at_other_bound(
    theta: Array,
    form: Form,
    largest_base: float,
) -> Finding | None:
    """Which of k, floor and level stopped at a bound, or lies where it has no meaning.

    Args:
        theta: (P,) the optimum.
        largest_base: the largest base loss of the cells, nats per token.
    """
    least_log_k = form.bounds[0][LOG_K]
    if form.kind.has_k and theta[LOG_K] <= least_log_k + BOUND_TOLERANCE:
        return finding("k_at_lower_bound", link=form.link)

    if form.floor and theta[FLOOR] <= 1e-9:
        return finding("floor_at_zero")
    if form.level and theta[LEVEL] <= BOUND_TOLERANCE:
        return finding("level_at_zero")
    if form.level and theta[LEVEL] > largest_base:
        return finding("level_above_base_loss", level=float(theta[LEVEL]))
    return None
