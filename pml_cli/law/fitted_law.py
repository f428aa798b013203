"""A fitted law with draws of its parameters: what it predicts, and how certain that is.

`law_json.load` reads it from law.json. Shapes: D draws, P = 8 parameters; arrays of 1 + D values
hold that of the fit first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pml_cli.law.forms import Form, log_gain, relative_spread
from pml_cli.law.observations import SizeAxis
from pml_cli.law.parameters import (
    LOG_SPREAD,
    NATURAL_NAMES,
    ON_LOG_SCALE,
    Centre,
    Interval,
    uncentring,
)
from pml_cli.law.recall_law import RecallFit
from pml_cli.stats import Array, few_cluster_factor

# Draws from the covariance where a law has no bootstrap.
NORMAL_DRAWS = 2000
# Draws from the differences between texts where these are too few for a bootstrap.
TEXT_DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class LengthCurve:
    """A loss of the base model by length: V lengths, between them linear in log length."""

    log_length: Array
    """(V,) ascending."""
    nats: Array
    """(V,) nats per token."""

    def at(self, log_length: Array) -> Array:
        """The loss, nats per token; beyond the ends that of the nearest length.

        Args:
            log_length: any shape, as that of the result.
        """
        return np.asarray(np.interp(log_length, self.log_length, self.nats))


@dataclass(frozen=True, kw_only=True)
class BaseLoss:
    """Loss of the base model on the texts of the cells."""

    mean: LengthCurve
    """Mean base loss over the cells, by length."""
    texts: list[LengthCurve]
    """Base loss of each text, by length."""

    def draw(self, log_length: Array) -> Array:
        """The mean at the first length; at each other length that of a text drawn at random.

        Args:
            log_length: (1 + D,).

        Returns:
            (1 + D,) nats per token.
        """
        mean = self.mean.at(log_length[:1])
        drawn_lengths = log_length[1:]
        count = len(drawn_lengths)
        # (texts, D)
        by_text = np.stack([text.at(drawn_lengths) for text in self.texts])

        rng = np.random.default_rng(1)
        texts = rng.integers(len(self.texts), size=count)
        drawn = by_text[texts, np.arange(count)]
        return np.concatenate([mean, drawn])


@dataclass(frozen=True, kw_only=True)
class FittedLaw:
    """The laws of one group of cells: of the gain, of exact recall, or both."""

    name: str
    """Name of the group."""
    axis: SizeAxis
    """What the `ranks` are: rank, parameters or effective parameters."""
    form: Form | None
    """Form of the chosen law of the gain; None where none is identified."""
    form_reason: str
    """Why there is no law of the gain."""
    theta: Array
    """(1 + D, P) parameters of the fit, then of its draws."""
    centre: Centre
    """Mean log rank and mean log length, where c is centred."""
    ranks: Interval
    """Smallest and largest rank of the cells."""
    lengths: Interval
    base: BaseLoss
    recall: RecallFit | None
    recall_reason: str
    """Why there is no law of exact recall."""
    all_recall: RecallFit | None
    """The law of cells of several facts whose every fact is recalled."""
    share_recall: Mapping[float, RecallFit] = field(default_factory=dict)
    """Laws of recalling at least a share of the facts, by the share."""
    tokens_per_fact: float
    """Mean target tokens of a sample; nan where it was not recorded."""
    status: str
    """Status of the law of the gain."""
    texts: int
    """Number of texts of the cells."""
    text_spread: float
    """Standard deviation of a text's gains around the law, as a share of them; 0 for one text."""

    @property
    def trained_texts(self) -> int:
        """Texts that the least of the laws stands on: of one, no band knows how texts differ."""
        of_recall = [self.recall, self.all_recall, *self.share_recall.values()]
        counts = [law.texts for law in of_recall if law is not None]
        if self.form is not None:
            counts.append(self.texts)
        return min(counts, default=1)

    def base_losses(self, length: float | Array) -> Array:
        """Loss of the base model, (1 + D,): the mean, then that of a text drawn for each draw.

        Args:
            length: target tokens; one, or one for each draw, (1 + D,).
        """
        return self.base.draw(self._for_each_draw(np.log(length)))

    def _for_each_draw(self, value: float | Array) -> Array:
        """The value for the fit and every draw, (1 + D,)."""
        return np.broadcast_to(np.asarray(value, float), (len(self.theta),))

    def gain(
        self,
        rank: float | Array,
        length: float | Array,
        base: float | Array,
    ) -> Array:
        """Gain in nats per token, (1 + D,): of the fit, and of a new cell for each draw.

        A cell deviates from the law by the spread, as in the likelihood, and with its text, which
        is a new one: by Student's t, as the texts of the cells are few; but never to more than the
        base loss.

        Args:
            rank, length, base: one value, or one for each draw, (1 + D,).
        """
        assert self.form is not None
        link = self.form.link
        base_loss = self._for_each_draw(base)
        # Every draw has a cell of its own: (1 + D, 1).
        x = self._for_each_draw(np.log(rank))[:, None] - self.centre[0]
        y = self._for_each_draw(np.log(length))[:, None] - self.centre[1]
        cell_base = base_loss[:, None]

        log_gains = log_gain(self.theta, x, y, cell_base, link)[:, 0]
        # No gain where there is no law: a base loss far below the level, or b below 0 far from
        # the cells.
        gains = np.nan_to_num(np.exp(log_gains), nan=0.0)

        # The fit has no noise, every draw that of one cell.
        rng = np.random.default_rng(0)
        noise = np.zeros(len(gains))
        noise[1:] = rng.standard_normal(len(gains) - 1)
        of_text = np.zeros(len(gains))
        if self.texts > 1:
            new_text = self.text_spread * math.sqrt(1 + 1 / self.texts)
            of_text[1:] = new_text * rng.standard_t(self.texts - 1, len(gains) - 1)

        spread = relative_spread(self.theta, x, y, cell_base, link)[:, 0]
        deviation = (np.exp(self.theta[:, LOG_SPREAD]) * noise + of_text) * spread
        noisy: Array = gains * np.maximum(0.0, 1 + deviation)
        return np.minimum(noisy, base_loss)

    def outside(self, rank: float | None, length: float | None) -> str:
        """What lies outside the cells, as in "rank above 24"; empty where nothing does."""
        given = (
            (self.axis.name, rank, self.ranks),
            ("length", length, self.lengths),
        )

        exceeded = []
        for name, value, (low, high) in given:
            if value is None or low <= value <= high:
                continue
            side, end = ("above", high) if value > high else ("below", low)
            exceeded.append(f"{name} {side} {end:g}")
        return ", ".join(exceeded)


