"""Estimators: from cells to a fitted law with a status and a reason.

`fit_saturating` uses every cell (censored maximum likelihood, `scoring`). The paper's own estimator is `power_law.fit_paper`, a
robust one for the same law `robust.fit_robust`.

For given exponents the rest of a law is easy: every node of a grid of exponents is first solved for the rest alone (variable
projection), and the best nodes are polished in all parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pml_cli.io import finite_or_none
from pml_cli.law import power_law
from pml_cli.law.forms import (
    ALPHA,
    BETA,
    FLOOR,
    HIGH,
    LEVEL,
    LOG_K,
    LOG_S,
    LOW,
    PARAMETERS,
    B,
    C,
    Form,
    log_gain,
    log_gain_slopes,
    spread_share,
)
from pml_cli.law.likelihood import Design, derivatives, minimise, scores
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import BOUND_HIT, NOT_IDENTIFIED, OK
from pml_cli.stats import CONFIDENCE, LN2, Array, Mask, percent_error, r_squared, safe_exp

GRID = np.geomspace(0.05, 2.5, 8)  # exponents at the nodes
GRID_K = (1.5, 5.0)
POLISHED = 5  # nodes
NATURAL = ("C", "alpha", "beta", "b", "k", "floor", "level", "spread")
ON_LOGS = ("C", "k", "spread")  # their intervals are symmetric in the logarithm


@dataclass(frozen=True)
class SaturatingFit:
    """A saturating law fitted to all cells, or the reason why there is none.

    The covariance is the inverse of the information: it takes every cell as an independent draw. `uncertainty.bootstrap`
    does not. Parameters that are not free in the form have no variance; all are nan when the status is NOT_IDENTIFIED.
    """

    form: Form
    status: str  # OK | BOUND_HIT | NOT_IDENTIFIED
    reason: str  # in plain words; a note when OK
    theta: Array  # (8,) in the order of saturation.PARAMETERS
    centre: tuple[float, float]  # mean log rank and log length, where C is centred
    covariance: Array  # (8, 8) of theta, from the information; nan unless OK
    clustered: Array  # (8, 8), from the scores of the clusters: it holds where cells that share text and length are alike
    clusters: int
    nll: float  # negative log-likelihood, a sum over the cells
    n: int  # cells
    n_saturated: int  # of them censored
    r2: float  # over the unsaturated cells, as for the paper's fit
    mape: float  # per cent of the measured gain, over the unsaturated cells
    r2_all: float  # over every cell
    mape_all: float
    fingerprint: str = field(repr=False)  # of the cells

    @property
    def parameters(self) -> dict[str, float]:
        """C, alpha, beta, and those of b, k, floor and level that the form has, and the relative spread."""
        values = natural(self.theta[None], self.centre)[0]
        return {NATURAL[p]: float(values[p]) for p in sorted({*self.form.free, BETA})}

    @property
    def aicc(self) -> float:
        """Akaike's criterion with its small-sample term; nan where there is no fit or too few cells."""
        p = len(self.form.free)
        return (
            2 * self.nll + 2 * p + 2 * p * (p + 1) / (self.n - p - 1)
            if self.n > p + 1
            else math.nan
        )

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals from the covariance: naive where cells share texts."""
        turned = turn(self.centre) @ self.covariance @ turn(self.centre).T
        half = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(np.diag(turned))
        middle = on_scale(natural(self.theta[None], self.centre))[0]
        return spans(middle - half, middle + half, self.form)

    def predict(self, rank: ArrayLike, length: ArrayLike, base: ArrayLike) -> Array:
        """Gain in nats per token, broadcast; never above `base` unless the form has no link."""
        r, length_, base_ = np.broadcast_arrays(
            *(np.asarray(v, float) for v in (rank, length, base))
        )
        x, y = np.log(r.ravel()) - self.centre[0], np.log(length_.ravel()) - self.centre[1]
        found = np.exp(log_gain(self.theta[None], x, y, base_.ravel(), self.form.link))[0]
        return np.asarray(found.reshape(r.shape))

    def band(self, rank: ArrayLike, length: ArrayLike, base: ArrayLike) -> tuple[Array, Array]:
        """Where 95 % of new cells fall, (N,) low and high: the spread of a cell and the error of the parameters.

        That error is the larger of the naive and the clustered one, with Student's t of as many degrees as there are
        clusters, less one.
        """
        r, length_, base_ = (
            np.asarray(v, float).ravel() for v in np.broadcast_arrays(rank, length, base)
        )
        x, y = np.log(r) - self.centre[0], np.log(length_) - self.centre[1]
        places = tuple(p for p in self.form.free if p != LOG_S)
        value, slopes = log_gain_slopes(
            self.theta[None], x, y, base_, link=self.form.link, wanted=places
        )
        squares = [
            _quadratic(slopes[0], matrix[np.ix_(places, places)])
            for matrix in (self.covariance, self.clustered)
        ]
        freedom = max(1, self.n - self.n_saturated - len(self.form.free)), max(1, self.clusters - 1)
        of_cell, of_law = (float(stats.t.ppf((1 + CONFIDENCE) / 2, f)) for f in freedom)
        share = spread_share(self.theta[None], x, y, base_, self.form.link)[0]
        half = np.sqrt(
            (of_cell * np.exp(self.theta[LOG_S]) * share) ** 2 + of_law**2 * np.maximum(*squares)
        )
        middle = np.exp(value[0])
        high = middle * (1 + half)
        return middle * np.maximum(0, 1 - half), high if self.form.link == "none" else np.minimum(
            high, base_
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON at full precision; nan becomes None."""
        names = ("nll", "aicc", "r2", "mape", "r2_all", "mape_all")
        return {
            "name": self.form.name,
            "law": self.form.formula,
            "form": asdict(self.form),
            "estimator": "censored maximum likelihood, all cells",
            "status": self.status,
            "reason": self.reason,
            "parameters": {name: finite_or_none(value) for name, value in self.parameters.items()},
            "intervals_95_naive": {
                n: [finite_or_none(low), finite_or_none(high)]
                for n, (low, high) in self.intervals.items()
            },
            "theta": {
                name: finite_or_none(value)
                for name, value in zip(PARAMETERS, self.theta.tolist(), strict=True)
            },
            "centre": {"log_rank": self.centre[0], "log_length": self.centre[1]},
            "covariance": [
                [finite_or_none(value) for value in row] for row in self.covariance.tolist()
            ],
            "covariance_clustered": [
                [finite_or_none(value) for value in row] for row in self.clustered.tolist()
            ],
            "clusters": self.clusters,
            **{name: finite_or_none(getattr(self, name)) for name in names},
            "n": self.n,
            "n_saturated": self.n_saturated,
            "cells_sha256": self.fingerprint,
        }


