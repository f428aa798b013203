"""The memory law and its estimator: pure functions of arrays (numpy and scipy alone).

One cell is one trained adapter: its rank, its target length l (tokens), its gain dL = base loss - final loss (nats a token).
The law is linear in (C, b) once the exponents are fixed, so the search is a grid over the two exponents, solved exactly at
every node (variable projection), and a polish of all four parameters from the best nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from pml_cli.io import finite_or_none
from pml_cli.stats import CONFIDENCE, Array, Mask, percent_error, safe_exp

OK, BOUND_HIT, NOT_IDENTIFIED = "OK", "BOUND_HIT", "NOT_IDENTIFIED"
PARAMETERS = ("C", "alpha", "beta", "b")
EXPONENTS = (
    0.01,
    5.0,
)  # bounds of alpha and beta; at 0 the power law turns into a logarithm and C, b run away
GRID = np.geomspace(0.02, 4.0, 32)
STARTS = 4  # grid nodes that are polished
MIN_VALUES = 3  # distinct ranks, and distinct lengths
MIN_CELLS = len(PARAMETERS) + 2
NEGATIVE_OFFSET = "a negative offset usually means saturation the law does not model"


@dataclass(frozen=True)
class LawFit:
    """A fitted law, or the reason why there is none.

    Standard errors, covariance and intervals are Gauss-Newton and naive: they take every cell as an independent draw with
    the same spread, so cells that share a text make them too narrow. They are nan unless the status is OK; the
    parameters, r2 and mape are nan when it is NOT_IDENTIFIED.
    """

    status: str  # OK | BOUND_HIT | NOT_IDENTIFIED
    reason: str  # in plain words; empty when OK
    C: float  # nats per token at rank 1, length 1, above b
    alpha: float
    beta: float
    b: float  # nats per token
    covariance: Array  # (4, 4), in the order of PARAMETERS
    r2: float  # over the kept cells
    mape: float  # mean absolute error over the kept cells, per cent of the measured gain
    n: int  # kept cells
    n_saturated: int  # cells left out
    kept: Mask  # (cells,)
    spread: float  # standard deviation of a kept cell around the law, nats per token

    @property
    def errors(self) -> dict[str, float]:
        """Standard error of each parameter."""
        return dict(zip(PARAMETERS, np.sqrt(np.diag(self.covariance)).tolist(), strict=True))

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % interval of each parameter, by Student's t with n - 4 degrees of freedom; that of C is symmetric in log C."""
        t = (
            float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - len(PARAMETERS)))
            if self.n > len(PARAMETERS)
            else math.nan
        )
        errors, spans = self.errors, {}
        for name in PARAMETERS:
            value, half = float(getattr(self, name)), t * errors[name]
            spans[name] = (value - half, value + half)
        factor = safe_exp(t * errors["C"] / self.C)
        return spans | {"C": (self.C / factor, self.C * factor)}

    @property
    def warnings(self) -> list[str]:
        """What the numbers say against the law, in plain words."""
        if self.status == OK and self.intervals["b"][1] < 0:
            low, high = self.intervals["b"]
            span = f"95 % interval {low:.3g} to {high:.3g}"
            return [f"b of the paper's form, {self.b:.3g} ({span}), is below 0: {NEGATIVE_OFFSET}"]
        return []

    def predict(self, rank: ArrayLike, length: ArrayLike) -> Array:
        """The law's gain in nats per token, broadcast over rank and length; nan when NOT_IDENTIFIED."""
        return gain(rank, length, C=self.C, alpha=self.alpha, beta=self.beta, b=self.b)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, at full precision; nan becomes None."""
        values = {name: getattr(self, name) for name in (*PARAMETERS, "r2", "mape")}
        return {
            "law": "dL = C * rank**alpha * length**-beta + b",
            "status": self.status,
            "reason": self.reason,
            **{name: finite_or_none(value) for name, value in values.items()},
            "standard_errors": {name: finite_or_none(value) for name, value in self.errors.items()},
            "intervals_95": {
                name: [finite_or_none(low), finite_or_none(high)]
                for name, (low, high) in self.intervals.items()
            },
            "covariance": [
                [finite_or_none(value) for value in row] for row in self.covariance.tolist()
            ],
            "spread": finite_or_none(self.spread),
            "n": self.n,
            "n_saturated": self.n_saturated,
            "kept": self.kept.tolist(),
            "warnings": self.warnings,
        }


@dataclass(frozen=True)
class HeldOut:
    """How well a law fitted on the small ranks and short lengths predicts the largest ranks and the longest lengths."""

    mape: float | None  # per cent, over the unsaturated cells left out; None with a reason
    reason: str
    ranks: tuple[float, ...]  # left out
    lengths: tuple[float, ...]
    n_fit: int
    n_test: int

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def gain(
    rank: ArrayLike, length: ArrayLike, *, C: float, alpha: float, beta: float, b: float
) -> Array:
    """dL(r, l) = C r^alpha l^-beta + b, in nats per token.

    Source: the parametric memory law of arXiv 2605.30260 (there alpha is about 0.6 and beta about 0.5).

    Args:
        rank: any shape that broadcasts with `length`; the adapter's rank, or another measure of its size.
        length: target tokens.
    """
    r, length_ = np.asarray(rank, float), np.asarray(length, float)
    return np.asarray(C * r**alpha * length_**-beta + b, float)


def saturated(final_loss: ArrayLike, below: float = 0.69) -> Mask:
    """Cells that the paper's fit leaves out: a final loss at or below `below` nats per token (about ln 2)."""
    return np.asarray(np.asarray(final_loss, float) <= below, bool)


