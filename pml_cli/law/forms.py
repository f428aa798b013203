r"""Forms of the law: dL = A S((C r^alpha l^-beta + b) / A), with A = base loss - floor.

A gain cannot exceed the base loss, and it bends before it gets there. S is the link: near 0 it is
the identity, so that far from the ceiling every form is the paper's; at infinity it is 1, so that
no prediction exceeds the base loss. A form with a level instead takes every sequence to start from
the same loss H once the adapter knows its source, whatever the base model made of it:
dL = L0 - H + H S(C r^alpha l^-beta / H); the final loss H (1 - S) is then free of the base loss.

A link is a class here, registered by `@register`. All that differs between links lies in their
classes; estimators, tables and figures ask the class.

Everything works on a batch of parameter vectors at once; the last axis is the cell. Shapes: B
problems, N cells, P = 8 parameters in the order of parameters.THETA_NAMES.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import special

from pml_cli.law.parameters import (
    ALPHA,
    BETA,
    FLOOR,
    LEVEL,
    LOG_K,
    THETA_NAMES,
    B,
    C,
    Interval,
    theta_bounds,
)
from pml_cli.stats import Array

# Slope of the link above which cells deviate from the law by its whole spread.
FULL_SPREAD_SLOPE = 1 / 3

# Below this logarithm of its argument a distribution function is that argument, up to rounding.
SMALL_LOG = -30.0

# What a form may have besides C, alpha and beta.
VARIANTS = ("plain", "offset", "floor", "level")


class Link(ABC):
    """How the gain bends towards its ceiling: S(x), with S(x) ~ x near 0."""

    name: ClassVar[str]
    """In law.json."""
    label: ClassVar[str]
    """In tables."""
    text: ClassVar[str]
    """S(x), in the notation of Python."""
    latex: ClassVar[str]
    """S(x), in math mode."""
    has_ceiling: ClassVar[bool] = True
    """Whether S stays below 1."""
    variants: ClassVar[tuple[str, ...]] = VARIANTS
    """Forms with this link that are fitted."""
    has_k: ClassVar[bool] = False
    """Whether S has a sharpness k."""
    k_bounds: ClassVar[Interval] = (0.5, 30.0)
    k_starts: ClassVar[tuple[float, ...]] = (2.0,)
    """Values of k at which the search starts."""
    limit: ClassVar[str | None] = None
    """The link that this one becomes at the upper bound of k."""

    @property
    def notation(self) -> str:
        """S(x), in the notation of the tables."""
        return self.text.replace("**", "^")

    @abstractmethod
    def log_s(self, log_x: Array, log_k: Array) -> Array:
        """log S(x), (B, N).

        Args:
            log_x: (B, N).
            log_k: (B, 1); of no effect on a link without k.
        """

    @abstractmethod
    def slope(self, log_x: Array, log_k: Array) -> Array:
        """d log S / d log x, (B, N)."""

    def slope_by_log_k(self, log_x: Array, log_k: Array) -> Array:
        """d log S / d log k, (B, N)."""
        return np.zeros_like(log_x)


LINKS: dict[str, Link] = {}


def register(link: type[Link]) -> type[Link]:
    """Make a link known by its name."""
    LINKS[link.name] = link()
    return link


@register
class Power(Link):
    """No ceiling: the paper's law."""

    name = "none"
    label = "power"
    text = "x"
    latex = "x"
    has_ceiling = False
    variants = ("plain", "offset")

    def log_s(self, log_x: Array, log_k: Array) -> Array:
        return log_x

    def slope(self, log_x: Array, log_k: Array) -> Array:
        return np.ones_like(log_x)


@register
class Hard(Link):
    """The power law up to the ceiling."""

    name = "hard"
    label = "hard"
    text = "min(1, x)"
    latex = r"\min(1, x)"
    variants = ("plain", "offset")

    def log_s(self, log_x: Array, log_k: Array) -> Array:
        return np.minimum(log_x, 0.0)

    def slope(self, log_x: Array, log_k: Array) -> Array:
        return np.asarray(log_x < 0, float)


@register
class Exponential(Link):
    """A soft bend that has no parameter of its own."""

    name = "exp"
    label = "exp"
    text = "1 - exp(-x)"
    latex = "1 - e^{-x}"

    def log_s(self, log_x: Array, log_k: Array) -> Array:
        x = np.exp(log_x)
        return np.asarray(np.log(-np.expm1(-x)))

    def slope(self, log_x: Array, log_k: Array) -> Array:
        # Beyond, the slope is 0 and exp(x) overflows.
        x = np.exp(np.minimum(log_x, 6.5))
        return np.asarray(x / np.expm1(x))


