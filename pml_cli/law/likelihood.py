"""Censored maximum likelihood of many problems at once: Fisher scoring with Levenberg damping.

The gain of a cell is normal around the law, with a standard deviation proportional to the law:
s * sd of the cell * law. Of a saturated cell only that its gain exceeded its limit is used
(right-censored, as in Tobin's model): its exact loss says how long it was trained, not how much it
can hold. Of a cell that had not converged, that its gain lies between two limits. Problems of one
batch differ in start and in weights (bootstrap draws, grid nodes, points of a profile); they share
cells and form.

Shapes: B problems, N cells, P = 8 parameters (parameters.THETA_NAMES), F free ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from pml_cli.law.forms import Form, log_gain, log_gain_slopes
from pml_cli.law.parameters import LOG_SPREAD
from pml_cli.stats import Array, Mask

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)

# Change of the log-likelihood that ends the search. A standard error of 1 then moves by less than
# 1e-4.
TOLERANCE = 1e-9

# Levenberg damping, as a multiple of the information's diagonal.
LEAST_DAMPING = 1e-9
FIRST_DAMPING = 1e-3
# Above this no step improves the fit: the problem has converged.
LARGEST_DAMPING = 1e9


@dataclass(frozen=True, kw_only=True)
class Design:
    """What the likelihood sees of N cells."""

    x: Array
    """(N,) log rank, centred."""
    y: Array
    """(N,) log length, centred."""
    base: Array
    """(N,) loss of the base model, nats per token."""
    delta: Array
    """(N,) gain, nats per token."""
    limit: Array
    """(N,) lower limit of the gain of a censored cell, nats per token."""
    upper_limit: Array
    """(N,) its upper limit; infinite for a saturated one."""
    censored: Mask
    """(N,) the cells of which only these limits are known."""
    sd: Array
    """(N,) spread of each cell, as a multiple of the others'."""


def minimise(
    theta_BP: Array,
    design: Design,
    form: Form,
    *,
    weights_BN: Array | None = None,
    free: tuple[int, ...] | None = None,
    iterations: int = 100,
) -> tuple[Array, Array]:
    """Minimise the negative log-likelihood of each problem, from its start.

    Args:
        theta_BP: starts; parameters that are not free keep their values.
        weights_BN: how often each cell counts; once when None.
        free: positions in theta; those of the form when None.

    Returns:
        Parameters (B, P) and the negative log-likelihood (B,), a sum over cells; infinite where
        the start has no law.
    """
    free_F = np.array(form.free if free is None else free)
    theta = np.clip(theta_BP, *form.bounds)
    weights = np.ones((1, 1)) if weights_BN is None else weights_BN
    nll = negative_log_likelihood(theta, design, form, weights)
    damping = np.full(len(theta), FIRST_DAMPING)
    active = np.flatnonzero(np.isfinite(nll))

    for _ in range(iterations):
        if not len(active):
            break
        active_weights = weights if len(weights) == 1 else weights[active]
        gradient, information = derivatives(theta[active], design, form, active_weights, free_F)
        # A step that does not improve is tried again, with ten times the damping.
        trial = _scoring_step(
            theta[active], gradient, information, damping[active], form=form, free_F=free_F
        )
        trial_nll = negative_log_likelihood(trial, design, form, active_weights)

        decrease = nll[active] - trial_nll
        better = decrease >= 0
        theta[active[better]] = trial[better]
        nll[active[better]] = trial_nll[better]

        eased = np.maximum(damping[active] * 0.1, LEAST_DAMPING)
        damping[active] = np.where(better, eased, damping[active] * 10)
        converged = (better & (decrease < TOLERANCE)) | (damping[active] > LARGEST_DAMPING)
        active = active[~converged]
    return theta, nll


