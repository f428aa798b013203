"""Censored maximum likelihood, many problems at once: Fisher scoring with Levenberg damping inside a box.

A cell's gain is normal around the law with a spread that is a share of it: sd = s * sd_of_the_cell * law. Of a saturated
cell only that its gain exceeded its limit is used (right-censored, as in Tobin's model): its exact loss says how long it
was trained, not what it can hold. Problems of one batch differ in start and in weights (bootstrap draws, grid nodes, points
of a profile); they share cells and form.

Shapes: B problems, N cells, P parameters (saturation.PARAMETERS), F free ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from pml_cli.law.forms import HIGH, LOG_S, LOW, Form, log_gain, log_gain_slopes
from pml_cli.stats import Array, Mask

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
TOLERANCE = 1e-9  # of the log-likelihood: a standard error of 1 moves by less than 1e-4
DAMPING = (1e-9, 1e-3, 1e9)  # least, first, and where a problem is given up


@dataclass(frozen=True)
class Design:
    """What the likelihood sees of the cells."""

    x: Array  # (N,) log rank, centred
    y: Array  # (N,) log length, centred
    base: Array  # (N,) nats per token
    delta: Array  # (N,) nats per token
    limit: Array  # (N,) the gain at which a cell counts as saturated
    censored: Mask  # (N,)
    sd: Array  # (N,) spread of each cell against the others


def minimise(
    theta_BP: Array,
    design: Design,
    form: Form,
    *,
    weights_BN: Array | None = None,
    free: tuple[int, ...] | None = None,
    iterations: int = 100,
) -> tuple[Array, Array]:
    """The least negative log-likelihood of each problem, from its start.

    Args:
        theta_BP: starts; parameters that are not free stay where they are.
        weights_BN: how often each cell counts; once when None.
        free: places in PARAMETERS; those of the form when None.

    Returns:
        Parameters (B, P) and the sum over cells of the negative log-likelihood (B,); inf where the start has no law.
    """
    free_F = np.array(form.free if free is None else free)
    theta = np.clip(theta_BP, LOW, HIGH)
    weights = np.ones((1, 1)) if weights_BN is None else weights_BN
    value = loss(theta, design, form, weights)
    damping = np.full(len(theta), DAMPING[1])
    going = np.flatnonzero(np.isfinite(value))
    for _ in range(iterations):
        if not len(going):
            break
        w = weights if len(weights) == 1 else weights[going]
        gradient, information = derivatives(theta[going], design, form, w, free_F)
        trial = _step(theta[going], gradient, information, damping[going], free_F)
        found = loss(trial, design, form, w)
        gained = value[going] - found
        better = gained >= 0
        theta[going[better]], value[going[better]] = trial[better], found[better]
        damping[going] = np.where(
            better, np.maximum(damping[going] * 0.1, DAMPING[0]), damping[going] * 10
        )
        ended = (better & (gained < TOLERANCE)) | (damping[going] > DAMPING[2])
        going = going[~ended]
    return theta, value


def _step(
    theta: Array, gradient: Array, information: Array, damping: Array, free_F: Array
) -> Array:
    """One damped scoring step; a parameter that its bound holds back takes no part in it."""
    at = theta[:, free_F]
    held = ((at <= LOW[free_F]) & (gradient > 0)) | ((at >= HIGH[free_F]) & (gradient < 0))
    scale = np.sqrt(np.maximum(np.einsum("bff->bf", information), 1e-30))
    scaled = information / (scale[:, :, None] * scale[:, None, :])
    scaled *= ~(held[:, :, None] | held[:, None, :])
    scaled += np.eye(len(free_F)) * (held[:, None, :] + damping[:, None, None] + 1e-13)
    solved = np.linalg.solve(scaled, np.where(held, 0, gradient / scale)[..., None])[..., 0]
    trial = theta.copy()
    trial[:, free_F] = np.clip(at - solved / scale, LOW[free_F], HIGH[free_F])
    return trial


def loss(theta_BP: Array, design: Design, form: Form, weights: Array) -> Array:
    """Negative log-likelihood, (B,): a sum over the cells; inf where there is no law."""
    log_mu = log_gain(theta_BP, design.x, design.y, design.base, form.link)
    seen, hidden = ~design.censored, design.censored
    log_s = theta_BP[:, LOG_S, None] + np.log(design.sd)
    per_cell = np.empty_like(log_mu)
    with np.errstate(over="ignore", invalid="ignore"):
        mu = np.exp(log_mu)
        z = (design.delta[seen] / mu[:, seen] - 1) / np.exp(log_s[:, seen])
        per_cell[:, seen] = log_mu[:, seen] + log_s[:, seen] + 0.5 * z**2 + HALF_LOG_TAU
        a = (1 - design.limit[hidden] / mu[:, hidden]) / np.exp(log_s[:, hidden])
        per_cell[:, hidden] = -special.log_ndtr(a)
    total = (per_cell * weights).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def derivatives(
    theta_BP: Array, design: Design, form: Form, weights: Array, free_F: Array
) -> tuple[Array, Array]:
    """Gradient (B, F) and information (B, F, F) of `loss`: expected for the cells seen, observed for the censored ones."""
    law_free = _law_places(free_F)
    slopes, parts = _per_cell(theta_BP, design, form, law_free)
    g1, g2, h11, h12, h22 = (part * weights for part in parts)
    size = len(law_free)
    gradient = np.empty((len(theta_BP), len(free_F)))
    information = np.empty((len(theta_BP), len(free_F), len(free_F)))
    gradient[:, :size] = (g1[:, None, :] @ slopes)[:, 0]
    information[:, :size, :size] = (slopes * h11[..., None]).transpose(0, 2, 1) @ slopes
    if LOG_S in free_F:  # the last parameter, so the last free one
        gradient[:, size], information[:, size, size] = g2.sum(axis=1), h22.sum(axis=1)
        information[:, :size, size] = information[:, size, :size] = (h12[:, None, :] @ slopes)[:, 0]
    return gradient, information


def scores(theta_P: Array, design: Design, form: Form, free_F: Array) -> Array:
    """Each cell's part of the gradient at one parameter vector, (N, F)."""
    law_free = _law_places(free_F)
    slopes, (g1, g2, *_) = _per_cell(theta_P[None], design, form, law_free)
    found = slopes[0] * g1[0][:, None]
    return np.concatenate([found, g2[0][:, None]], axis=1) if LOG_S in free_F else found


