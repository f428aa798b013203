"""Laws of the gain that know its ceiling: dL = A S((C r^alpha l^-beta + b) / A), with A = base loss - floor.

A gain cannot exceed the base loss, and it bends before it gets there. S is the link: near 0 it is the identity, so that far
from the ceiling every one of these laws is the paper's; at infinity it is 1, so that no prediction exceeds the base loss.
A law with a level instead takes every sequence to start from the same loss H once the adapter knows its source, whatever the
base model made of it: dL = L0 - H + H S(C r^alpha l^-beta / H); the final loss H (1 - S) does not depend on the base loss.
Everything here works on a batch of parameter vectors at once; the last axis is the cell.

Shapes: B problems, N cells, P = 8 parameters in the order of PARAMETERS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from pml_cli.law.power_law import EXPONENTS
from pml_cli.stats import Array

# c is log C at the mean of log rank and of log length; log_s the log of the relative spread of a cell around the law
# level is H, nats per token; 0 where the law has none
PARAMETERS = ("c", "alpha", "beta", "b", "log_k", "floor", "level", "log_s")
C, ALPHA, BETA, B, LOG_K, FLOOR, LEVEL, LOG_S = range(len(PARAMETERS))
LINKS = ("none", "hard", "exp", "hill")
HILL = (0.5, 30.0)  # bounds of k; at 30 the curve cannot be told from min(1, x)
LEAST_SPREAD = 1e-8
FULL_SPREAD = 1 / 3  # slope of the link above which cells deviate from the law by its whole spread
LOW = np.array(
    [-50, EXPONENTS[0], EXPONENTS[0], -50, math.log(HILL[0]), 0, 0, math.log(LEAST_SPREAD)]
)
HIGH = np.array([50, EXPONENTS[1], EXPONENTS[1], 50, math.log(HILL[1]), 5, 50, 3])


@dataclass(frozen=True)
class Form:
    """Which law: its link, and which parameters are free besides C, alpha, beta and the spread."""

    link: str  # none | hard | exp | hill
    offset: bool = False  # b: what is gained at any rank and length, in nats per token
    floor: bool = False  # a loss above 0 that no adapter gets below
    level: bool = False  # H: the loss that memory starts from, the same for all cells
    beta: float | None = (
        None  # held there; 1 is constant capacity: the nats gained in all do not depend on the length
    )

    def __post_init__(self) -> None:
        if self.link not in LINKS:
            raise ValueError(f"link {self.link!r}; one of {', '.join(LINKS)}")
        if self.floor and self.link == "none":
            raise ValueError("a floor acts through the ceiling; it needs a link")
        if self.level and (self.link == "none" or self.offset or self.floor):
            raise ValueError("a level takes the place of offset and floor, and needs a link")

    @property
    def name(self) -> str:
        """For tables: hill + b + floor, beta=1."""
        parts = [self.link if self.link != "none" else "power", *(["b"] if self.offset else [])]
        parts += [*(["floor"] if self.floor else []), *(["level"] if self.level else [])]
        return " + ".join(parts) + (f", beta={self.beta:g}" if self.beta is not None else "")

    @property
    def formula(self) -> str:
        """In plain text."""
        inner = "C * rank**alpha * length**" + ("-beta" if self.beta is None else f"-{self.beta:g}")
        inner += " + b" if self.offset else ""
        if self.link == "none":
            return f"dL = {inner}"
        ceiling = "(L0 - floor)" if self.floor else ("level" if self.level else "L0")
        start = "L0 - level + " if self.level else ""
        link = {"hard": "min(1, x)", "exp": "1 - exp(-x)", "hill": "x / (1 + x**k)**(1/k)"}[
            self.link
        ]
        return f"dL = {start}{ceiling} * S(x), x = ({inner}) / {ceiling}, S(x) = {link}"

    @property
    def free(self) -> tuple[int, ...]:
        """Places of the free parameters in PARAMETERS."""
        switch = {
            BETA: self.beta is None,
            B: self.offset,
            LOG_K: self.link == "hill",
            FLOOR: self.floor,
            LEVEL: self.level,
        }
        return tuple(p for p in range(len(PARAMETERS)) if switch.get(p, True))


def log_gain(theta_BP: Array, x_N: Array, y_N: Array, base_N: Array, link: str) -> Array:
    """Log of the gain in nats per token, (B, N); nan where the parameters have no law there (power and b below 0 together).

    Args:
        theta_BP: parameters (PARAMETERS).
        x_N, y_N: log rank and log length, centred as the parameters are.
        base_N: loss of the base model, nats per token.
    """
    _, log_inner, log_ceiling = _parts(theta_BP, x_N, y_N, base_N)
    if link == "none":
        return log_inner
    found = log_ceiling + _log_link(log_inner - log_ceiling, theta_BP[:, LOG_K, None], link)
    return _from_level(found, theta_BP[:, LEVEL, None], base_N)


def log_gain_slopes(
    theta_BP: Array, x_N: Array, y_N: Array, base_N: Array, *, link: str, wanted: tuple[int, ...]
) -> tuple[Array, Array]:
    """`log_gain` and its derivatives by the `wanted` parameters (places in PARAMETERS, without LOG_S): (B, N), (B, N, W)."""
    power, log_inner, log_ceiling = _parts(theta_BP, x_N, y_N, base_N)
    log_k, level = theta_BP[:, LOG_K, None], theta_BP[:, LEVEL, None]
    ratio = log_inner - log_ceiling
    if link == "none":
        value = within = log_inner
        slope = np.ones_like(log_inner)
    else:
        within, slope = log_ceiling + _log_link(ratio, log_k, link), _link_slope(ratio, log_k, link)
        value = _from_level(within, level, base_N)
    share = np.exp(within - value)  # of the gain that is memory; 1 without a level
    by_log_power = share * slope * power * np.exp(-log_inner)
    out = np.empty((*value.shape, len(wanted)))
    for k, place in enumerate(wanted):
        if place == C:
            out[..., k] = by_log_power
        elif place == ALPHA:
            out[..., k] = by_log_power * x_N
        elif place == BETA:
            out[..., k] = -by_log_power * y_N
        elif place == B:
            out[..., k] = share * slope * np.exp(-log_inner)
        elif place == LOG_K:
            out[..., k] = share * _hill_slope_log_k(ratio, log_k)
        elif place == LEVEL:
            out[..., k] = (np.exp(within) / np.maximum(level, 1e-12) * (1 - slope) - 1) * np.exp(
                -value
            )
        else:  # the floor acts through the ceiling alone
            out[..., k] = -(1 - slope) * np.exp(-log_ceiling)
    return value, out


def spread_share(theta_BP: Array, x_N: Array, y_N: Array, base_N: Array, link: str) -> Array:
    """How much of the spread of a cell is left near the ceiling, (B, N): 1 where the law rises, down to 0 where it is flat.

    On the cells of benchmarks/scan.csv the relative residuals are alike wherever the link's slope d log S / d log x is above
    a third; below, they go down with its root or faster: an adapter with capacity to spare recalls its text, whatever text.
    """
    if link == "none":
        return np.ones((len(theta_BP), len(x_N)))
    _, log_inner, log_ceiling = _parts(theta_BP, x_N, y_N, base_N)
    slope = _link_slope(log_inner - log_ceiling, theta_BP[:, LOG_K, None], link)
    return np.asarray(
        np.sqrt(np.minimum(1.0, np.nan_to_num(slope) / FULL_SPREAD))
    )  # nan: no law there, as far out if b < 0


def _parts(theta_BP: Array, x_N: Array, y_N: Array, base_N: Array) -> tuple[Array, Array, Array]:
    """C r^alpha l^-beta, the log of that + b, the log of the ceiling: each (B, N)."""
    c, alpha, beta, b, _, floor, level, _ = (theta_BP[:, p, None] for p in range(len(PARAMETERS)))
    log_power = np.minimum(c + alpha * x_N - beta * y_N, 700.0)
    power = np.exp(log_power)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_inner = np.where(b == 0, log_power, np.log(power + b))
        log_ceiling = np.log(np.where(level > 0, level, base_N - floor))
    return power, log_inner, log_ceiling


def _from_level(log_memory: Array, level: Array, base_N: Array) -> Array:
    """Log of the gain, with what is gained between the base loss and the level."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(
            np.where(level > 0, np.log(np.exp(log_memory) + base_N - level), log_memory)
        )


def _log_link(ratio: Array, log_k: Array, link: str) -> Array:
    """log S(x) from log x."""
    if link == "hard":
        return np.minimum(ratio, 0.0)
    if link == "exp":
        return np.asarray(np.log(-np.expm1(-np.exp(ratio))))
    k = np.exp(log_k)
    with np.errstate(invalid="ignore"):
        return np.asarray(ratio - np.logaddexp(0.0, k * ratio) / k)


def _link_slope(ratio: Array, log_k: Array, link: str) -> Array:
    """d log S / d log x."""
    if link == "hard":
        return np.asarray(ratio < 0, float)
    if link == "exp":
        x = np.exp(np.minimum(ratio, 6.5))
        return np.asarray(x / np.expm1(x))
    return np.asarray(special.expit(-np.exp(log_k) * ratio))


def _hill_slope_log_k(ratio: Array, log_k: Array) -> Array:
    k = np.exp(log_k)
    return np.asarray(np.logaddexp(0.0, k * ratio) / k - special.expit(k * ratio) * ratio)
