"""A fitted law with draws of its parameters: what it predicts, and how certain that is.

`law_json.load` reads it from law.json. Shapes: D draws, P = 8 parameters; arrays of 1 + D values
hold that of the fit first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pml_cli.law.forms import Form, log_gain, relative_spread
from pml_cli.law.observations import SizeAxis
from pml_cli.law.parameters import LOG_SPREAD, NATURAL_NAMES, ON_LOG_SCALE, uncentring
from pml_cli.law.recall_law import RecallFit
from pml_cli.stats import Array, few_cluster_factor

# draws from the covariance where a law has no bootstrap
NORMAL_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class LengthCurve:
    """A loss of the base model by length: V lengths, between them linear in log length."""

    log_length: Array
    """(V,) ascending."""
    nats: Array
    """(V,) nats per token."""

    def at(self, log_length: Array) -> Array:
        """The loss at any log length, nats per token; beyond the ends that of the nearest."""
        return np.asarray(np.interp(log_length, self.log_length, self.nats))


@dataclass(frozen=True, kw_only=True)
class BaseLoss:
    """Loss of the base model on the texts of the cells."""

    mean: LengthCurve
    """Over the cells."""
    texts: list[LengthCurve]
    """Of each text."""

    def draw(self, log_length: Array) -> Array:
        """The mean at the first length; at each other length that of a text drawn at random.

        Args:
            log_length: (1 + D,).

        Returns:
            (1 + D,) nats per token.
        """
        mean = self.mean.at(log_length)
        count = len(mean) - 1
        drawn = np.random.default_rng(1).integers(len(self.texts), size=count)
        by_text = np.stack([text.at(log_length[1:]) for text in self.texts])
        return np.concatenate([mean[:1], by_text[drawn, np.arange(count)]])


@dataclass(frozen=True, kw_only=True)
class FittedLaw:
    """The chosen law of one group of cells."""

    name: str
    """Of the group."""
    axis: SizeAxis
    form: Form
    theta: Array
    """(1 + D, P) the fit, then draws of it."""
    centre: tuple[float, float]
    """Mean log rank and mean log length, where c is centred."""
    ranks: tuple[float, float]
    """Least and largest of the cells."""
    lengths: tuple[float, float]
    base: BaseLoss
    recall: RecallFit | None
    recall_reason: str
    """Why there is no law of exact recall."""
    status: str

    def base_losses(self, length: float | Array) -> Array:
        """Loss of the base model, (1 + D,): the mean, then that of a text drawn for each draw.

        Args:
            length: target tokens; one, or one for each draw, (1 + D,).
        """
        return self.base.draw(np.broadcast_to(np.log(length), (len(self.theta),)))

    def gain(
        self,
        rank: float | Array,
        length: float | Array,
        base: float | Array,
    ) -> Array:
        """Gain in nats per token, (1 + D,): of the fit, and of a new cell for each draw.

        A cell deviates from the law by the spread, as in the likelihood, but never to more than
        the base loss.

        Args:
            rank, length, base: one value, or one for each draw, (1 + D,).
        """
        count = len(self.theta)
        x = np.broadcast_to(np.log(rank), (count,))[:, None] - self.centre[0]
        y = np.broadcast_to(np.log(length), (count,))[:, None] - self.centre[1]
        base_loss = np.broadcast_to(np.asarray(base, float), (count,))[:, None]
        gains = np.exp(log_gain(self.theta, x, y, base_loss, self.form.link)[:, 0])
        # No gain where there is no law: a base loss far below the level, or b below 0 far from
        # the cells.
        gains = np.nan_to_num(gains, nan=0.0)

        noise = np.concatenate([[0.0], np.random.default_rng(0).standard_normal(count - 1)])
        spread = relative_spread(self.theta, x, y, base_loss, self.form.link)[:, 0]
        deviation = np.exp(self.theta[:, LOG_SPREAD]) * noise * spread
        return np.asarray(np.minimum(gains * np.maximum(0.0, 1 + deviation), base_loss[:, 0]))

    def outside(self, rank: float | None, length: float | None) -> str:
        """What lies outside the cells, as in "rank above 24"; empty where nothing does."""
        exceeded = []
        for name, value, (low, high) in (
            (self.axis.name, rank, self.ranks),
            ("length", length, self.lengths),
        ):
            if value is None or low <= value <= high:
                continue
            side, end = ("above", high) if value > high else ("below", low)
            exceeded.append(f"{name} {side} {end:g}")
        return ", ".join(exceeded)


def bootstrap_theta(
    theta: Array,
    centre: tuple[float, float],
    draws: dict[str, list[float]],
    clusters: int,
) -> Array:
    """Draws of theta, (D, P), from those of the bootstrap, widened below 40 clusters.

    Args:
        theta: (P,) the fit.
        centre: mean log rank and mean log length.
        draws: of each free parameter in natural units, (D,) by name.
    """
    count = len(next(iter(draws.values())))
    uncentred = np.tile(theta @ uncentring(centre).T, (count, 1))
    for name, column in draws.items():
        values = np.log(column) if name in ON_LOG_SCALE else column
        uncentred[:, NATURAL_NAMES.index(name)] = values
    centred = uncentred @ np.linalg.inv(uncentring(centre)).T
    return np.asarray(theta + few_cluster_factor(clusters) * (centred - theta))


def normal_theta(theta: Array, covariances: Sequence[Array]) -> Array:
    """Draws of theta, (D, P), from the widest of the covariances that is finite.

    Args:
        theta: (P,) the fit.
        covariances: (P, P) each.
    """
    finite = [matrix for matrix in covariances if np.isfinite(matrix).all()]
    widest = max(finite, key=np.trace, default=np.zeros((len(theta), len(theta))))
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal(theta, widest, NORMAL_DRAWS, check_valid="ignore")
    return np.asarray(draws)