def fit_paper(
    rank: ArrayLike,
    length: ArrayLike,
    delta: ArrayLike,
    final_loss: ArrayLike,
    saturated_below: float = 0.69,
) -> LawFit:
    """Fit dL = C r^alpha l^-beta + b as arXiv 2605.30260 does: drop saturated cells, plain least squares on the rest.

    Args:
        rank, length, delta, final_loss: one value a cell, all of one length; delta and final_loss in nats per token.
        saturated_below: a cell whose final loss is at or below this is left out.

    Raises:
        ValueError: arrays of different lengths, values that are not finite, ranks or lengths that are not positive.
    """
    r, length_, d, final = _checked(rank, length, delta, final_loss)
    kept = ~saturated(final, saturated_below)
    problem = unfit(r[kept], length_[kept], d[kept])
    if problem:
        return unidentified(problem, kept)
    return _fitted(r, length_, d, kept)


def held_out(
    rank: ArrayLike,
    length: ArrayLike,
    delta: ArrayLike,
    final_loss: ArrayLike,
    saturated_below: float = 0.69,
) -> HeldOut:
    """Fit without the largest quarter of the ranks and the longest quarter of the lengths, and predict the cells left out.

    Only unsaturated cells count, on both sides. An axis with fewer than four distinct values is not cut.

    Args and errors: as `fit_paper`.
    """
    r, length_, d, final = _checked(rank, length, delta, final_loss)
    use = ~saturated(final, saturated_below)
    ranks, lengths = largest(r[use]), largest(length_[use])
    left_out = use & (np.isin(r, ranks) | np.isin(length_, lengths))
    inside = use & ~left_out
    sizes = int(inside.sum()), int(left_out.sum())
    if not left_out.any():
        reason = f"needs {MIN_VALUES + 1} distinct unsaturated ranks or lengths, to leave the largest out"
        return HeldOut(None, reason, ranks, lengths, *sizes)
    fit = fit_paper(r[inside], length_[inside], d[inside], final[inside], saturated_below)
    if fit.status == NOT_IDENTIFIED:
        return HeldOut(
            None, f"the cells that remain do not carry a fit: {fit.reason}", ranks, lengths, *sizes
        )
    error = percent_error(d[left_out], fit.predict(r[left_out], length_[left_out]))
    return HeldOut(error, "", ranks, lengths, *sizes)


