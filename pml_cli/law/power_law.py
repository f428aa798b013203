"""The memory law dL = C r^alpha l^-beta + b and the estimator of the paper (arXiv 2605.30260).

One cell is one trained adapter: its rank r, its target length l (tokens), its gain dL = base loss
minus final loss (nats per token). The estimator drops saturated cells and fits the others by least
squares. The law is linear in (C, b) once the exponents are fixed, so the search is a grid over the
two exponents, solved exactly at every node (variable projection), and a polish of all four
parameters from the best nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from pml_cli.law.findings import BOUND_HIT, NOT_IDENTIFIED, OK, Finding, finding
from pml_cli.law.forms import Form
from pml_cli.law.observations import Observations
from pml_cli.law.parameters import EXPONENT_BOUNDS, Centre, Interval
from pml_cli.stats import Array, Mask, percent_error, safe_exp, t_quantile

PARAMETERS = ("C", "alpha", "beta", "b")
FORM = Form(link="none", offset=True)

# Values of alpha and of beta at the nodes where the search starts.
EXPONENT_GRID = np.geomspace(0.02, 4.0, 32)
# Grid nodes from which least squares starts.
POLISHED_NODES = 4

# The least number of distinct ranks, of distinct lengths, and of cells.
MIN_DISTINCT = 3
MIN_CELLS = len(PARAMETERS) + 2

# Absolute correlation of log rank and log length above which the exponents are confounded.
COLLINEAR = 0.9999

# Gains without a trend have no exponents: the least p of that test at which they count as flat.
FLAT = 0.05

# The best power law is a constant if its range is below this share of that of the gains.
FLAT_POWER = 1e-6


@dataclass(frozen=True, kw_only=True)
class PowerLawFit:
    """A fit of the paper's form (a `fit_result.FitResult`), or the finding why there is none.

    Standard errors, covariance and intervals take every cell as an independent draw with the same
    spread, so cells that share a text make them too narrow. They are nan unless the status is OK;
    the parameters, r2 and mape are nan when it is NOT_IDENTIFIED.
    """

    name: str
    """Name of the estimator: paper or robust."""
    status: str
    """OK, BOUND_HIT or NOT_IDENTIFIED."""
    finding: Finding | None
    """Why the status is not OK."""
    C: float
    """Nats per token at rank 1 and length 1, above b."""
    alpha: float
    """Power of the size."""
    beta: float
    """Power of the length, which divides."""
    b: float
    """Nats per token, gained at any size and length."""
    covariance: Array
    """(4, 4) in the order of PARAMETERS."""
    r2: float
    """R2 over the cells used."""
    mape: float
    """Mean absolute error over the cells used, per cent of the measured gain."""
    used: Mask
    """(N,) the cells in the fit: the unsaturated ones."""
    spread: float
    """Standard deviation of a cell around the law, nats per token."""

    @property
    def form(self) -> Form:
        """The paper's."""
        return FORM

    @property
    def uses_saturated(self) -> bool:
        """They are left out."""
        return False

    @property
    def n_used(self) -> int:
        """Cells in the fit."""
        return int(self.used.sum())

    @property
    def n_saturated(self) -> int:
        """Cells left out."""
        return len(self.used) - self.n_used

    @property
    def parameters(self) -> dict[str, float]:
        """C, alpha, beta and b."""
        return {name: float(getattr(self, name)) for name in PARAMETERS}

    @property
    def errors(self) -> dict[str, float]:
        """Standard error of each parameter."""
        errors = np.sqrt(np.diag(self.covariance))
        return dict(zip(PARAMETERS, errors.tolist(), strict=True))

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals by Student's t with n - 4 degrees of freedom, that of C on its log."""
        degrees = self.n_used - len(PARAMETERS)
        t = t_quantile(degrees) if degrees > 0 else math.nan

        errors = self.errors
        spans = {}
        for name, value in self.parameters.items():
            half = t * errors[name]
            spans[name] = (value - half, value + half)

        # The relative error of C is the error of its logarithm.
        factor = safe_exp(t * errors["C"] / self.C)
        spans["C"] = (self.C / factor, self.C * factor)
        return spans

    @property
    def warnings(self) -> list[Finding]:
        """What the numbers say against the law."""
        low, high = self.intervals["b"]
        if self.status == OK and high < 0:
            return [finding("negative_offset_paper", b=self.b, low=low, high=high)]
        return []

    def predict(
        self,
        rank: ArrayLike,
        length: ArrayLike,
        base: ArrayLike | None = None,
    ) -> Array:
        """Gain in nats per token; nan when NOT_IDENTIFIED.

        Args:
            rank, length: shapes that broadcast, as do the results.
            base: of no effect; the form knows no ceiling.
        """
        return gain(rank, length, **self.parameters)

    def band(self, rank: Array, length: Array, base: Array) -> tuple[Array, Array]:
        """95 % prediction interval of new cells with the same absolute spread.

        Args:
            rank, length, base: (N,); the base loss has no effect.

        Returns:
            Lower and upper end, (N,) each, nats per token.
        """
        middle = self.predict(rank, length)
        power = middle - self.b
        # Derivatives by C, alpha, beta and b.
        slopes = [
            power / self.C,
            power * np.log(rank),
            -power * np.log(length),
            np.ones_like(power),
        ]
        slopes_NP = np.stack(slopes, axis=-1)
        law_variance = np.einsum("nf,fg,ng->n", slopes_NP, self.covariance, slopes_NP)
        variance = self.spread**2 + np.maximum(0, law_variance)

        degrees = max(1, self.n_used - len(PARAMETERS))
        half = t_quantile(degrees) * np.sqrt(variance)
        return middle - half, middle + half