def _scoring_step(
    theta: Array,
    gradient: Array,
    information: Array,
    damping: Array,
    *,
    form: Form,
    free_F: Array,
) -> Array:
    """One damped scoring step, (B, P).

    A parameter that its bound holds back keeps its value.

    Args:
        theta: (B, P).
        gradient, information, damping: (B, F), (B, F, F), (B,).
    """
    lower, upper = (bound[free_F] for bound in form.bounds)
    current = theta[:, free_F]
    # A step goes against the gradient.
    at_lower = (current <= lower) & (gradient > 0)
    at_upper = (current >= upper) & (gradient < 0)
    blocked = at_lower | at_upper

    # Scaled by the diagonal, so that parameters of any size are damped alike.
    diagonal = np.einsum("bff->bf", information)
    scale = np.sqrt(np.maximum(diagonal, 1e-30))
    scales = scale[:, :, None] * scale[:, None, :]
    scaled = information / scales
    # Rows and columns of blocked parameters are those of the identity: their step is 0.
    scaled *= ~blocked[:, :, None]
    scaled *= ~blocked[:, None, :]
    added = blocked[:, None, :] + damping[:, None, None] + 1e-13
    scaled += np.eye(len(free_F)) * added

    right_side = np.where(blocked, 0, gradient / scale)
    step = np.linalg.solve(scaled, right_side[..., None])[..., 0] / scale
    trial = theta.copy()
    trial[:, free_F] = np.clip(current - step, lower, upper)
    return trial


def negative_log_likelihood(
    theta_BP: Array,
    design: Design,
    form: Form,
    weights: Array,
) -> Array:
    """Negative log-likelihood, (B,), a sum over the cells; infinite where there is no law.

    Args:
        weights: (B, N) or (1, 1), how often each cell counts.
    """
    log_mu = log_gain(theta_BP, design.x, design.y, design.base, form.link)
    censored = design.censored
    observed = ~censored
    # The spread is relative to the law.
    log_s = theta_BP[:, LOG_SPREAD, None] + np.log(design.sd)

    per_cell = np.empty_like(log_mu)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mu = np.exp(log_mu)
        # Normal density of the relative residual.
        residual = design.delta[observed] / mu[:, observed] - 1
        z = residual / np.exp(log_s[:, observed])
        log_scale = log_mu[:, observed] + log_s[:, observed]
        per_cell[:, observed] = log_scale + 0.5 * z**2 + HALF_LOG_TAU

        # Probability of a gain between the limits.
        s = np.exp(log_s[:, censored])
        a = (design.limit[censored] / mu[:, censored] - 1) / s
        b = (design.upper_limit[censored] / mu[:, censored] - 1) / s
        per_cell[:, censored] = -_log_probability(a, b)

    total = (per_cell * weights).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def derivatives(
    theta_BP: Array,
    design: Design,
    form: Form,
    weights: Array,
    free_F: Array,
) -> tuple[Array, Array]:
    """Gradient (B, F) and information (B, F, F) of the negative log-likelihood.

    The information is the expected one for uncensored cells, Gauss and Newton's for censored ones.

    Args:
        weights: (B, N) or (1, 1), how often each cell counts.
        free_F: positions of the free parameters in theta.
    """
    of_law = _law_positions(free_F)
    slopes, cell = _cell_derivatives(theta_BP, design, form, of_law)
    g1 = cell.by_log_mu * weights
    g2 = cell.by_log_s * weights
    h11 = cell.mu_mu * weights
    h12 = cell.mu_s * weights
    h22 = cell.s_s * weights

    size = len(of_law)
    batch, count = len(theta_BP), len(free_F)
    gradient = np.empty((batch, count))
    information = np.empty((batch, count, count))
    # Chain rule through log mu.
    gradient[:, :size] = (g1[:, None, :] @ slopes)[:, 0]
    weighted = slopes * h11[..., None]
    information[:, :size, :size] = weighted.transpose(0, 2, 1) @ slopes

    # The spread is the last parameter, so the last free one.
    if LOG_SPREAD in free_F:
        mixed = (h12[:, None, :] @ slopes)[:, 0]
        gradient[:, size] = g2.sum(axis=1)
        information[:, size, size] = h22.sum(axis=1)
        information[:, :size, size] = mixed
        information[:, size, :size] = mixed
    return gradient, information


def scores(
    theta_P: Array,
    design: Design,
    form: Form,
    free_F: Array,
) -> Array:
    """Contribution of each cell to the gradient at one parameter vector, (N, F).

    Args:
        theta_P: (P,).
    """
    of_law = _law_positions(free_F)
    slopes, cell = _cell_derivatives(theta_P[None], design, form, of_law)
    by_law = slopes[0] * cell.by_log_mu[0][:, None]
    if LOG_SPREAD not in free_F:
        return np.asarray(by_law)
    by_spread = cell.by_log_s[0][:, None]
    return np.concatenate([by_law, by_spread], axis=1)


