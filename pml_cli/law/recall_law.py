"""When is a target recalled exactly? A logistic law of size and length, beside that of the gain.

    P(exact recall) = 1 / (1 + exp(-(a + g log r - h log l)))

A mean loss below ln 2 does not make recall exact: one token with p < 1/2 breaks it. So recall has
its own model, of the share of samples that greedy decoding reproduces. Firth's penalty (1993) keeps
it finite where ranks separate completely into those that recall and those that do not, as they
often do.

Intervals are those of texts: what is hard about a text is shared by all its lengths. And whole
ranks are tried, so a threshold is known no finer than the step between them: draws are blurred by
that, as far as the lengths share it.

Shapes: B problems, N cells, D draws, 3 parameters a, g, h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from pml_cli.law.findings import NOT_IDENTIFIED, OK, Finding, finding
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import MIN_DISTINCT
from pml_cli.stats import MIN_CLUSTERS, Array, Mask, few_cluster_factor

NAMES = ("a", "g", "h")

# Newton steps at most, the largest change of a parameter in one, and the change that ends them.
NEWTON_STEPS = 60
LARGEST_STEP = 5.0
TOLERANCE = 1e-8

# Bootstrap draws.
DRAWS = 1000

# Shares of the samples of a cell (facts) that have a law of their own, beside that of all.
SHARES = (0.5, 0.9, 0.99)

# Its exponential is a number.
LARGEST_LOG = 700.0


@dataclass(frozen=True, kw_only=True)
class RecallFit:
    """The law of exact recall, or the finding that says why there is none."""

    status: str
    """OK or NOT_IDENTIFIED."""
    finding: Finding | None
    theta: Array
    """(3,) a, g, h."""
    draws: Array
    """(D, 3) of the cluster bootstrap. Where recall does not rise with size in a draw, no rank
    reaches a probability; where it does not fall with length, every length keeps it: both are
    infinite."""
    n: int
    """Cells."""
    exact: int
    """Cells of which every sample is recalled exactly."""
    texts: int
    clusters: int
    """The texts; below MIN_CLUSTERS of them, texts times lengths."""
    rank_blur: float
    """Width of the uniform error that the steps between the ranks tried leave, on logs."""
    length_blur: float
    """Width of the uniform error that the steps between the lengths tried leave, on logs."""

    def probabilities(self, rank: float, length: float) -> Array:
        """Probability of exact recall, (1 + D,): of the fit and of the draws."""
        a, g, h = self._thetas
        logit = a + g * np.log(rank) - h * np.log(length)
        return np.asarray(special.expit(self._widened(logit)))

    def log_ranks(self, length: float, probability: float) -> Array:
        """Log of the rank that reaches the probability, (1 + D,): of the fit and of the draws."""
        a, g, h = self._thetas
        needed = special.logit(probability)
        log_rank = _divided(needed - a + h * np.log(length), g)
        return self._widened(log_rank, self.rank_blur)

    def ranks(self, length: float, probability: float) -> Array:
        """The rank that reaches the probability, (1 + D,), however large it is."""
        # A slope near 0 takes a rank that no number holds.
        return np.asarray(np.exp(np.minimum(self.log_ranks(length, probability), LARGEST_LOG)))

    def log_lengths(self, rank: float, probability: float) -> Array:
        """Log of the length that keeps the probability, (1 + D,): of the fit and of the draws."""
        a, g, h = self._thetas
        needed = special.logit(probability)
        log_length = _divided(a + g * np.log(rank) - needed, h)
        return self._widened(log_length, self.length_blur)

    @property
    def _thetas(self) -> Array:
        """(3, 1 + D) the fit and the draws."""
        rows = np.concatenate([self.theta[None], self.draws])
        return np.asarray(rows.T)

    def _widened(self, values: Array, blur: float = 0.0) -> Array:
        """The draws spread as few clusters require, and blurred by the steps, (1 + D,).

        Args:
            values: (1 + D,).
            blur: width of the uniform error that is added to each draw.
        """
        fitted = values[:1]
        deviation = few_cluster_factor(self.clusters) * (values[1:] - fitted)
        rng = np.random.default_rng(0)
        rounding = rng.uniform(-blur / 2, blur / 2, len(deviation))
        return np.asarray(np.concatenate([fitted, fitted + deviation + rounding]))


def fit_recall(
    cells: Observations,
    exact: ArrayLike,
    draws: int = DRAWS,
    seed: int = 0,
) -> RecallFit:
    """Fit the probability of exact recall, with a bootstrap of the texts.

    Fewer texts than MIN_CLUSTERS cannot be resampled: there the lengths of each text are, and the
    draws say nothing about how texts differ (`RecallFit.texts` tells).

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

    # Clusters are drawn with replacement.
    cluster, count = _units(cells)
    equal = np.full(count, 1 / count)
    rng = np.random.default_rng(seed)
    weights_DG = rng.multinomial(count, equal, draws).astype(float)
    weights_DN = weights_DG[:, cluster]
    sample = _uncentred(_firth(design, shares, weights_DN), centre)
    usable = np.isfinite(sample).all(axis=1) & _carries_a_law(cells, shares, weights_DN)
    return _result(cells, shares, theta=fitted[0], draws=sample[usable])