def gain(
    rank: ArrayLike,
    length: ArrayLike,
    *,
    C: float,
    alpha: float,
    beta: float,
    b: float,
) -> Array:
    """dL(r, l) = C r^alpha l^-beta + b, in nats per token.

    Source: the parametric memory law of arXiv 2605.30260 (there alpha is about 0.6 and beta about
    0.5).

    Args:
        rank: rank, or another measure of size; any shape that broadcasts with `length`.
        length: target tokens.
        C, alpha, beta, b: in natural units.

    Returns:
        (...) of the shape to which rank and length broadcast.
    """
    ranks = np.asarray(rank, float)
    lengths = np.asarray(length, float)
    return np.asarray(C * ranks**alpha * lengths**-beta + b, float)


def fit_paper(cells: Observations) -> PowerLawFit:
    """Fit dL = C r^alpha l^-beta + b as arXiv 2605.30260 does: least squares, unsaturated cells."""
    used = ~cells.saturated
    kept = cells.take(used)
    delta = kept.delta
    problem = identifiability(kept)
    if problem:
        return unidentified("paper", problem, used)

    # Centred logs, and a gain scaled to its range: the four parameters then have comparable sizes.
    mean_x, mean_y = kept.log_centre
    x = np.log(kept.rank) - mean_x
    y = np.log(kept.length) - mean_y
    scale = float(np.ptp(delta))

    # In natural units: C at rank 1 and length 1.
    theta = _least_squares(x, y, delta / scale)
    c, alpha, beta, offset = theta.tolist()
    C = scale * safe_exp(c - alpha * mean_x + beta * mean_y)
    residual = delta - scale * power_gain(theta, x, y)

    # A parameter at its bound has no interval.
    stopped = at_exponent_bound(alpha, beta)
    covariance = np.full((4, 4), np.nan)
    power = scale * (power_gain(theta, x, y) - offset)
    if not stopped and np.ptp(power) <= FLAT_POWER * np.ptp(delta):
        return unidentified("paper", finding("no_power"), used)
    if not stopped:
        jacobian = natural_jacobian(C, scale, (mean_x, mean_y))
        covariance = jacobian @ _covariance(theta, x, y, residual / scale) @ jacobian.T

    # The quality of the fit, over the cells in it.
    squares = float(residual @ residual)
    total = float(((delta - delta.mean()) ** 2).sum())
    degrees = len(delta) - len(PARAMETERS)
    return PowerLawFit(
        name="paper",
        status=BOUND_HIT if stopped else OK,
        finding=stopped,
        C=C,
        alpha=alpha,
        beta=beta,
        b=offset * scale,
        covariance=covariance,
        r2=1 - squares / total,
        mape=percent_error(delta, delta - residual),
        used=used,
        spread=math.sqrt(squares / degrees),
    )