def fit_saturating(cells: Observations, form: Form) -> SaturatingFit:
    """Censored maximum likelihood on all cells; those at or below ln 2 count as "at least this much was gained".

    A Hill link whose k runs to its upper bound is the hard link: that one is returned, with a note.
    """
    centre = (
        (float(np.log(cells.rank).mean()), float(np.log(cells.length).mean()))
        if len(cells)
        else (0.0, 0.0)
    )
    problem = _problem(cells, form)
    if problem:
        return _unidentified(cells, form, centre, problem)
    design = design_of(cells, centre)
    theta, value = minimise(_starts(design, form), design, form)
    best = int(np.argmin(value))
    if not math.isfinite(value[best]):
        return _unidentified(
            cells, form, centre, "no values of its parameters give every cell a gain"
        )
    found = theta[best]
    if form.link == "hill" and found[LOG_K] >= HIGH[LOG_K] - 1e-6:
        hard = fit_saturating(cells, replace(form, link="hard"))
        return replace(
            hard, reason=hard.reason or "the Hill link runs to its sharpest: it is the hard one"
        )
    return _result(cells, form, design, centre=centre, theta=found, nll=float(value[best]))


def design_of(cells: Observations, centre: tuple[float, float]) -> Design:
    """The cells as the likelihood sees them, their logs centred at `centre`."""
    x, y = np.log(cells.rank) - centre[0], np.log(cells.length) - centre[1]
    return Design(x, y, cells.base, cells.delta, cells.base - LN2, cells.saturated, cells.sd)


