"""The paper's law by an estimator that a few bad cells cannot move: relative residuals, Huber's loss."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize

from . import law
from .law import BOUND_HIT, EXPONENTS, NOT_IDENTIFIED, OK, Array, LawFit
from .observed import Cells

HUBER = 1.345  # times the spread: 95 % of the efficiency of least squares where the noise is normal (Huber 1964)
MAD = 1.4826  # times the median absolute residual: the standard deviation of normal noise
ROUNDS = 30
SETTLED = 1e-6  # relative change of the spread


def fit_robust(cells: Cells, saturated_below: float = 0.69) -> LawFit:
    """Fit dL = C r^alpha l^-beta + b on (y - f) / y, with Huber's loss at 1.345 MAD, the spread estimated along.

    Intervals come from the sandwich covariance; they take the cells as independent.

    Args:
        cells: their `sd` divides the residuals.
        saturated_below: a cell whose final loss is at or below this (nats per token) is left out.
    """
    kept = ~law.saturated(cells.final, saturated_below)
    start = law.fit_paper(cells.rank, cells.length, cells.delta, cells.final, saturated_below)
    if start.status == NOT_IDENTIFIED:
        return start
    r, length, d, sd = (values[kept] for values in (cells.rank, cells.length, cells.delta, cells.sd))
    if (d <= 0).any():
        return law.unidentified("a gain is not above 0: relative residuals need gains above 0", kept)
    mean_r, mean_l, level = float(np.log(r).mean()), float(np.log(length).mean()), float(np.median(d))
    x, y, scaled, weight = np.log(r) - mean_r, np.log(length) - mean_l, d / level, level / (d * sd)
    theta = np.array([0.0, start.alpha, start.beta, start.b / level])
    theta[0] = math.log(start.C / level) + start.alpha * mean_r - start.beta * mean_l
    spread = 0.0
    for _ in range(ROUNDS):
        residual = (law.powers(theta, x, y) - scaled) * weight
        before, spread = spread, max(MAD * float(np.median(np.abs(residual))), 1e-12)
        if abs(spread - before) <= SETTLED * spread:
            break
        theta = _polish(theta, x, y, scaled, weight=weight, turn=HUBER * spread)
    c, alpha, beta, offset = theta.tolist()
    C, bound = level * law.safe_exp(c - alpha * mean_r + beta * mean_l), law.bound_reason(alpha, beta)
    covariance = np.full((4, 4), math.nan)
    if not bound:
        back = np.diag([C, 1.0, 1.0, level])
        back[0, 1:3] = -C * mean_r, C * mean_l
        covariance = back @ _sandwich(theta, x, y, scaled, weight=weight, turn=HUBER * spread) @ back.T
    predicted = level * law.powers(theta, x, y)
    r2 = 1 - float(((d - predicted) ** 2).sum()) / float(((d - d.mean()) ** 2).sum())
    n, status = int(kept.sum()), BOUND_HIT if bound else OK
    error, deviation = law.percent_error(d, predicted), MAD * float(np.median(np.abs(d - predicted)))
    return LawFit(status, bound, C, alpha, beta, offset * level, covariance, r2, error, n, len(kept) - n, kept, deviation)


def _polish(start: Array, x: Array, y: Array, d: Array, *, weight: Array, turn: float) -> Array:
    low, high = EXPONENTS
    bounds = np.array([[-np.inf, low, low, -np.inf], [np.inf, high, high, np.inf]])

    def residuals(theta: Array) -> Array:
        return (law.powers(theta, x, y) - d) * weight / turn

    def slopes(theta: Array) -> Array:
        return law.slopes_of(theta, x, y) * (weight / turn)[:, None]

    found = optimize.least_squares(
        residuals,
        np.clip(start, bounds[0], bounds[1]),
        jac=slopes,
        bounds=(bounds[0], bounds[1]),
        loss="huber",
        x_scale="jac",
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
    )
    return np.asarray(found.x)


def _sandwich(theta: Array, x: Array, y: Array, d: Array, *, weight: Array, turn: float) -> Array:
    """Huber's covariance of an M-estimator: residuals beyond `turn` pull with that force and no more."""
    jacobian = law.slopes_of(theta, x, y) * weight[:, None]
    residual = (law.powers(theta, x, y) - d) * weight
    pull = np.clip(residual, -turn, turn)
    bread = np.linalg.pinv((jacobian * (np.abs(residual) <= turn)[:, None]).T @ jacobian)
    meat = (jacobian * pull[:, None] ** 2).T @ jacobian * len(d) / (len(d) - len(theta))
    return np.asarray(bread @ meat @ bread)