def natural_jacobian(C: float, scale: float, centre: Centre) -> Array:
    """(4, 4) derivatives of C, alpha, beta and b by theta = (c, alpha, beta, offset).

    Args:
        C: in natural units, scale * exp(c - alpha * mean x + beta * mean y).
        scale: of the gain and so of the offset.
        centre: mean log rank and mean log length, where c is centred.
    """
    jacobian = np.diag([C, 1.0, 1.0, scale])
    # C moves with the exponents, too.
    jacobian[0, 1] = -C * centre[0]
    jacobian[0, 2] = C * centre[1]
    return jacobian


def identifiability(cells: Observations) -> Finding | None:
    """Why these cells cannot tell the four parameters apart; None when they can.

    Args:
        cells: the unsaturated ones.
    """
    for axis, column in (("size", cells.grid_size), ("length", cells.length)):
        distinct = np.unique(column)
        if len(distinct) < MIN_DISTINCT:
            return finding(
                "few_distinct_values",
                axis=axis,
                distinct=tuple(distinct.tolist()),
                needed=MIN_DISTINCT,
            )

    if len(cells) < MIN_CELLS:
        return finding(
            "few_cells",
            cells=len(cells),
            parameters=len(PARAMETERS),
            needed=MIN_CELLS,
        )

    largest = np.abs(cells.delta).max()
    if np.ptp(cells.delta) <= 1e-12 * largest:
        return finding("constant_gain")
    x = np.log(cells.rank)
    y = np.log(cells.length)
    correlation = np.corrcoef(x, y)[0, 1]
    if abs(correlation) > COLLINEAR:
        return finding("collinear_axes")

    p = trend_p(x, y, cells.delta)
    if p > FLAT:
        return finding("flat_gain", p=p)
    return None


def trend_p(x: Array, y: Array, delta: Array) -> float:
    """p of an F test that the gain has no linear trend in log rank and log length.

    Args:
        x, y, delta: (N,) log rank, log length and gain, nats per token.
    """
    columns = np.stack([np.ones_like(x), x, y], axis=1)
    residual = delta - columns @ np.linalg.lstsq(columns, delta, rcond=None)[0]
    unexplained = float(residual @ residual)
    total = float(((delta - delta.mean()) ** 2).sum())

    degrees = len(delta) - columns.shape[1]
    explained = max(0.0, total - unexplained)
    f = explained / 2 / max(unexplained / degrees, 1e-300)
    return float(stats.f.sf(f, 2, degrees))


def at_exponent_bound(alpha: float, beta: float) -> Finding | None:
    """Which exponent stopped at its bound; None where neither did."""
    # scipy stops just inside its bounds.
    low, high = EXPONENT_BOUNDS
    for parameter, value in (("alpha", alpha), ("beta", beta)):
        if value <= low * 1.01:
            return finding("exponent_at_lower_bound", parameter=parameter, bound=low)
        if value >= high * 0.999:
            return finding("exponent_at_upper_bound", parameter=parameter, bound=high)
    return None


def unidentified(name: str, reason: Finding, used: Mask) -> PowerLawFit:
    """A result without numbers.

    Args:
        name: of the estimator.
        used: (N,) the unsaturated cells.
    """
    return PowerLawFit(
        name=name,
        status=NOT_IDENTIFIED,
        finding=reason,
        C=math.nan,
        alpha=math.nan,
        beta=math.nan,
        b=math.nan,
        covariance=np.full((4, 4), math.nan),
        r2=math.nan,
        mape=math.nan,
        used=used,
        spread=math.nan,
    )