def _law_places(free_F: Array) -> tuple[int, ...]:
    return tuple(int(p) for p in free_F if p != LOG_S)


def _per_cell(
    theta_BP: Array, design: Design, form: Form, law_free: tuple[int, ...]
) -> tuple[Array, tuple[Array, ...]]:
    """Slopes of log mu (B, N, F - 1), and five (B, N): gradient and information by log mu (1) and by log s (2)."""
    log_mu, slopes = log_gain_slopes(
        theta_BP, design.x, design.y, design.base, link=form.link, wanted=law_free
    )
    s = np.exp(theta_BP[:, LOG_S, None]) * design.sd
    ratio = np.where(design.censored, design.limit, design.delta) * np.exp(-log_mu)
    z = (ratio - 1) / s
    g1, g2, h11, h12, h22 = (
        1 - z * ratio / s,
        1 - z**2,
        1 / s**2 + 2,
        np.full_like(z, 2.0),
        np.full_like(z, 2.0),
    )
    hidden = design.censored
    if hidden.any():  # with a = -z and h = phi(a) / Phi(a)
        a, turn = -z[:, hidden], (ratio / s)[:, hidden]
        h = np.exp(-0.5 * a**2 - HALF_LOG_TAU - special.log_ndtr(a))
        bend = h * (h + a)
        g1[:, hidden], g2[:, hidden] = -h * turn, h * a
        h11[:, hidden], h12[:, hidden], h22[:, hidden] = (
            bend * turn**2,
            -bend * turn * a,
            bend * a**2,
        )
    return slopes, (g1, g2, h11, h12, h22)
