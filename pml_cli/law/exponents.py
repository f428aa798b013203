"""Model-averaged intervals of alpha and beta: BIC weights within Occam's window.

The interval of one form takes that form for the truth. Here every form with a ceiling that fits
nearly as well takes part, by its BIC weight (Raftery 1995), but none that a simpler one outdoes
(Occam's window: Madigan and Raftery 1994): else parameters that fit noise widen the interval of a
form that is the right one. The interval is that of the weighted mixture of the forms' own
distributions, each as wide as its clustered errors (`LikelihoodFit.half_width`). Likelihoods count
dependent cells once: they are divided by how far clusters vary more than cells
(`LikelihoodFit.inflation`).
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

    able = [fit for fit in fits if _takes_part(fit, position)]
    if not any(fit.name == chosen.name for fit in able):
        return None
    members = _window(able, chosen)

    criteria = np.array([_schwarz(fit, chosen.inflation) for fit in members])
    is_chosen = np.array([fit.name == chosen.name for fit in members])
    differences = np.where(is_chosen, 0.0, criteria - criteria.min())
    weights = np.exp(-differences / 2)
    half_widths = np.array([fit.half_width(position) for fit in members])
    return ExponentMixture(
        forms=tuple(fit.name for fit in members),
        weights=weights / weights.sum(),
        values=np.array([fit.parameters[name] for fit in members]),
        errors=half_widths / normal_quantile(),
    )


def _window(fits: Sequence[LikelihoodFit], chosen: LikelihoodFit) -> list[LikelihoodFit]:
    """The chosen form, and others nearly as good that none with fewer parameters outdoes."""
    criterion = {fit.name: _schwarz(fit, chosen.inflation) for fit in fits}
    least = min(criterion.values())

    members = []
    for fit in fits:
        near = criterion[fit.name] - least <= LARGEST_DIFFERENCE
        outdone = any(
            len(other.form.free) < len(fit.form.free)
            and criterion[other.name] <= criterion[fit.name]
            for other in fits
        )
        if fit.name == chosen.name or (near and not outdone):
            members.append(fit)
    return members


def _takes_part(fit: LikelihoodFit, position: int) -> bool:
    """Whether the form has a ceiling, the exponent, and an error for it."""
    if fit.status != OK or not fit.form.kind.has_ceiling or position not in fit.form.free:
        return False
    half = fit.half_width(position)
    return math.isfinite(half) and half > 0


def _schwarz(fit: LikelihoodFit, inflation: float) -> float:
    """BIC (Schwarz 1978); the log-likelihood of dependent cells is divided by their inflation."""
    return 2 * fit.nll / inflation + len(fit.form.free) * math.log(fit.n)