def natural(theta_BP: Array, centre: tuple[float, float]) -> Array:
    """Parameters in the order of NATURAL, (B, 8), from those of the fit."""
    out = theta_BP @ turn(centre).T
    return np.asarray(np.where(_is_log(), np.exp(np.minimum(out, 700)), out))


def turn(centre: tuple[float, float]) -> Array:
    """(8, 8): from centred c to log C at rank 1 and length 1; the rest stays."""
    matrix = np.eye(len(PARAMETERS))
    matrix[C, ALPHA], matrix[C, BETA] = -centre[0], centre[1]
    return matrix


def on_scale(values: Array) -> Array:
    """Natural parameters (..., 8) on the scale on which their intervals are symmetric."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(_is_log(), np.log(values), values))


def spans(low: Array, high: Array, form: Form) -> dict[str, tuple[float, float]]:
    """Intervals of the free parameters from their ends (8,) on that scale."""
    found = {}
    for p in form.free:
        ends = float(low[p]), float(high[p])
        found[NATURAL[p]] = (
            (safe_exp(ends[0]), safe_exp(ends[1])) if NATURAL[p] in ON_LOGS else ends
        )
    return found


def _is_log() -> Mask:
    return np.isin(NATURAL, ON_LOGS)


def _quadratic(slopes: Array, covariance: Array) -> Array:
    return np.asarray(np.maximum(0, np.einsum("nf,fg,ng->n", slopes, covariance, slopes)))


def _problem(cells: Observations, form: Form) -> str:
    """Why these cells cannot carry this form; empty when they can."""
    seen = ~cells.saturated
    found = power_law.unfit(cells.rank[seen], cells.length[seen], cells.delta[seen])
    if found:
        return found
    if (cells.delta[seen] <= 0).any():
        return "a gain is not above 0: relative residuals need gains above 0"
    least = len(form.free) + 1
    return (
        f"only {seen.sum()} unsaturated cells for {least - 1} parameters; {least} are needed"
        if seen.sum() < least
        else ""
    )


def _starts(design: Design, form: Form) -> Array:
    """The best nodes of the exponent grid, each solved for the scale, the offset and the spread alone: (S, 8)."""
    betas: Sequence[float] = GRID.tolist() if form.beta is None else [form.beta]
    nodes = np.array(
        list(itertools.product(GRID, betas, GRID_K if form.link == "hill" else (2.0,)))
    )
    seen = ~design.censored
    theta = np.zeros((len(nodes), len(PARAMETERS)))
    theta[:, ALPHA], theta[:, BETA], theta[:, LOG_K] = nodes[:, 0], nodes[:, 1], np.log(nodes[:, 2])
    theta[:, FLOOR] = 0.2 if form.floor else 0.0
    inner = design.delta[seen]
    if form.level:
        start = 0.8 * float(design.base.mean())
        theta[:, LEVEL] = start
        inner = start * np.log(
            np.maximum(start / (design.base - design.delta)[seen], 1.05)
        )  # as if the link were exp
    level = np.log(inner) - nodes[:, :1] * design.x[seen] + nodes[:, 1:2] * design.y[seen]
    theta[:, C], theta[:, LOG_S] = (
        np.median(level, axis=1),
        np.log(np.maximum(level.std(axis=1), 1e-3)),
    )
    quick = tuple(p for p in form.free if p in (C, B, LOG_S, LEVEL))
    theta, value = minimise(theta, design, form, free=quick, iterations=8)
    return theta[np.argsort(value)[:POLISHED]]


def _unidentified(
    cells: Observations, form: Form, centre: tuple[float, float], reason: str
) -> SaturatingFit:
    nan, square = math.nan, np.full((len(PARAMETERS),) * 2, math.nan)
    found = np.full(len(PARAMETERS), nan), centre, square, square, cells.clusters[1], nan
    counts = len(cells), int(cells.saturated.sum())
    return SaturatingFit(
        form, NOT_IDENTIFIED, reason, *found, *counts, nan, nan, nan, nan, cells.fingerprint
    )


def _result(
    cells: Observations,
    form: Form,
    design: Design,
    *,
    centre: tuple[float, float],
    theta: Array,
    nll: float,
) -> SaturatingFit:
    bound = power_law.bound_reason(theta[ALPHA], theta[BETA]) or _link_bound(
        theta, form, float(cells.base.max())
    )
    naive = clustered = np.full((len(PARAMETERS),) * 2, math.nan)
    if not bound:
        naive, clustered, mute = _covariances(cells, form, design, theta)
        if mute:
            return _unidentified(cells, form, centre, f"these cells say nothing about {mute}")
    predicted = np.exp(log_gain(theta[None], design.x, design.y, design.base, form.link))[0]
    quality = [
        _quality(cells.delta[mask], predicted[mask])
        for mask in (~cells.saturated, np.ones(len(cells), bool))
    ]
    found = theta, centre, naive, clustered, cells.clusters[1], nll
    counts = len(cells), int(cells.saturated.sum())
    status = BOUND_HIT if bound else OK
    return SaturatingFit(
        form, status, bound, *found, *counts, *quality[0], *quality[1], cells.fingerprint
    )


def _covariances(
    cells: Observations, form: Form, design: Design, theta: Array
) -> tuple[Array, Array, str]:
    """Two (8, 8) covariances, from the information and the sandwich of cluster scores; or the parameter that has none."""
    free = np.array(form.free)
    cluster, count = cells.clusters
    _, information = derivatives(theta[None], design, form, np.ones((1, 1)), free)
    of_cluster = np.zeros((count, len(free)))
    np.add.at(of_cluster, cluster, scores(theta, design, form, free))
    scale = np.sqrt(np.diag(information[0]))
    if (scale <= 1e-9).any():
        return information[0], information[0], NATURAL[free[int(np.argmin(scale))]]
    inverse = np.linalg.pinv(information[0] / np.outer(scale, scale), hermitian=True)
    scaled = of_cluster / scale
    out = np.zeros((2, len(PARAMETERS), len(PARAMETERS)))
    place = np.ix_(free, free)
    out[0][place] = inverse / np.outer(scale, scale)
    out[1][place] = (
        inverse @ (scaled.T @ scaled) @ inverse / np.outer(scale, scale) * count / max(1, count - 1)
    )
    return out[0], out[1], ""


def _link_bound(theta: Array, form: Form, base: float) -> str:
    """What is wrong with the rest of a law; `base`: the largest base loss, nats per token."""
    if form.link == "hill" and theta[LOG_K] <= LOW[LOG_K] + 1e-6:
        return "k stops at its least value: the gain bends earlier than a Hill link can"
    if form.floor and theta[FLOOR] <= 1e-9:
        return "the floor stops at 0: these cells need none"
    if form.level and theta[LEVEL] <= 1e-6:
        return "the level stops at 0: these cells tell of none"
    if form.level and theta[LEVEL] > base:
        return f"its level, {theta[LEVEL]:.3g}, lies above every base loss, where an adapter that holds nothing stands"
    return ""


def _quality(measured: Array, predicted: Array) -> tuple[float, float]:
    """R2 and MAPE."""
    return r_squared(measured, predicted), percent_error(measured, predicted)
