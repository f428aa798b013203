"""When is a target recalled whole? A logistic law of rank and length, apart from the law of the gain.

    P(exact recall) = 1 / (1 + exp(-(a + g log r - h log l)))

A mean loss below ln 2 does not make recall exact: one stubborn token breaks it. So recall has its own model, on the share of
samples that greedy decoding gives back whole. Firth's penalty (1993) keeps it finite where ranks split cleanly into those
that recall and those that do not, as they often do.

Shapes: B problems (bootstrap draws), N cells, 3 parameters a, g, h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from pml_cli.io import finite_or_none
from pml_cli.law import power_law
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import NOT_IDENTIFIED, OK
from pml_cli.stats import FEW_CLUSTERS, Array, few_cluster_factor

NAMES = ("a", "g", "h")
ROUNDS = 60
STEP = 5.0  # largest change of a parameter in one round
TOLERANCE = 1e-8
DRAWS = 1000


@dataclass(frozen=True)
class RecallFit:
    """The law of exact recall, or the reason why there is none."""

    status: str  # OK | NOT_IDENTIFIED
    reason: str
    theta: Array  # (3,) a, g, h
    draws: Array  # (D, 3) of the clustered bootstrap; those in which recall rises with rank and falls with length
    n: int  # cells
    exact: int  # cells recalled whole
    clusters: int  # texts x lengths
    gaps: tuple[
        float, float
    ]  # between neighbours among the ranks and the lengths tried, on logs, the median

    def chances(self, rank: float, length: float) -> Array:
        """Probability that a sample is recalled whole, (1 + D,): of the fit and of the draws."""
        a, g, h = self._thetas
        return np.asarray(special.expit(self._widened(a + g * np.log(rank) - h * np.log(length))))

    def log_ranks(self, length: float, chance: float) -> Array:
        """Log of the rank at which that chance is reached, (1 + D,): of the fit and of the draws."""
        a, g, h = self._thetas
        return self._widened((special.logit(chance) - a + h * np.log(length)) / g, self.gaps[0])

    def log_lengths(self, rank: float, chance: float) -> Array:
        """Log of the length up to which that chance is kept, (1 + D,): of the fit and of the draws."""
        a, g, h = self._thetas
        return self._widened((a + g * np.log(rank) - special.logit(chance)) / h, self.gaps[1])

    @property
    def _thetas(self) -> Array:
        return np.asarray(np.concatenate([self.theta[None], self.draws]).T)

    def _widened(self, values: Array, gap: float = 0.0) -> Array:
        """Draws of few clusters vary too little, and tell nothing finer than the steps between the values tried."""
        few = self.clusters < FEW_CLUSTERS
        blur = np.random.default_rng(0).uniform(-gap / 2, gap / 2, len(values) - 1) if few else 0.0
        draws = values[:1] + few_cluster_factor(self.clusters) * (values[1:] - values[:1]) + blur
        return np.asarray(np.concatenate([values[:1], draws]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the draws are apart."""
        values = {
            name: finite_or_none(value)
            for name, value in zip(NAMES, self.theta.tolist(), strict=True)
        }
        gaps = dict(zip(("rank", "length"), map(finite_or_none, self.gaps), strict=True))
        return {"status": self.status, "reason": self.reason, "parameters": values, "n": self.n, "exact": self.exact,
                "clusters": self.clusters, "gaps": gaps, "draws": len(self.draws)}  # fmt: skip


def fit_recall(
    cells: Observations, exact: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> RecallFit:
    """Fit the chance of exact recall, with a bootstrap of the clusters (text and length).

    Args:
        exact: share of each cell's samples that are recalled whole, (N,), 0 to 1; nan where not measured.
    """
    shares = np.asarray(exact, float)
    seen = np.isfinite(shares)
    cells, shares = cells.take(seen), shares[seen]
    whole, count = int((shares == 1).sum()), len(cells)
    problem = _problem(cells, shares)
    cluster, clusters = cells.clusters
    told = count, whole, clusters, (_gap(cells.rank), _gap(cells.length))
    nothing = np.full(3, np.nan), np.empty((0, 3)), *told
    if problem:
        return RecallFit(NOT_IDENTIFIED, problem, *nothing)
    x, centre = _design(cells)
    theta = _firth(x, shares, np.ones((1, count)))
    found = _uncentred(theta, centre)[0]
    if not (found[1] > 0 and found[2] > 0):
        return RecallFit(
            NOT_IDENTIFIED,
            "exact recall does not rise with rank and fall with length here",
            *nothing,
        )
    if not draws:
        return RecallFit(OK, "", found, np.empty((0, 3)), *told)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(clusters, np.full(clusters, 1 / clusters), draws).astype(float)[
        :, cluster
    ]
    sample = _uncentred(_firth(x, shares, weights), centre)
    good = np.isfinite(sample).all(axis=1) & (sample[:, 1] > 0) & (sample[:, 2] > 0)
    return RecallFit(OK, "", found, sample[good], *told)


def _gap(values: Array) -> float:
    steps = np.diff(np.log(np.unique(values)))
    return float(np.median(steps)) if len(steps) else math.nan


def _problem(cells: Observations, shares: Array) -> str:
    if not len(cells):
        return "no cell says whether it was recalled"
    if (shares < 0.5).all():
        return "no cell is recalled whole: larger ranks or shorter texts would show where recall begins"
    if (shares >= 0.5).all():
        return "every cell is recalled whole: smaller ranks or longer texts would show where recall ends"
    for name, values in (("rank", cells.rank), ("length", cells.length)):
        if len(np.unique(values)) < power_law.MIN_VALUES:
            return (
                f"only {len(np.unique(values))} distinct {name}s; {power_law.MIN_VALUES} are needed"
            )
    return ""


def _design(cells: Observations) -> tuple[Array, Array]:
    """(N, 3) with 1, log rank, -log length, the logs centred; and the centres."""
    logs = np.stack([np.log(cells.rank), -np.log(cells.length)], axis=1)
    centre = logs.mean(axis=0)
    return np.concatenate([np.ones((len(cells), 1)), logs - centre], axis=1), centre


def _uncentred(theta_B3: Array, centre: Array) -> Array:
    out = theta_B3.copy()
    out[:, 0] -= theta_B3[:, 1:] @ centre
    return out


def _firth(x_N3: Array, share_N: Array, weights_BN: Array) -> Array:
    """Maximum of the likelihood times the root of the information's determinant, (B, 3)."""
    theta = np.zeros((len(weights_BN), 3))
    for _ in range(ROUNDS):
        p = special.expit(theta @ x_N3.T)
        w = p * (1 - p) * weights_BN
        information = np.einsum("bn,ni,nj->bij", w, x_N3, x_N3) + 1e-9 * np.eye(3)
        inverse = np.linalg.inv(information)
        leverage = w * np.einsum("ni,bij,nj->bn", x_N3, inverse, x_N3)
        score = (weights_BN * (share_N - p) + leverage * (0.5 - p)) @ x_N3
        step = np.clip(np.einsum("bij,bj->bi", inverse, score), -STEP, STEP)
        theta += step
        if np.abs(step).max() < TOLERANCE:
            break
    return theta
