"""The paper's law by an estimator that a few bad cells hardly move: relative residuals, Huber's loss, then Tukey's.

Huber's loss alone bounds the pull of a bad residual, not that of its place: one saturated cell that stayed in, at a large
rank and a short length, moved alpha by up to 0.4 on the paper's grid. Tukey's loss, started there, lets go of it (after the
MM-estimators of Yohai 1987).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize

from pml_cli.law import power_law
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import BOUND_HIT, EXPONENTS, NOT_IDENTIFIED, OK, LawFit
from pml_cli.stats import Array, percent_error, r_squared, safe_exp

HUBER = 1.345  # times the spread: 95 % of the efficiency of least squares where the noise is normal (Huber 1964)
TUKEY = 4.685  # times the spread: 95 % too; residuals beyond have no pull
MAD = 1.4826  # times the median absolute residual: the standard deviation of normal noise
ROUNDS = 30
SETTLED = 1e-6  # relative change of the spread


def fit_robust(cells: Observations, saturated_below: float = 0.69) -> LawFit:
    """Fit dL = C r^alpha l^-beta + b on (y - f) / y: Huber's loss at 1.345 MAD, then Tukey's at 4.685, the spread along.

    Intervals come from the sandwich covariance; they take the cells as independent.

    Args:
        cells: their `sd` divides the residuals.
        saturated_below: a cell whose final loss is at or below this (nats per token) is left out.
    """
    kept = ~power_law.saturated(cells.final, saturated_below)
    start = power_law.fit_paper(cells.rank, cells.length, cells.delta, cells.final, saturated_below)
    if start.status == NOT_IDENTIFIED:
        return start
    r, length, d, sd = (
        values[kept] for values in (cells.rank, cells.length, cells.delta, cells.sd)
    )
    if (d <= 0).any():
        return power_law.unidentified(
            "a gain is not above 0: relative residuals need gains above 0", kept
        )
    mean_r, mean_l, level = (
        float(np.log(r).mean()),
        float(np.log(length).mean()),
        float(np.median(d)),
    )
    x, y, scaled, weight = np.log(r) - mean_r, np.log(length) - mean_l, d / level, level / (d * sd)
    theta = np.array([0.0, start.alpha, start.beta, start.b / level])
    theta[0] = math.log(start.C / level) + start.alpha * mean_r - start.beta * mean_l
    theta, spread = _huber(theta, x, y, scaled, weight)
    theta, spread = _tukey(theta, x, y, scaled, weight)
    c, alpha, beta, offset = theta.tolist()
    C, bound = (
        level * safe_exp(c - alpha * mean_r + beta * mean_l),
        power_law.bound_reason(alpha, beta),
    )
    covariance = np.full((4, 4), math.nan)
    if not bound:
        back = np.diag([C, 1.0, 1.0, level])
        back[0, 1:3] = -C * mean_r, C * mean_l
        covariance = (
            back @ _sandwich(theta, x, y, scaled, weight=weight, end=TUKEY * spread) @ back.T
        )
    predicted = level * power_law.powers(theta, x, y)
    r2 = r_squared(d, predicted)
    n, status = int(kept.sum()), BOUND_HIT if bound else OK
    error, deviation = (
        percent_error(d, predicted),
        MAD * float(np.median(np.abs(d - predicted))),
    )
    return LawFit(
        status,
        bound,
        C,
        alpha,
        beta,
        offset * level,
        covariance,
        r2,
        error,
        n,
        len(kept) - n,
        kept,
        deviation,
    )


def _huber(theta: Array, x: Array, y: Array, d: Array, weight: Array) -> tuple[Array, float]:
    spread = _spread((power_law.powers(theta, x, y) - d) * weight)
    for _ in range(ROUNDS):
        theta = _polish(theta, x, y, d, weight=weight, turn=HUBER * spread)
        before, spread = spread, _spread((power_law.powers(theta, x, y) - d) * weight)
        if abs(spread - before) <= SETTLED * spread:
            break
    return theta, spread


def _tukey(theta: Array, x: Array, y: Array, d: Array, weight: Array) -> tuple[Array, float]:
    """Least squares again and again, with the weights that the last residuals leave each cell."""
    residual = (power_law.powers(theta, x, y) - d) * weight
    spread = _spread(residual)
    for _ in range(ROUNDS):
        left = np.maximum(0, 1 - (residual / (TUKEY * spread)) ** 2)
        theta = _polish(theta, x, y, d, weight=weight * left, turn=math.inf)
        residual = (power_law.powers(theta, x, y) - d) * weight
        before, spread = spread, _spread(residual)
        if abs(spread - before) <= SETTLED * spread:
            break
    return theta, spread


def _spread(residual: Array) -> float:
    return max(MAD * float(np.median(np.abs(residual))), 1e-12)


def _polish(start: Array, x: Array, y: Array, d: Array, *, weight: Array, turn: float) -> Array:
    """From `start`, with Huber's loss beyond `turn`; plain least squares where that is infinite."""
    low, high = EXPONENTS
    scale = turn if math.isfinite(turn) else 1.0
    bounds = np.array([[-np.inf, low, low, -np.inf], [np.inf, high, high, np.inf]])

    def residuals(theta: Array) -> Array:
        return (power_law.powers(theta, x, y) - d) * weight / scale

    def slopes(theta: Array) -> Array:
        return power_law.slopes_of(theta, x, y) * (weight / scale)[:, None]

    found = optimize.least_squares(
        residuals,
        np.clip(start, bounds[0], bounds[1]),
        jac=slopes,
        bounds=(bounds[0], bounds[1]),
        loss="huber" if math.isfinite(turn) else "linear",
        x_scale="jac",
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
    )
    return np.asarray(found.x)


def _sandwich(theta: Array, x: Array, y: Array, d: Array, *, weight: Array, end: float) -> Array:
    """Huber's covariance of an M-estimator, for Tukey's loss: residuals beyond `end` have no pull."""
    jacobian = power_law.slopes_of(theta, x, y) * weight[:, None]
    residual = (power_law.powers(theta, x, y) - d) * weight
    square = np.minimum(1, (residual / end) ** 2)
    pull, stiffness = residual * (1 - square) ** 2, (1 - square) * (1 - 5 * square)
    bread = np.linalg.pinv((jacobian * stiffness[:, None]).T @ jacobian)
    meat = (jacobian * pull[:, None] ** 2).T @ jacobian * len(d) / (len(d) - len(theta))
    return np.asarray(bread @ meat @ bread)
