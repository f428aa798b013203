"""When is a target recalled exactly? A logistic law of size and length, beside that of the gain.

    P(exact recall) = 1 / (1 + exp(-(a + g log r - h log l)))

A mean loss below ln 2 does not make recall exact: one token with p < 1/2 breaks it. So recall has
its own model, of the share of samples that greedy decoding reproduces. Firth's penalty (1993) keeps
it finite where ranks separate completely into those that recall and those that do not, as they
often do.

Shapes: B problems, N cells, D draws, 3 parameters a, g, h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from pml_cli.law.findings import NOT_IDENTIFIED, OK, Finding, finding
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import MIN_DISTINCT
from pml_cli.stats import FEW_CLUSTERS, Array, Mask, few_cluster_factor

NAMES = ("a", "g", "h")

# Newton steps at most, the largest change of a parameter in one, and the change that ends them.
NEWTON_STEPS = 60
LARGEST_STEP = 5.0
TOLERANCE = 1e-8

# Bootstrap draws.
DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class RecallFit:
    """The law of exact recall, or the finding that says why there is none."""

    status: str
    """OK or NOT_IDENTIFIED."""
    finding: Finding | None
    theta: Array
    """(3,) a, g, h."""
    draws: Array
    """(D, 3) of the cluster bootstrap: draws in which recall rises with size, falls with length."""
    n: int
    """Cells."""
    exact: int
    """Cells of which every sample is recalled exactly."""
    clusters: int
    """Texts times lengths."""
    rank_step: float
    """Median step between the ranks tried, on logs."""
    length_step: float
    """Median step between the lengths tried, on logs."""

    def probabilities(self, rank: float, length: float) -> Array:
        """Probability of exact recall, (1 + D,): of the fit and of the draws."""
        a, g, h = self._thetas
        logit = a + g * np.log(rank) - h * np.log(length)
        return np.asarray(special.expit(self._widened(logit)))

    def log_ranks(self, length: float, probability: float) -> Array:
        """Log of the rank that reaches the probability, (1 + D,): of the fit and of the draws."""
        a, g, h = self._thetas
        needed = special.logit(probability)
        log_rank = (needed - a + h * np.log(length)) / g
        return self._widened(log_rank, self.rank_step)

    def log_lengths(self, rank: float, probability: float) -> Array:
        """Log of the length that keeps the probability, (1 + D,): of the fit and of the draws."""
        a, g, h = self._thetas
        needed = special.logit(probability)
        log_length = (a + g * np.log(rank) - needed) / h
        return self._widened(log_length, self.length_step)

    @property
    def _thetas(self) -> Array:
        """(3, 1 + D) the fit and the draws."""
        rows = np.concatenate([self.theta[None], self.draws])
        return np.asarray(rows.T)

    def _widened(self, values: Array, step: float = 0.0) -> Array:
        """The draws spread as few clusters require, (1 + D,).

        Few clusters locate the threshold no finer than the steps between the values tried: draws
        are blurred by a uniform step.
        """
        fitted = values[:1]
        deviation = few_cluster_factor(self.clusters) * (values[1:] - fitted)
        draws = fitted + deviation

        if self.clusters < FEW_CLUSTERS:
            rng = np.random.default_rng(0)
            draws = draws + rng.uniform(-step / 2, step / 2, len(draws))
        return np.asarray(np.concatenate([fitted, draws]))


def fit_recall(
    cells: Observations,
    exact: ArrayLike,
    draws: int = DRAWS,
    seed: int = 0,
) -> RecallFit:
    """Fit the probability of exact recall, with a bootstrap of the clusters (text and length).

    Args:
        exact: share of each cell's samples that are recalled exactly, (N,), 0 to 1; nan where not
            measured.
        draws: of the bootstrap; 0 for none.
    """
    shares = np.asarray(exact, float)
    measured = np.isfinite(shares)
    cells = cells.take(measured)
    shares = shares[measured]

    problem = _identifiability(cells, shares)
    if problem:
        return _result(cells, shares, reason=problem)

    design, centre = _design(cells)
    once = np.ones((1, len(cells)))
    fitted = _uncentred(_firth(design, shares, once), centre)
    if not _is_monotone(fitted)[0]:
        return _result(cells, shares, reason=finding("recall_not_monotone"))
    if not draws:
        return _result(cells, shares, theta=fitted[0])

    # Clusters are drawn with replacement; a draw that is not monotone has no threshold.
    cluster, count = cells.clusters
    equal = np.full(count, 1 / count)
    rng = np.random.default_rng(seed)
    weights_DG = rng.multinomial(count, equal, draws).astype(float)
    sample = _uncentred(_firth(design, shares, weights_DG[:, cluster]), centre)
    monotone = sample[_is_monotone(sample)]
    return _result(cells, shares, theta=fitted[0], draws=monotone)


def _is_monotone(theta_B3: Array) -> Mask:
    """Whether recall rises with size and falls with length, (B,)."""
    _, g, h = theta_B3.T
    finite = np.isfinite(theta_B3).all(axis=1)
    return np.asarray(finite & (g > 0) & (h > 0), bool)


def _result(
    cells: Observations,
    shares: Array,
    *,
    reason: Finding | None = None,
    theta: Array | None = None,
    draws: Array | None = None,
) -> RecallFit:
    """The fit with its counts; without numbers where there is a reason.

    Args:
        shares: (N,) recalled exactly.
        theta: (3,) a, g, h.
        draws: (D, 3) of the bootstrap.
    """
    return RecallFit(
        status=NOT_IDENTIFIED if reason else OK,
        finding=reason,
        theta=np.full(3, np.nan) if theta is None else theta,
        draws=np.empty((0, 3)) if draws is None else draws,
        n=len(cells),
        exact=int((shares == 1).sum()),
        clusters=cells.clusters[1],
        rank_step=_median_step(cells.rank),
        length_step=_median_step(cells.length),
    )


def _median_step(values: Array) -> float:
    """Median step between the distinct of (N,) values, on logs; nan for one value."""
    steps = np.diff(np.log(np.unique(values)))
    return float(np.median(steps)) if len(steps) else math.nan


def _identifiability(cells: Observations, shares: Array) -> Finding | None:
    """Why these cells cannot carry the law; None when they can.

    Args:
        shares: (N,) recalled exactly.
    """
    if not len(cells):
        return finding("recall_not_measured")
    if (shares < 0.5).all():
        return finding("recall_nowhere")
    if (shares >= 0.5).all():
        return finding("recall_everywhere")

    for axis, values in (("size", cells.rank), ("length", cells.length)):
        count = len(np.unique(values))
        if count < MIN_DISTINCT:
            return finding(
                "recall_few_distinct_values",
                axis=axis,
                count=count,
                needed=MIN_DISTINCT,
            )
    return None


def _design(cells: Observations) -> tuple[Array, Array]:
    """(N, 3) with 1, log rank, -log length, the logs centred; and their centres, (2,)."""
    columns = [np.log(cells.rank), -np.log(cells.length)]
    logs = np.stack(columns, axis=1)
    centre = logs.mean(axis=0)
    ones = np.ones((len(cells), 1))
    return np.concatenate([ones, logs - centre], axis=1), centre


def _uncentred(theta_B3: Array, centre: Array) -> Array:
    """a, g, h at rank 1 and length 1, (B, 3)."""
    uncentred = theta_B3.copy()
    uncentred[:, 0] -= theta_B3[:, 1:] @ centre
    return uncentred


def _firth(x_N3: Array, share_N: Array, weights_BN: Array) -> Array:
    """Maximum of the penalised likelihood, (B, 3).

    Firth's penalty multiplies the likelihood by the root of the information's determinant.

    Args:
        weights_BN: how often each cell counts.
    """
    theta = np.zeros((len(weights_BN), 3))
    for _ in range(NEWTON_STEPS):
        p = special.expit(theta @ x_N3.T)
        w = p * (1 - p) * weights_BN
        information = np.einsum("bn,ni,nj->bij", w, x_N3, x_N3)
        # A draw of few clusters may leave a parameter without information.
        information += 1e-9 * np.eye(3)
        inverse = np.linalg.inv(information)

        # The diagonal of the hat matrix, (B, N).
        leverage = w * np.einsum("ni,bij,nj->bn", x_N3, inverse, x_N3)
        # Of the likelihood, and of Firth's penalty.
        residual = weights_BN * (share_N - p)
        penalty = leverage * (0.5 - p)
        score = (residual + penalty) @ x_N3

        step = np.einsum("bij,bj->bi", inverse, score)
        step = np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        theta += step
        if np.abs(step).max() < TOLERANCE:
            break
    return theta