def bootstrap_theta(
    theta: Array,
    centre: Centre,
    draws: dict[str, list[float]],
    clusters: int,
) -> Array:
    """Draws of theta, (D, P), from those of the bootstrap, widened below 40 clusters.

    Args:
        theta: (P,) the fit.
        centre: mean log rank and mean log length.
        draws: of each free parameter in natural units, (D,) by name.
    """
    matrix = uncentring(centre)
    count = len(next(iter(draws.values())))
    # Parameters that are not free keep their values.
    uncentred = np.tile(theta @ matrix.T, (count, 1))

    for name, column in draws.items():
        # theta has the logarithms of C, k and the spread.
        values = np.log(column) if name in ON_LOG_SCALE else column
        uncentred[:, NATURAL_NAMES.index(name)] = values

    centred = uncentred @ np.linalg.inv(matrix).T
    return np.asarray(theta + few_cluster_factor(clusters) * (centred - theta))


def text_theta(theta: Array, covariance: Array, texts: int, form: Form) -> Array:
    """Draws of theta, (D, P), from how few texts differ: Student's t with texts - 1 degrees.

    Args:
        theta: (P,) the fit.
        covariance: (P, P), with texts as clusters.
    """
    # Of fewer texts than parameters the matrix is singular; its root is none the less there.
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))

    rng = np.random.default_rng(0)
    normal = rng.standard_normal((TEXT_DRAWS, len(theta)))
    chi_square = rng.chisquare(texts - 1, TEXT_DRAWS)
    student = normal * np.sqrt((texts - 1) / chi_square)[:, None]
    return np.asarray(np.clip(theta + student @ root.T, *form.bounds))


def normal_theta(theta: Array, covariances: Sequence[Array]) -> Array:
    """Draws of theta, (D, P), from the widest of the covariances that is finite.

    Args:
        theta: (P,) the fit.
        covariances: (P, P) each.
    """
    finite = [matrix for matrix in covariances if np.isfinite(matrix).all()]
    none = np.zeros((len(theta), len(theta)))
    widest = max(finite, key=np.trace, default=none)
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal(theta, widest, NORMAL_DRAWS, check_valid="ignore")
    return np.asarray(draws)
