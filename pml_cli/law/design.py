"""How sharp will the law be? A planned grid, simulated from the law of a pilot before it trains.

Grids of the planned ranks, lengths and texts are drawn from the pilot's law, with its spread and
the part of it that cells of one text and length share. To each the pilot's form is fitted as
`pml fit` does. The median widths of the intervals are what to expect, as far as the pilot's form is
the right one.

Shapes: N cells, D draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from pml_cli.law.findings import OK
from pml_cli.law.fitted_law import BaseLoss, FittedLaw, LengthCurve
from pml_cli.law.forms import Form, log_gain, relative_spread
from pml_cli.law.mle import fit_saturating
from pml_cli.law.observations import RANK, Observations
from pml_cli.law.parameters import ALPHA, BETA, LOG_SPREAD
from pml_cli.law.recall_law import RecallFit, fit_recall
from pml_cli.stats import Array

# Grids that are drawn, and bootstrap draws of the law of exact recall on each.
GRIDS = 12
DRAWS = 200

# Share of a gain's variance that is assumed to be common to the cells of one text and length; the
# law sweep of the embedded model has 0.66.
SHARED = 0.6

LEAST_GAIN = 1e-3


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """Expected half widths of the 95 % intervals; nan where most grids have none."""

    alpha: float
    alpha_half: float
    beta: float
    beta_half: float
    recall_length: float
    """A middle length, target tokens."""
    recall_rank: float
    """Rank at which exact recall has probability 1/2 at that length."""
    recall_factor: float
    """Factor between `recall_rank` and either end of its interval: exp of half the log width."""


def sharpness(
    pilot: FittedLaw,
    ranks: ArrayLike,
    lengths: ArrayLike,
    texts: ArrayLike,
    seed: int = 0,
) -> Sharpness:
    """What the planned cells will tell.

    Args:
        pilot: with a law of the gain.
        ranks, lengths, texts: of each planned cell, (N,), three ranks and lengths or more; texts
            are labels.
    """
    assert pilot.form is not None
    planned_ranks = np.asarray(ranks, float)
    planned_lengths = np.asarray(lengths, float)
    labels = np.asarray(texts)
    distinct = np.unique(planned_lengths)
    middle = float(distinct[len(distinct) // 2])

    halves = []
    for grid in range(GRIDS):
        rng = np.random.default_rng([seed, grid])
        cells = _draw_gains(pilot, planned_ranks, planned_lengths, labels, rng)
        alpha_half, beta_half = _exponent_widths(cells, pilot.form)
        recall_half = _recall_width(cells, pilot.recall, middle, rng)
        halves.append([alpha_half, beta_half, recall_half])
    # An interval that most grids do not have is infinitely wide.
    columns = np.nan_to_num(np.array(halves), nan=math.inf)
    alpha_half, beta_half, recall_half = np.median(columns, axis=0).tolist()

    recall_rank = math.nan
    if pilot.recall:
        recall_rank = math.exp(float(pilot.recall.log_ranks(middle, 0.5)[0]))
    return Sharpness(
        alpha=float(pilot.theta[0, ALPHA]),
        alpha_half=alpha_half,
        beta=float(pilot.theta[0, BETA]),
        beta_half=beta_half,
        recall_length=middle,
        recall_rank=recall_rank,
        recall_factor=math.exp(recall_half) if recall_half < 50 else math.inf,
    )


def _draw_gains(
    pilot: FittedLaw,
    ranks: Array,
    lengths: Array,
    texts: NDArray[Any],
    rng: np.random.Generator,
) -> Observations:
    """The planned cells with gains drawn from the pilot's law."""
    assert pilot.form is not None
    link = pilot.form.link
    theta = pilot.theta[:1]
    base = pilot.base.mean.at(np.log(lengths))
    x = np.log(ranks) - pilot.centre[0]
    y = np.log(lengths) - pilot.centre[1]
    gain = np.nan_to_num(np.exp(log_gain(theta, x, y, base, link)[0]))
    relative = relative_spread(theta, x, y, base, link)[0]
    spread = math.exp(theta[0, LOG_SPREAD]) * relative

    pairs = np.stack([np.unique(texts, return_inverse=True)[1].ravel(), lengths])
    cluster = np.unique(pairs, axis=1, return_inverse=True)[1].ravel()
    of_cluster = np.asarray(rng.standard_normal(len(gain)))
    common = of_cluster[cluster]
    own = rng.standard_normal(len(gain))
    noise = math.sqrt(SHARED) * common + math.sqrt(1 - SHARED) * own
    noisy = np.clip(gain * (1 + spread * noise), LEAST_GAIN, base - LEAST_GAIN)
    return Observations.of(ranks, lengths, noisy, base, text=texts)


def _exponent_widths(cells: Observations, form: Form) -> tuple[float, float]:
    """Half widths of the intervals of alpha and beta; nan without a fit."""
    fit = fit_saturating(cells, form)
    if fit.status != OK:
        return math.nan, math.nan
    return fit.half_width(ALPHA), fit.half_width(BETA)


def _recall_width(
    cells: Observations,
    recall: RecallFit | None,
    length: float,
    rng: np.random.Generator,
) -> float:
    """Half width of the band of the rank at even chance, on logs; nan without a law."""
    if recall is None:
        return math.nan
    a, g, h = recall.theta
    chance = special.expit(a + g * np.log(cells.rank) - h * np.log(cells.length))
    recalled = (rng.random(len(cells)) < chance).astype(float)
    found = fit_recall(cells, recalled, DRAWS)
    if found.status != OK:
        return math.nan
    log_ranks = found.log_ranks(length, 0.5)[1:]
    # Some may be infinite, which cannot be interpolated.
    low, high = np.quantile(log_ranks, [0.025, 0.975], method="nearest").tolist()
    return (high - low) / 2 if math.isfinite(low) else math.inf


def embedded_pilot() -> FittedLaw:
    """The law of random tokens on the embedded model.

    Of the gain, as `pml sweep -f law` gives it (benchmarks/law.csv); of exact recall, as the scan
    does (benchmarks/scan.csv).
    """
    lengths = np.array([32.0, 512.0])
    curve = LengthCurve(log_length=np.log(lengths), nats=np.full(2, 11.2))
    theta = [2.0693, 1.0061, 0.7918, 0.0, math.log(2), 0.0, 8.4893, -3.7129]
    recall = RecallFit(
        status=OK,
        finding=None,
        theta=np.array([27.41, 18.74, 14.54]),
        draws=np.empty((0, 3)),
        n=540,
        exact=0,
        texts=3,
        clusters=27,
        rank_blur=0.0,
        length_blur=0.0,
    )
    return FittedLaw(
        name="random tokens on the embedded model",
        axis=RANK,
        form=Form(link="exp", level=True),
        form_reason="",
        theta=np.array([theta]),
        centre=(1.72053, 4.8782),
        ranks=(1.0, 24.0),
        lengths=(32.0, 512.0),
        base=BaseLoss(mean=curve, texts=[curve]),
        recall=recall,
        recall_reason="",
        all_recall=None,
        tokens_per_fact=math.nan,
        status=OK,
        texts=1,
        text_spread=0.0,
    )
