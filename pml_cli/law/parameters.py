"""The eight parameters of a law of the gain: their order, bounds, and natural units.

A fit works on theta, whose scale is the logarithm of the gain at the centre of the cells; reports
give natural parameters, at rank 1 and length 1. Shapes: B problems, P = 8 parameters.
"""

from __future__ import annotations

import math

import numpy as np

from pml_cli.stats import Array, Mask, safe_exp

Interval = tuple[float, float]
"""Lower and upper end."""
Centre = tuple[float, float]
"""Mean log rank and mean log length of the cells: where c is centred."""

# c is log C at the mean log rank and mean log length, log_s the log of the relative spread of a
# cell around the law, level the loss H in nats per token (0 where the law has none).
THETA_NAMES = ("c", "alpha", "beta", "b", "log_k", "floor", "level", "log_s")
NATURAL_NAMES = ("C", "alpha", "beta", "b", "k", "floor", "level", "spread")

# Positions in theta.
C = 0
ALPHA = 1
BETA = 2
B = 3
LOG_K = 4
FLOOR = 5
LEVEL = 6
LOG_SPREAD = 7

# Parameters whose intervals are symmetric in the logarithm.
ON_LOG_SCALE = ("C", "k", "spread")

# At exponents of 0 the power law becomes a logarithm, and C and b diverge.
EXPONENT_BOUNDS = (0.01, 5.0)
SPREAD_BOUNDS = (1e-8, math.exp(3))


def theta_bounds(k_bounds: Interval) -> tuple[Array, Array]:
    """Lower and upper bound of theta, (P,) each.

    Args:
        k_bounds: of the sharpness k.
    """
    lower = np.array(
        [
            -50,
            EXPONENT_BOUNDS[0],
            EXPONENT_BOUNDS[0],
            -50,
            math.log(k_bounds[0]),
            0,
            0,
            math.log(SPREAD_BOUNDS[0]),
        ]
    )

    upper = np.array(
        [
            50,
            EXPONENT_BOUNDS[1],
            EXPONENT_BOUNDS[1],
            50,
            math.log(k_bounds[1]),
            5,
            50,
            math.log(SPREAD_BOUNDS[1]),
        ]
    )
    return lower, upper


def uncentring(centre: Centre) -> Array:
    """(P, P) matrix from theta to the same with log C at rank 1 and length 1.

    Args:
        centre: mean log rank and mean log length of the cells.
    """
    matrix = np.eye(len(THETA_NAMES))
    matrix[C, ALPHA] = -centre[0]
    matrix[C, BETA] = centre[1]
    return matrix


def to_natural(theta_BP: Array, centre: Centre) -> Array:
    """Parameters in natural units, (B, P) in the order of NATURAL_NAMES."""
    uncentred = theta_BP @ uncentring(centre).T
    # exp overflows above 709.
    exponentials = np.exp(np.minimum(uncentred, 700))
    natural: Array = np.where(_is_log(), exponentials, uncentred)
    return natural


def to_interval_scale(natural: Array) -> Array:
    """Natural parameters (..., P) on the scale on which their intervals are symmetric."""
    # Parameters that are not logarithms may be 0 or below.
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(natural)
    scaled: Array = np.where(_is_log(), logs, natural)
    return scaled


def intervals_of(
    low: Array,
    high: Array,
    free: tuple[int, ...],
) -> dict[str, Interval]:
    """Intervals in natural units, by name.

    Args:
        low, high: ends on the scale of `to_interval_scale`, (P,) each.
        free: positions of the parameters that have one.
    """
    intervals = {}
    for p in free:
        name = NATURAL_NAMES[p]
        ends = (float(low[p]), float(high[p]))
        if name in ON_LOG_SCALE:
            ends = (safe_exp(ends[0]), safe_exp(ends[1]))
        intervals[name] = ends
    return intervals


def _is_log() -> Mask:
    """(P,) the parameters whose theta is a logarithm."""
    return np.isin(NATURAL_NAMES, ON_LOG_SCALE)