def _carries_a_law(cells: Observations, shares: Array, weights_DN: Array) -> Mask:
    """Which draws have cells on both sides of half, and lengths enough, (D,).

    As asked of the cells themselves (`_identifiability`): the slopes of other draws are those of
    Firth's penalty alone, and as often negative as positive.

    Args:
        shares: (N,) recalled exactly.
        weights_DN: how often each draw has each cell.
    """
    drawn_DN = weights_DN > 0
    over = (drawn_DN & (shares >= 0.5)).any(axis=1)
    under = (drawn_DN & (shares < 0.5)).any(axis=1)
    lengths = [
        drawn_DN[:, cells.length == length].any(axis=1) for length in np.unique(cells.length)
    ]
    return np.asarray(over & under & (np.sum(lengths, axis=0) >= MIN_DISTINCT))


def _divided(numerator: Array, slope: Array) -> Array:
    """Quotients, infinite where a slope is not positive: there is no threshold."""
    positive = slope > 0
    return np.asarray(np.where(positive, numerator / np.where(positive, slope, 1.0), np.inf))


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
    theta = np.full(3, np.nan) if theta is None else theta
    rank_blur, length_blur = _blurs(cells, theta)
    return RecallFit(
        status=NOT_IDENTIFIED if reason else OK,
        finding=reason,
        theta=theta,
        draws=np.empty((0, 3)) if draws is None else draws,
        n=len(cells),
        exact=int((shares == 1).sum()),
        texts=cells.texts[1],
        clusters=_units(cells)[1],
        rank_blur=rank_blur,
        length_blur=length_blur,
    )


def _units(cells: Observations) -> tuple[NDArray[np.intp], int]:
    """(N,) the cluster of each cell that the bootstrap draws whole, and the number of clusters."""
    text, count = cells.texts
    return (text, count) if count >= MIN_CLUSTERS else cells.clusters


def _blurs(cells: Observations, theta: Array) -> tuple[float, float]:
    """Widths of the errors that the steps between ranks, and between lengths, leave, on logs.

    Args:
        theta: (3,) a, g, h; nan where there is no law, and then no error.
    """
    if not np.isfinite(theta).all():
        return (math.nan, math.nan)
    a, g, h = theta
    log_ranks = np.log(_typical_sizes(cells))
    log_lengths = np.log(np.unique(cells.length))
    # Even chance at each length, and at each rank.
    rank_blur = _rounding(log_ranks, (h * log_lengths - a) / g)
    length_blur = _rounding(log_lengths, (a + g * log_ranks) / h)
    return (rank_blur, length_blur)


def _typical_sizes(cells: Observations) -> Array:
    """The sizes that were tried, ascending; one that depends on the length by its mean."""
    grid, position = np.unique(cells.grid_size, return_inverse=True)
    sums = np.bincount(position.ravel(), weights=np.log(cells.rank), minlength=len(grid))
    counts = np.bincount(position.ravel(), minlength=len(grid))
    return np.exp(sums / counts)


def _rounding(tried: Array, thresholds: Array) -> float:
    """Width of the error of a law whose thresholds are known to lie between two values tried.

    Each threshold is off by up to half a step. T such errors average out, to a width of
    step / sqrt(T), unless they are the same: where steps of one axis fit those of the other, all
    thresholds lie at the same place between their neighbours. The mean resultant length of these
    places says how much they do (1: all the same; Mardia and Jupp, Directional Statistics, 2000).

    Args:
        tried: (V,) ascending logs, two or more.
        thresholds: (T,) logs.
    """
    steps = np.diff(tried)
    below = np.clip(np.searchsorted(tried, thresholds) - 1, 0, len(steps) - 1)
    place = (thresholds - tried[below]) / steps[below]
    shared = abs(np.exp(2j * np.pi * place).mean())
    independent = 1 / math.sqrt(len(thresholds))
    return float(np.median(steps) * max(shared, independent))


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

    for axis, values in (("size", cells.grid_size), ("length", cells.length)):
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
    # Sums over products of two columns are one matrix product.
    products_N9 = (x_N3[:, :, None] * x_N3[:, None, :]).reshape(-1, 9)
    for _ in range(NEWTON_STEPS):
        p = special.expit(theta @ x_N3.T)
        w = p * (1 - p) * weights_BN
        information = (w @ products_N9).reshape(-1, 3, 3)
        # A draw of few clusters may leave a parameter without information.
        information += 1e-9 * np.eye(3)
        inverse = np.linalg.inv(information)

        # The diagonal of the hat matrix, (B, N).
        leverage = w * (inverse.reshape(-1, 9) @ products_N9.T)
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