@register
class Hill(Link):
    """A bend whose sharpness k is fitted; at large k it cannot be distinguished from min(1, x)."""

    name = "hill"
    label = "hill"
    text = "x / (1 + x**k)**(1/k)"
    latex = "x / (1 + x^k)^{1/k}"
    has_k = True
    k_starts = (1.5, 5.0)
    limit = "hard"

    def log_s(self, log_x: Array, log_k: Array) -> Array:
        k = np.exp(log_k)
        # Infinite less infinite where there is no law.
        with np.errstate(invalid="ignore"):
            return np.asarray(log_x - np.logaddexp(0.0, k * log_x) / k)

    def slope(self, log_x: Array, log_k: Array) -> Array:
        return np.asarray(special.expit(-np.exp(log_k) * log_x))

    def slope_by_log_k(self, log_x: Array, log_k: Array) -> Array:
        k = np.exp(log_k)
        rise = special.expit(k * log_x) * log_x
        return np.asarray(np.logaddexp(0.0, k * log_x) / k - rise)


class Distribution(Link):
    """S(x) = G(x^k)^(1/k) with a distribution function G(v) = 1 - exp(-h(v)), ~ v near 0.

    Fitted without offset, floor and level: they are what the bend of these links would be taken
    for.
    """

    variants = ("plain",)
    has_k = True
    limit = "hard"

    def log_s(self, log_x: Array, log_k: Array) -> Array:
        k = np.exp(log_k)
        log_v = _within_range(k * log_x)
        bent = np.log(-np.expm1(-self._exponent(log_v))) / k
        return np.where(log_v > SMALL_LOG, bent, log_x)

    def slope_by_log_k(self, log_x: Array, log_k: Array) -> Array:
        return np.asarray(self.slope(log_x, log_k) * log_x - self.log_s(log_x, log_k))

    @abstractmethod
    def _exponent(self, log_v: Array) -> Array:
        """h(v), (B, N)."""


@register
class Weibull(Distribution):
    """The ceiling is approached faster than any power: tanh and erf have nearly this bend."""

    name = "weibull"
    label = "weibull"
    text = "(1 - exp(-x**k))**(1/k)"
    latex = r"(1 - e^{-x^k})^{1/k}"
    k_starts = (1.5, 5.0)

    def slope(self, log_x: Array, log_k: Array) -> Array:
        # Beyond, the slope is 0 and exp(v) overflows.
        log_v = np.clip(np.exp(log_k) * log_x, SMALL_LOG, 6.5)
        v = np.exp(log_v)
        return np.asarray(v / np.expm1(v))

    def _exponent(self, log_v: Array) -> Array:
        return np.asarray(np.exp(log_v))


class BurrXII(Distribution):
    """G(v) = 1 - (1 + v/p)^-p: Hill's with p = 1, Weibull's with infinite p (Burr 1942)."""

    p: ClassVar[float]
    """The ceiling is approached as x^(-k p)."""

    def slope(self, log_x: Array, log_k: Array) -> Array:
        log_v = _within_range(np.exp(log_k) * log_x)
        exponent = self._exponent(log_v)
        bent = np.exp(log_v - exponent * (1 + 1 / self.p)) / -np.expm1(-exponent)
        return np.where(log_v > SMALL_LOG, bent, 1.0)

    def _exponent(self, log_v: Array) -> Array:
        return np.asarray(self.p * np.logaddexp(0.0, log_v - math.log(self.p)))


@register
class SlowBurr(BurrXII):
    """Slower than Hill's: arctan has nearly this bend."""

    name = "burr"
    label = "burr"
    text = "(1 - (1 + 2*x**k)**(-1/2))**(1/k)"
    latex = r"(1 - (1 + 2 x^k)^{-1/2})^{1/k}"
    k_starts = (1.5, 4.0)
    p = 0.5


@register
class FastBurr(BurrXII):
    """Between Hill's and Weibull's: tokens of unequal difficulty have nearly this bend."""

    name = "burr3"
    label = "burr3"
    text = "(1 - (1 + x**k/3)**-3)**(1/k)"
    latex = r"(1 - (1 + x^k / 3)^{-3})^{1/k}"
    k_starts = (1.5, 4.0)
    p = 3.0


def _within_range(log_v: Array) -> Array:
    """(B, N) between the logarithms of which the exponential is a number."""
    return np.clip(log_v, SMALL_LOG, 600.0)