def power_gain(theta: Array, x: Array, y: Array) -> Array:
    """exp(c + alpha x - beta y) + b, (N,).

    Args:
        theta: (4,) c, alpha, beta, b.
        x, y: (N,) log rank and log length.
    """
    c, alpha, beta, b = theta
    values: Array = np.exp(c + alpha * x - beta * y) + b
    return values


def power_gain_jacobian(theta: Array, x: Array, y: Array) -> Array:
    """Derivatives of `power_gain` by theta, (N, 4)."""
    c, alpha, beta, _ = theta
    power = np.exp(c + alpha * x - beta * y)
    columns = [power, power * x, -power * y, np.ones_like(x)]
    return np.stack(columns, axis=1)


def _least_squares(x: Array, y: Array, delta: Array) -> Array:
    """The least sum of squares over theta = (log C, alpha, beta, b), (4,), from the best nodes."""
    low, high = EXPONENT_BOUNDS
    lower = [-np.inf, low, low, -np.inf]
    upper = [np.inf, high, high, np.inf]

    def residuals(theta: Array) -> Array:
        return power_gain(theta, x, y) - delta

    def jacobian(theta: Array) -> Array:
        return power_gain_jacobian(theta, x, y)

    results = [
        optimize.least_squares(
            residuals,
            start,
            jac=jacobian,
            bounds=(lower, upper),
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
            max_nfev=2000,
        )
        for start in _starts(x, y, delta)
    ]
    best = min(results, key=lambda result: float(result.cost))
    theta: Array = best.x
    return theta


def _starts(x: Array, y: Array, delta: Array) -> list[Array]:
    """The best nodes of the exponent grid, each with its exact (log C, b): theta, (4,) each."""
    nodes: list[tuple[float, Array]] = []
    for alpha in EXPONENT_GRID:
        # (beta nodes, cells)
        power = np.exp(alpha * x - np.outer(EXPONENT_GRID, y))
        slope, offset, cost = _regress(power, delta)

        # The two best values of beta for this alpha.
        for k in np.argsort(cost)[:2]:
            log_scale = math.log(slope[k])
            theta = np.array([log_scale, alpha, EXPONENT_GRID[k], offset[k]])
            nodes.append((float(cost[k]), theta))

    # By cost, the sum of squares.
    nodes.sort(key=lambda node: node[0])
    return [theta for _, theta in nodes[:POLISHED_NODES]]


def _regress(power: Array, delta: Array) -> tuple[Array, Array, Array]:
    """Regress the gain on the power of each node: delta = slope * power + offset.

    Args:
        power: (B, N) of B nodes of beta.
        delta: (N,).

    Returns:
        Slope, offset and sum of squared residuals, (B,) each.
    """
    centred = delta - delta.mean()
    deviation = power - power.mean(axis=1, keepdims=True)

    # The law's C is positive: where the best slope is not, the node is as good as the mean.
    squares = (deviation**2).sum(axis=1)
    slope = deviation @ centred / np.maximum(squares, 1e-300)
    slope = np.maximum(slope, 1e-9)

    offset = delta.mean() - slope * power.mean(axis=1)
    residual = centred - slope[:, None] * deviation
    cost = (residual**2).sum(axis=1)
    return slope, offset, cost


def _covariance(
    theta: Array,
    x: Array,
    y: Array,
    residual: Array,
) -> Array:
    """Gauss-Newton covariance s^2 (J'J)^-1 of theta, (4, 4).

    By the singular values of J with its columns scaled: J'J would square the condition number.
    """
    jacobian = power_gain_jacobian(theta, x, y)
    scale = np.linalg.norm(jacobian, axis=0)
    _, singular, right = np.linalg.svd(jacobian / scale, full_matrices=False)
    root = (right.T / singular) / scale[:, None]

    squares = float(residual @ residual)
    degrees = len(x) - len(theta)
    covariance: Array = root @ root.T * squares / degrees
    return covariance
