"""Heteroscedasticity: is the noise proportional to the gain, as the likelihood assumes?

Noise of the same nats everywhere would count most where the gain is smallest, and a wrong form
would pass for noise where the gain is largest. Koenker's (1981) test, which heavy tails do not
mislead, asks whether squared relative residuals depend on the gain. Where they do, the noise is
modelled as a power of the gain (Carroll and Ruppert 1988, power of the mean) and the cells are
reweighted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import optimize, stats

from pml_cli.law.forms import relative_spread
from pml_cli.law.mle import LikelihoodFit, design_of
from pml_cli.law.model_selection import choose
from pml_cli.law.observations import Observations
from pml_cli.stats import Array

# p below which proportional noise is rejected; strict, because rejecting it reweights every cell.
SIGNIFICANT = 0.001
# Powers of the gain that a relative spread may follow; -1 is noise of the same nats everywhere.
POWERS = (-1.5, 1.0)
# Fewest measured cells for the test.
MIN_CELLS = 20


def with_noise(cells: Observations, fits: Sequence[LikelihoodFit]) -> Observations:
    """Cells reweighted by a power of the gain, where the noise is not proportional to the gain.

    Args:
        fits: of every form, to these cells; the best of them says what the gains are.

    Returns:
        The same object, where proportional noise is not rejected.
    """
    chosen = choose(fits)
    if chosen is None:
        return cells
    log_gain = _log_gain(cells, fits[chosen])
    power = _noise_power(cells, fits[chosen], log_gain)
    if not power:
        return cells
    return replace(cells, sd=cells.sd * np.exp(power * log_gain))


def noise_power(cells: Observations, fit: LikelihoodFit) -> float:
    """The power of the gain that the noise follows in nats, of cells from `with_noise`; 1: a share.

    Args:
        fit: a law that was fitted to them.
    """
    log_gain = _log_gain(cells, fit)
    slope, _ = np.polyfit(log_gain, np.log(cells.sd), 1)
    return 1 + float(slope)


def _log_gain(cells: Observations, fit: LikelihoodFit) -> Array:
    """Logarithm of the predicted gain, (N,), of mean 0 over the measured cells."""
    log_gain = np.log(fit.predict(cells.rank, cells.length, cells.base))
    return np.asarray(log_gain - log_gain[cells.measured].mean())


def _noise_power(cells: Observations, fit: LikelihoodFit, log_gain: Array) -> float:
    """The power of the gain that relative residuals follow; 0 where none is significant.

    Args:
        log_gain: (N,) of mean 0 over the measured cells.
    """
    design = design_of(cells, fit.centre)
    spread = relative_spread(fit.theta[None], design.x, design.y, design.base, fit.form.link)[0]
    # Near the ceiling the likelihood has the spread fall already.
    telling = cells.measured & (spread == 1)
    count = int(telling.sum())
    if count < MIN_CELLS:
        return 0.0

    residual = cells.delta / fit.predict(cells.rank, cells.length, cells.base) - 1
    squares = ((residual / cells.sd) ** 2)[telling]
    x = log_gain[telling] - log_gain[telling].mean()

    # Koenker's statistic: cells times R2 of the squares' regression on log gain.
    correlation = np.corrcoef(x, squares)[0, 1]
    p = stats.chi2.sf(count * correlation**2, 1)
    if not p < SIGNIFICANT:
        return 0.0

    def negative_log_likelihood(power: float) -> float:
        """Negative log-likelihood of normal residuals whose spread is profiled out."""
        scaled = squares * np.exp(-2 * power * x)
        return float(count / 2 * np.log(scaled.mean()))

    return float(optimize.minimize_scalar(negative_log_likelihood, bounds=POWERS).x)
