"""The paper's form by an estimator that a few bad cells hardly move: an MM-estimator.

Relative residuals with Huber's loss, then with Tukey's, started there (after Yohai 1987). Huber's
loss alone bounds the influence of a residual, not that of its position: one saturated cell that
stayed in, at a large rank and a short length, moved alpha by up to 0.4 on the paper's grid. Tukey's
loss gives such a cell no weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from pml_cli.law.findings import BOUND_HIT, NOT_IDENTIFIED, OK, Finding, finding
from pml_cli.law.observations import Observations
from pml_cli.law.parameters import EXPONENT_BOUNDS, Centre
from pml_cli.law.power_law import (
    FLAT_POWER,
    PowerLawFit,
    at_exponent_bound,
    fit_paper,
    natural_jacobian,
    power_gain,
    power_gain_jacobian,
    unidentified,
)
from pml_cli.stats import Array, percent_error, safe_exp

# Multiples of the spread at which the losses bend: 95 % of the efficiency of least squares where
# the noise is normal (Huber 1964). Beyond TUKEY a residual has no influence.
HUBER = 1.345
TUKEY = 4.685

# Factor from the median absolute residual to the standard deviation of normal noise.
MAD_TO_SD = 1.4826

# Rounds of reweighting at most, and the relative change of the spread that ends them.
ROUNDS = 30
TOLERANCE = 1e-6


def fit_robust(cells: Observations) -> PowerLawFit:
    """Fit dL = C r^alpha l^-beta + b to the relative residuals (y - f) / y of unsaturated cells.

    Huber's loss at 1.345 spreads, then Tukey's at 4.685, the spread estimated along the way by the
    median absolute residual. Intervals come from the sandwich covariance; they take the cells as
    independent. `cells.sd` divides the residuals.
    """
    used = ~cells.saturated
    start = fit_paper(cells)
    if start.status == NOT_IDENTIFIED:
        assert start.finding is not None
        return unidentified("robust", start.finding, used)
    kept = cells.take(used)
    if (kept.delta <= 0).any():
        return unidentified("robust", finding("gain_not_positive"), used)

    # Huber's loss finds the neighbourhood, Tukey's the fit.
    problem = _Residuals.of(kept)
    theta = _huber(problem.theta_of(start), problem)
    theta, spread = _tukey(theta, problem)

    # A parameter at its bound has no interval.
    C, alpha, beta, b = problem.natural_parameters(theta)
    stopped = at_exponent_bound(alpha, beta)
    covariance = np.full((4, 4), math.nan)
    if not stopped:
        if problem.is_flat(theta):
            return unidentified("robust", finding("no_power"), used)
        jacobian = natural_jacobian(C, problem.scale, problem.centre)
        covariance = jacobian @ _sandwich(theta, problem, TUKEY * spread) @ jacobian.T

    # The quality of the fit, in nats per token.
    predicted = problem.scale * power_gain(theta, problem.x, problem.y)
    residual = kept.delta - predicted
    squares = float((residual**2).sum())
    total = float(((kept.delta - kept.delta.mean()) ** 2).sum())
    return PowerLawFit(
        name="robust",
        status=BOUND_HIT if stopped else OK,
        finding=stopped,
        C=C,
        alpha=alpha,
        beta=beta,
        b=b,
        covariance=covariance,
        r2=1 - squares / total,
        mape=percent_error(kept.delta, predicted),
        used=used,
        spread=MAD_TO_SD * float(np.median(np.abs(residual))),
    )


def disagreements(paper: PowerLawFit, robust: PowerLawFit) -> list[Finding]:
    """Exponents of the robust fit outside the 95 % intervals of the paper's least squares.

    Where they differ, a few outlying cells decide the paper's exponents, or its form does not
    describe the cells.
    """
    if paper.status != OK or robust.status != OK:
        return []

    warnings = []
    for parameter in ("alpha", "beta"):
        low, high = paper.intervals[parameter]
        value = robust.parameters[parameter]
        if not low <= value <= high:
            warnings.append(
                finding(
                    "robust_fit_disagrees",
                    parameter=parameter,
                    robust=value,
                    paper=paper.parameters[parameter],
                    low=low,
                    high=high,
                )
            )
    return warnings


@dataclass(frozen=True, kw_only=True)
class _Residuals:
    """Weighted residuals of the power law on N cells: (f - delta) * weight.

    Logs are centred and gains about 1, so that the four parameters have comparable sizes:
    theta = (c, alpha, beta, offset) for f = exp(c + alpha x - beta y) + offset.
    """

    centre: Centre
    """Mean log rank and mean log length."""
    scale: float
    """Nats per token of a scaled gain of 1."""
    x: Array
    """(N,) centred log rank."""
    y: Array
    """(N,) centred log length."""
    delta: Array
    """(N,) gain, scaled."""
    weight: Array
    """(N,) inverse standard deviation of a cell, up to a factor."""

    @classmethod
    def of(cls, cells: Observations) -> _Residuals:
        """Those of N unsaturated cells with gains above 0, relative to the gain."""
        mean_x, mean_y = cells.log_centre
        scale = float(np.median(cells.delta))
        return cls(
            centre=(mean_x, mean_y),
            scale=scale,
            x=np.log(cells.rank) - mean_x,
            y=np.log(cells.length) - mean_y,
            delta=cells.delta / scale,
            weight=scale / (cells.delta * cells.sd),
        )

    def theta_of(self, law: PowerLawFit) -> Array:
        """(4,) theta of a law in natural units."""
        mean_x, mean_y = self.centre
        c = math.log(law.C / self.scale) + law.alpha * mean_x - law.beta * mean_y
        return np.array([c, law.alpha, law.beta, law.b / self.scale])

    def natural_parameters(self, theta: Array) -> tuple[float, float, float, float]:
        """C, alpha, beta and b of theta: C at rank 1 and length 1, C and b in nats per token."""
        c, alpha, beta, offset = theta.tolist()
        mean_x, mean_y = self.centre
        C = self.scale * safe_exp(c - alpha * mean_x + beta * mean_y)
        return C, alpha, beta, offset * self.scale

    def is_flat(self, theta: Array) -> bool:
        """Whether the law is a constant, beside the spread of the gains."""
        power = power_gain(theta, self.x, self.y) - theta[3]
        return bool(np.ptp(power) <= FLAT_POWER * np.ptp(self.delta))

    def at(self, theta: Array) -> Array:
        """(N,) residuals."""
        predicted = power_gain(theta, self.x, self.y)
        return (predicted - self.delta) * self.weight

    def jacobian(self, theta: Array) -> Array:
        """(N, 4) of the residuals by theta."""
        jacobian = power_gain_jacobian(theta, self.x, self.y)
        return jacobian * self.weight[:, None]


def _huber(theta: Array, problem: _Residuals) -> Array:
    """Theta, (4,), by Huber's loss; the spread is re-estimated after each fit."""
    spread = _spread(problem.at(theta))
    for _ in range(ROUNDS):
        theta = _minimise(theta, problem, problem.weight, bend=HUBER * spread)
        previous = spread
        spread = _spread(problem.at(theta))
        if abs(spread - previous) <= TOLERANCE * spread:
            break
    return theta


