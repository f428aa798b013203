"""Intervals of the exponents that know which form is uncertain.

The interval of one form takes that form for the truth. Here every form with a ceiling that fits
nearly as well takes part, by its Schwarz weight (Raftery 1995): the interval is that of the
weighted mixture of the forms' own distributions, each as wide as its clustered errors
(`LikelihoodFit.half_width`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pml_cli.law.findings import OK
from pml_cli.law.mle import LikelihoodFit
from pml_cli.law.parameters import ALPHA, BETA, Interval
from pml_cli.stats import CONFIDENCE, Array, normal_quantile

POSITIONS = {"alpha": ALPHA, "beta": BETA}

# A form whose criterion lies further above the least has no weight worth counting.
LARGEST_DIFFERENCE = 10.0
# Points at which the distribution of the mixture is evaluated, and how far, standard errors.
POINTS = 4001
REACH = 12.0


@dataclass(frozen=True, kw_only=True)
class ExponentMixture:
    """What all forms together say about one exponent; K forms."""

    forms: tuple[str, ...]
    """Names; the chosen one among them."""
    weights: Array
    """(K,) adding up to 1."""
    values: Array
    """(K,) the exponent by each form."""
    errors: Array
    """(K,) standard error by each form."""

    @property
    def interval(self) -> Interval:
        """95 %."""
        reach = REACH * self.errors
        grid = np.linspace((self.values - reach).min(), (self.values + reach).max(), POINTS)
        # Where a form is far more certain than another, the grid needs its neighbourhood, too.
        near = [value + error * np.linspace(-5, 5, 101) for value, error in self._normals()]
        points = np.unique(np.concatenate([grid, *near]))

        shares = self.share_below(points)
        tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        low, high = np.interp(tails, shares, points)
        return float(low), float(high)

    def share_below(self, points: Array) -> Array:
        """The share of the mixture below each of (V,) values."""
        standardised = (points[:, None] - self.values) / self.errors
        return np.asarray(stats.norm.cdf(standardised) @ self.weights)

    def _normals(self) -> list[tuple[float, float]]:
        return list(zip(self.values.tolist(), self.errors.tolist(), strict=True))


def exponent_mixture(
    fits: Sequence[LikelihoodFit],
    chosen: LikelihoodFit,
    name: str,
) -> ExponentMixture | None:
    """One exponent by all forms; None where the chosen form fixes it or gives it no error.

    Args:
        fits: to the same cells.
        chosen: one of them; it weighs as much as the best.
        name: alpha or beta.
    """
    position = POSITIONS[name]
    if position not in chosen.form.free:
        return None

    kept = [fit for fit in fits if _takes_part(fit, position)]
    least = min((_schwarz(fit) for fit in kept), default=math.inf)
    members = [
        fit
        for fit in kept
        if fit.name == chosen.name or _schwarz(fit) - least <= LARGEST_DIFFERENCE
    ]
    if not any(fit.name == chosen.name for fit in members):
        return None

    differences = np.array(
        [0.0 if fit.name == chosen.name else _schwarz(fit) - least for fit in members]
    )
    weights = np.exp(-differences / 2)
    half_widths = np.array([fit.half_width(position) for fit in members])
    return ExponentMixture(
        forms=tuple(fit.name for fit in members),
        weights=weights / weights.sum(),
        values=np.array([fit.parameters[name] for fit in members]),
        errors=half_widths / normal_quantile(),
    )


def _takes_part(fit: LikelihoodFit, position: int) -> bool:
    """Whether the form has a ceiling, the exponent, and an error for it."""
    if fit.status != OK or not fit.form.kind.has_ceiling or position not in fit.form.free:
        return False
    half = fit.half_width(position)
    return math.isfinite(half) and half > 0


def _schwarz(fit: LikelihoodFit) -> float:
    """Schwarz's criterion."""
    return 2 * fit.nll + len(fit.form.free) * math.log(fit.n)