def _law_positions(free_F: Array) -> tuple[int, ...]:
    """Positions, among (F,) free parameters, of those of the law: all but the spread."""
    return tuple(int(p) for p in free_F if p != LOG_SPREAD)


@dataclass(frozen=True, kw_only=True)
class _CellDerivatives:
    """Gradient and information of each cell by log mu and log s, (B, N) each."""

    by_log_mu: Array
    by_log_s: Array
    mu_mu: Array
    mu_s: Array
    s_s: Array


def _cell_derivatives(
    theta_BP: Array,
    design: Design,
    form: Form,
    of_law: tuple[int, ...],
) -> tuple[Array, _CellDerivatives]:
    """Slopes of log mu by the parameters of the law, (B, N, F - 1), and each cell's derivatives."""
    log_mu, slopes = log_gain_slopes(
        theta_BP, design.x, design.y, design.base, link=form.link, wanted=of_law
    )

    s = np.exp(theta_BP[:, LOG_SPREAD, None]) * design.sd
    # The gain relative to the law.
    ratio = design.delta * np.exp(-log_mu)
    z = (ratio - 1) / s

    # Uncensored cells; the second derivatives are their expected values.
    cell = _CellDerivatives(
        by_log_mu=1 - z * ratio / s,
        by_log_s=1 - z**2,
        mu_mu=1 / s**2 + 2,
        mu_s=np.full_like(z, 2.0),
        s_s=np.full_like(z, 2.0),
    )
    if design.censored.any():
        _set_censored(cell, design, log_mu, s)
    return slopes, cell


def _set_censored(cell: _CellDerivatives, design: Design, log_mu: Array, s: Array) -> None:
    """Derivatives of the censored cells: of -log(Phi(b) - Phi(a)) through both ends.

    The second derivatives are those by a and b, which make a positive matrix; the terms by which
    the ends themselves bend are left out.

    Args:
        log_mu, s: (B, N) each.
    """
    censored = design.censored
    scale = np.exp(-log_mu[:, censored])
    spread = s[:, censored]
    lower_ratio = design.limit[censored] * scale
    upper_ratio = np.where(np.isfinite(design.upper_limit), design.upper_limit, 0)[censored] * scale
    open_above = np.isinf(design.upper_limit[censored])

    a = (lower_ratio - 1) / spread
    b = np.where(open_above, np.inf, (upper_ratio - 1) / spread)
    log_p = _log_probability(a, b)
    # Densities at the ends over the probability between them; 0 at an end that is open.
    at_a = np.exp(-0.5 * a**2 - HALF_LOG_TAU - log_p)
    at_b = np.exp(-0.5 * b**2 - HALF_LOG_TAU - log_p)
    b = np.where(open_above, 0.0, b)

    a_a = at_a * (at_a - a)
    a_b = -at_a * at_b
    b_b = at_b * (at_b + b)
    # a and b fall by these with log mu, and by themselves with log s.
    da = lower_ratio / spread
    db = upper_ratio / spread

    cell.by_log_mu[:, censored] = at_b * db - at_a * da
    cell.by_log_s[:, censored] = at_b * b - at_a * a
    cell.mu_mu[:, censored] = da**2 * a_a + 2 * da * db * a_b + db**2 * b_b
    cell.mu_s[:, censored] = da * a * a_a + (da * b + db * a) * a_b + db * b * b_b
    cell.s_s[:, censored] = a**2 * a_a + 2 * a * b * a_b + b**2 * b_b


def _log_probability(a: Array, b: Array) -> Array:
    """log(Phi(b) - Phi(a)), any shape; a below b, which may be infinite."""
    # In the lower tail, where Phi is known to every digit.
    flipped = a + b > 0
    low = np.where(flipped, -b, a)
    high = np.where(flipped, -a, b)
    log_high = special.log_ndtr(high)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(log_high + np.log1p(-np.exp(special.log_ndtr(low) - log_high)))