@dataclass(frozen=True, kw_only=True)
class Form:
    """Which law: its link, and the parameters that it has besides C, alpha, beta and the spread.

    Raises:
        ValueError: an unknown link, or parameters that do not go together.
    """

    link: str
    """A name in LINKS."""
    offset: bool = False
    """b: what is gained at any rank and length, nats per token."""
    floor: bool = False
    """A loss above 0 that no adapter gets below."""
    level: bool = False
    """H: the loss that memory starts from, the same for all cells."""
    beta: float | None = None
    """A fixed beta; 1 is constant capacity, the total gain does not depend on the length."""

    def __post_init__(self) -> None:
        if self.link not in LINKS:
            raise ValueError(f"link {self.link!r}; one of {', '.join(LINKS)}")
        if self.floor and not self.kind.has_ceiling:
            raise ValueError("a floor acts through the ceiling; it needs a link")
        if self.level and not self.kind.has_ceiling:
            raise ValueError("a level acts through the ceiling; it needs a link")
        if self.level and (self.offset or self.floor):
            raise ValueError("a level takes the place of offset and floor")

    @property
    def kind(self) -> Link:
        """The link itself."""
        return LINKS[self.link]

    @property
    def name(self) -> str:
        """For tables: hill + b + floor, beta=1."""
        terms = [self.kind.label]
        for name, has in (("b", self.offset), ("floor", self.floor), ("level", self.level)):
            if has:
                terms.append(name)
        fixed = "" if self.beta is None else f", beta={self.beta:g}"
        return " + ".join(terms) + fixed

    def formula(self, size: str) -> str:
        """The law in the notation of Python, with the columns of cells.csv.

        dL and L0 are its delta_loss and base_loss.

        Args:
            size: the column that the law is about, `SizeAxis.column`.
        """
        exponent = "-beta" if self.beta is None else f"-{self.beta:g}"
        power = f"C * {size}**alpha * target_tokens**{exponent}"
        x = power + (" + b" if self.offset else "")
        if not self.kind.has_ceiling:
            return f"dL = {x}"
        ceiling, start = self._ceiling("level")
        return f"dL = {start}{ceiling} * S(x), x = ({x}) / {ceiling}, S(x) = {self.kind.text}"

    def notation(self, symbol: str) -> str:
        """The law in the notation of the tables, on one line of 80 columns.

        Args:
            symbol: of the size, r or N.
        """
        x = f"C {symbol}^alpha l^-beta" + (" + b" if self.offset else "")
        if not self.kind.has_ceiling:
            return f"dL = {x}"
        ceiling, start = self._ceiling("H")
        return f"dL = {start}{ceiling} S(x), x = ({x}) / {ceiling}, S = {self.kind.notation}"

    def _ceiling(self, level: str) -> tuple[str, str]:
        """The factor of S in a formula, and what is gained before memory starts."""
        if self.level:
            return level, f"L0 - {level} + "
        return ("(L0 - floor)" if self.floor else "L0"), ""

    @property
    def free(self) -> tuple[int, ...]:
        """Positions of the free parameters in theta, in ascending order."""
        fixed = set()
        if self.beta is not None:
            fixed.add(BETA)
        if not self.offset:
            fixed.add(B)
        if not self.kind.has_k:
            fixed.add(LOG_K)
        if not self.floor:
            fixed.add(FLOOR)
        if not self.level:
            fixed.add(LEVEL)
        return tuple(p for p in range(len(THETA_NAMES)) if p not in fixed)

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Lower and upper bound of theta, (P,) each."""
        return theta_bounds(self.kind.k_bounds)


def _candidate_forms() -> tuple[Form, ...]:
    """Every variant of every link: those without a ceiling first, then the simplest first."""
    # The order is that of the tables and of law.json.
    forms = []
    for has_ceiling in (False, True):
        for variant in VARIANTS:
            for link in LINKS.values():
                if link.has_ceiling == has_ceiling and variant in link.variants:
                    extra = {} if variant == "plain" else {variant: True}
                    forms.append(Form(link=link.name, **extra))
    return tuple(forms)


FORMS = _candidate_forms()


def log_gain(
    theta_BP: Array,
    x_N: Array,
    y_N: Array,
    base_N: Array,
    link: str,
) -> Array:
    """Log of the gain in nats per token, (B, N).

    It is nan where the parameters have no law: power and b are below 0 together.

    Args:
        theta_BP: (B, P).
        x_N, y_N: log rank and log length, centred as the parameters are.
        base_N: loss of the base model, nats per token.
    """
    _, log_inner, log_ceiling = _power_and_ceiling(theta_BP, x_N, y_N, base_N)
    # Not the ceiling times S = x, which would round.
    if not LINKS[link].has_ceiling:
        return log_inner

    log_k = theta_BP[:, LOG_K, None]
    log_x = log_inner - log_ceiling
    log_memory = log_ceiling + LINKS[link].log_s(log_x, log_k)
    return _add_start(log_memory, theta_BP[:, LEVEL, None], base_N)


def log_gain_slopes(
    theta_BP: Array,
    x_N: Array,
    y_N: Array,
    base_N: Array,
    *,
    link: str,
    wanted: tuple[int, ...],
) -> tuple[Array, Array]:
    """`log_gain` and its derivatives, (B, N) and (B, N, W).

    Args:
        theta_BP, x_N, y_N, base_N: as for `log_gain`.
        wanted: positions in theta of the W parameters, without LOG_SPREAD.
    """
    power, log_inner, log_ceiling = _power_and_ceiling(theta_BP, x_N, y_N, base_N)
    kind = LINKS[link]
    log_k = theta_BP[:, LOG_K, None]
    level = theta_BP[:, LEVEL, None]
    log_x = log_inner - log_ceiling

    if kind.has_ceiling:
        log_memory = log_ceiling + kind.log_s(log_x, log_k)
        slope = kind.slope(log_x, log_k)
        log_total = _add_start(log_memory, level, base_N)
    else:
        log_memory = log_inner
        slope = np.ones_like(log_inner)
        log_total = log_inner

    # The share of the gain that is memory: 1 without a level.
    memory_share = np.exp(log_memory - log_total)
    by_log_power = memory_share * slope * power * np.exp(-log_inner)

    def by_level() -> Array:
        # Through the ceiling, and through what is gained before memory starts.
        memory = np.exp(log_memory)
        by_ceiling = memory / np.maximum(level, 1e-12) * (1 - slope)
        return np.asarray((by_ceiling - 1) * np.exp(-log_total))

    # Functions: only the wanted ones are computed.
    columns: dict[int, Callable[[], Array]] = {
        C: lambda: by_log_power,
        ALPHA: lambda: by_log_power * x_N,
        BETA: lambda: -by_log_power * y_N,
        B: lambda: memory_share * slope * np.exp(-log_inner),
        LOG_K: lambda: memory_share * kind.slope_by_log_k(log_x, log_k),
        LEVEL: by_level,
        # The floor acts through the ceiling alone.
        FLOOR: lambda: -(1 - slope) * np.exp(-log_ceiling),
    }
    derivatives = np.empty((*log_total.shape, len(wanted)))
    for k, parameter in enumerate(wanted):
        derivatives[..., k] = columns[parameter]()
    return log_total, derivatives


def link_slopes(
    theta_BP: Array,
    x_N: Array,
    y_N: Array,
    base_N: Array,
    link: str,
) -> Array:
    """The link's slope d log S / d log x, (B, N): 1 where the gain is a power, 0 at the ceiling.

    Args:
        theta_BP, x_N, y_N, base_N: as for `log_gain`.
    """
    kind = LINKS[link]
    if not kind.has_ceiling:
        return np.ones((len(theta_BP), len(x_N)))
    _, log_inner, log_ceiling = _power_and_ceiling(theta_BP, x_N, y_N, base_N)
    return kind.slope(log_inner - log_ceiling, theta_BP[:, LOG_K, None])


def relative_spread(
    theta_BP: Array,
    x_N: Array,
    y_N: Array,
    base_N: Array,
    link: str,
) -> Array:
    """The spread of a cell relative to that far below the ceiling, (B, N), 1 down to 0.

    On the cells of benchmarks/scan.csv the relative residuals have one spread wherever the link's
    slope is above a third; below, it falls with the root of the slope or faster: an adapter with
    capacity to spare recalls its text, whatever text.

    Args:
        theta_BP, x_N, y_N, base_N: as for `log_gain`.
    """
    slope = link_slopes(theta_BP, x_N, y_N, base_N, link)
    # nan where there is no law, as far from the cells where b is below 0
    relative_slope = np.nan_to_num(slope) / FULL_SPREAD_SLOPE
    spread: Array = np.sqrt(np.minimum(1.0, relative_slope))
    return spread


def _power_and_ceiling(
    theta_BP: Array,
    x_N: Array,
    y_N: Array,
    base_N: Array,
) -> tuple[Array, Array, Array]:
    """C r^alpha l^-beta, the log of that + b, and the log of the ceiling: (B, N) each."""
    # (B, 1) each
    c = theta_BP[:, C, None]
    alpha = theta_BP[:, ALPHA, None]
    beta = theta_BP[:, BETA, None]
    b = theta_BP[:, B, None]
    floor = theta_BP[:, FLOOR, None]
    level = theta_BP[:, LEVEL, None]

    # exp overflows above 709.
    log_power = np.minimum(c + alpha * x_N - beta * y_N, 700.0)
    power = np.exp(log_power)
    ceiling = np.where(level > 0, level, base_N - floor)
    # Without b the logarithm is known exactly; with b below 0 there may be none.
    with np.errstate(invalid="ignore", divide="ignore"):
        log_sum = np.log(power + b)
        log_ceiling = np.log(ceiling)
    log_inner = np.where(b == 0, log_power, log_sum)
    return power, log_inner, log_ceiling


def _add_start(log_memory: Array, level: Array, base_N: Array) -> Array:
    """Log of the gain, (B, N), with what is gained between the base loss and the level."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.log(np.exp(log_memory) + base_N - level)
        return np.asarray(np.where(level > 0, total, log_memory))