def _tukey(theta: Array, problem: _Residuals) -> tuple[Array, float]:
    """Theta, (4,), and the spread, by least squares reweighted with Tukey's weights."""
    residual = problem.at(theta)
    spread = _spread(residual)

    for _ in range(ROUNDS):
        relative = residual / (TUKEY * spread)
        tukey_weight = np.maximum(0, 1 - relative**2)
        theta = _minimise(theta, problem, problem.weight * tukey_weight, bend=math.inf)

        residual = problem.at(theta)
        previous, spread = spread, _spread(residual)
        if abs(spread - previous) <= TOLERANCE * spread:
            break
    return theta, spread


def _spread(residual: Array) -> float:
    """Standard deviation of normal noise, from the median absolute value of (N,) residuals."""
    median = float(np.median(np.abs(residual)))
    return max(MAD_TO_SD * median, 1e-12)


def _minimise(
    start: Array,
    problem: _Residuals,
    weight: Array,
    *,
    bend: float,
) -> Array:
    """Theta, (4,), from `start`: Huber's loss beyond `bend`, least squares where it is infinite.

    Args:
        weight: (N,) in place of those of the problem.
    """
    low, high = EXPONENT_BOUNDS
    lower = np.array([-np.inf, low, low, -np.inf])
    upper = np.array([np.inf, high, high, np.inf])
    # scipy bends Huber's loss at a residual of 1.
    scale = bend if math.isfinite(bend) else 1.0

    def residuals(theta: Array) -> Array:
        predicted = power_gain(theta, problem.x, problem.y)
        return (predicted - problem.delta) * weight / scale

    def jacobian(theta: Array) -> Array:
        slopes = power_gain_jacobian(theta, problem.x, problem.y)
        return slopes * (weight / scale)[:, None]

    solution = optimize.least_squares(
        residuals,
        np.clip(start, lower, upper),
        jac=jacobian,
        bounds=(lower, upper),
        loss="huber" if math.isfinite(bend) else "linear",
        x_scale="jac",
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
    )
    return np.asarray(solution.x)


def _sandwich(theta: Array, problem: _Residuals, cutoff: float) -> Array:
    """Huber's covariance of an M-estimator with Tukey's loss, (4, 4).

    Args:
        cutoff: residuals beyond it have no influence.
    """
    jacobian = problem.jacobian(theta)
    residual = problem.at(theta)
    # Tukey's psi function and its derivative.
    square = np.minimum(1, (residual / cutoff) ** 2)
    influence = residual * (1 - square) ** 2
    curvature = (1 - square) * (1 - 5 * square)
    cells = len(problem.delta)

    weighted = jacobian * curvature[:, None]
    bread = np.linalg.pinv(weighted.T @ jacobian)
    influential = jacobian * influence[:, None] ** 2
    degrees = cells - len(theta)
    meat = influential.T @ jacobian * cells / degrees
    return np.asarray(bread @ meat @ bread)