def largest(values: Array) -> tuple[float, ...]:
    """The largest quarter of the distinct values, at least one, as long as enough for a fit remain."""
    distinct = np.unique(values)
    count = min(max(1, len(distinct) // 4), max(0, len(distinct) - MIN_VALUES))
    return tuple(distinct[len(distinct) - count :].tolist())


def _checked(*columns: ArrayLike) -> tuple[Array, ...]:
    arrays = tuple(np.asarray(column, float).ravel() for column in columns)
    if len({len(array) for array in arrays}) != 1:
        raise ValueError(
            f"rank, length, delta and final_loss differ in length: {[len(array) for array in arrays]}"
        )
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("rank, length, delta and final_loss must be finite")
    if (arrays[0] <= 0).any() or (arrays[1] <= 0).any():
        raise ValueError("rank and length must be above 0")
    return arrays


def unfit(r: Array, length: Array, d: Array) -> str:
    """Why these kept cells cannot tell the four parameters apart; empty when they can."""
    for name, values in (("rank", np.unique(r)), ("length", np.unique(length))):
        if len(values) < MIN_VALUES:
            plural = "" if len(values) == 1 else "s"
            shown = f" ({', '.join(f'{v:g}' for v in values)})" if len(values) else ""
            exponent = "alpha" if name == "rank" else "beta"
            return (
                f"only {len(values)} distinct unsaturated {name}{plural}{shown}: {exponent} cannot be told from b; "
                f"{MIN_VALUES} are needed"
            )
    if len(d) < MIN_CELLS:
        return f"only {len(d)} unsaturated cells for four parameters; {MIN_CELLS} are needed"
    if np.ptp(d) <= 1e-12 * np.abs(d).max():
        return "every cell has the same gain: there is nothing to fit"
    if abs(np.corrcoef(np.log(r), np.log(length))[0, 1]) > 0.9999:
        return "rank and length change together in every cell: alpha cannot be told from beta; run a grid of both"
    return ""


def _fitted(r: Array, length: Array, d_all: Array, kept: Mask) -> LawFit:
    d, n = d_all[kept], int(kept.sum())
    # Centred logs, and a gain scaled to its spread: the four parameters then have comparable sizes.
    mean_r, mean_l = np.log(r[kept]).mean(), np.log(length[kept]).mean()
    x, y, spread = np.log(r[kept]) - mean_r, np.log(length[kept]) - mean_l, float(np.ptp(d))
    theta = _polish(x, y, d / spread)
    c, alpha, beta, offset = theta.tolist()
    C = spread * safe_exp(c - alpha * mean_r + beta * mean_l)
    residual = d - spread * powers(theta, x, y)
    bound = bound_reason(alpha, beta)
    covariance = np.full((4, 4), np.nan)
    if not bound:
        # From (c, alpha, beta, offset) to PARAMETERS: C moves with all of the first three.
        turn = np.diag([C, 1.0, 1.0, spread])
        turn[0, 1:3] = -C * mean_r, C * mean_l
        covariance = turn @ _covariance(theta, x, y, residual / spread) @ turn.T
    r2 = 1 - float(residual @ residual) / float(((d - d.mean()) ** 2).sum())
    status = BOUND_HIT if bound else OK
    error = percent_error(d, d - residual)
    deviation = math.sqrt(float(residual @ residual) / (n - len(PARAMETERS)))
    counts = n, int((~kept).sum())
    return LawFit(
        status,
        bound,
        C,
        alpha,
        beta,
        offset * spread,
        covariance,
        r2,
        error,
        *counts,
        kept,
        deviation,
    )


def _polish(x: Array, y: Array, d: Array) -> Array:
    """The least sum of squares over theta = (log C, alpha, beta, b), from the best nodes of the projected grid."""
    low, high = EXPONENTS
    bounds = ([-np.inf, low, low, -np.inf], [np.inf, high, high, np.inf])

    def residuals(theta: Array) -> Array:
        return powers(theta, x, y) - d

    def slopes(theta: Array) -> Array:
        return slopes_of(theta, x, y)

    found = [
        optimize.least_squares(
            residuals,
            start,
            jac=slopes,
            bounds=bounds,
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
            max_nfev=2000,
        )
        for start in _starts(x, y, d)
    ]
    best: Array = min(found, key=lambda result: float(result.cost)).x
    return best


def _starts(x: Array, y: Array, d: Array) -> list[Array]:
    """The STARTS best nodes of the exponent grid, each with its exact (log C, b)."""
    centred = d - d.mean()
    nodes: list[tuple[float, Array]] = []
    for alpha in GRID:
        g = np.exp(alpha * x - np.outer(GRID, y))  # (beta nodes, cells)
        h = g - g.mean(axis=1, keepdims=True)
        # The law's C is positive: where the best slope is not, the node is as good as the mean alone.
        slope = np.maximum(h @ centred / np.maximum((h**2).sum(axis=1), 1e-300), 1e-9)
        offset = d.mean() - slope * g.mean(axis=1)
        cost = ((centred - slope[:, None] * h) ** 2).sum(axis=1)
        for k in np.argsort(cost)[:2]:
            nodes.append(
                (float(cost[k]), np.array([math.log(slope[k]), alpha, GRID[k], offset[k]]))
            )
    nodes.sort(key=lambda node: node[0])
    return [theta for _, theta in nodes[:STARTS]]


def powers(theta: Array, x: Array, y: Array) -> Array:
    values: Array = np.exp(theta[0] + theta[1] * x - theta[2] * y) + theta[3]
    return values


def slopes_of(theta: Array, x: Array, y: Array) -> Array:
    power = np.exp(theta[0] + theta[1] * x - theta[2] * y)
    return np.stack([power, power * x, -power * y, np.ones_like(x)], axis=1)


def _covariance(theta: Array, x: Array, y: Array, residual: Array) -> Array:
    """Gauss-Newton: s^2 (J'J)^-1, by the singular values of J with its columns scaled (J'J would square the condition)."""
    jacobian = slopes_of(theta, x, y)
    scale = np.linalg.norm(jacobian, axis=0)
    _, singular, right = np.linalg.svd(jacobian / scale, full_matrices=False)
    root = (right.T / singular) / scale[:, None]
    covariance: Array = root @ root.T * float(residual @ residual) / (len(x) - len(theta))
    return covariance


def bound_reason(alpha: float, beta: float) -> str:
    low, high = EXPONENTS
    for name, value, axis in (("alpha", alpha, "rank"), ("beta", beta, "length")):
        if value <= low * 1.01:
            return f"{name} stops at its least value, {low:g}: the gain does not follow a power of {axis} in these cells"
        if value >= high * 0.999:
            return f"{name} stops at its largest value, {high:g}: the gain jumps with {axis} instead of following a power of it"
    return ""


def unidentified(reason: str, kept: Mask) -> LawFit:
    nan, n = math.nan, int(kept.sum())
    return LawFit(
        NOT_IDENTIFIED,
        reason,
        nan,
        nan,
        nan,
        nan,
        np.full((4, 4), nan),
        nan,
        nan,
        n,
        len(kept) - n,
        kept,
        nan,
    )
