"""Effective parameters against bits: one line for models, placements and sources?

At even chance of exact recall an adapter of N effective parameters (`observations.EFFECTIVE`) holds
a target of so many bits:

    N = c bits^s

The bits of a target of l tokens are l min(L0, H) / ln 2: the length of its shortest code among two,
that of the base model (L0, its measured loss) and that of the source where its entropy H is known
(random tokens: ln V; a base model codes those worse than a uniform guess does).

Texts are the units: a text has a threshold for each length, and lies off the line by the mean of
theirs. The line is fitted with equal weight for each group; whether groups share it is tested
against the spread of their texts and the steps between the ranks tried. What a group that is not
among them would need is less certain by the spread *between* groups.

Shapes: P points (a text at a length), T texts, G groups, D draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from pml_cli.law.half_recall import WITHIN, half_recall_rank
from pml_cli.law.observations import EFFECTIVE
from pml_cli.stats import LN2, Array, safe_exp, t_quantile

# Bootstrap draws of texts.
DRAWS = 1000

# Distance from the line, as a share, that counts as on it.
CLOSE = 0.15

POINT_COLUMNS = ("group", "text", "length", "bits", "parameters", "log_step", "outside")


@dataclass(frozen=True, kw_only=True)
class LineGroup:
    """One group of cells against the line of all."""

    name: str
    texts: int
    ratio: float
    """Parameters over those of the line, geometric mean over texts and lengths."""
    low: float
    """95 % interval of the ratio by Student's t over texts, the steps between ranks included."""
    high: float
    exponent: float
    """s of this group alone; nan with one length."""
    exponent_error: float
    """Its standard error."""


@dataclass(frozen=True, kw_only=True)
class BitsLine:
    """N = c bits^s over the groups of one loss."""

    loss: str
    size: str = "parameters"
    """What N is, a name of `observations.SIZE_AXES`; reports of older versions do not say it."""
    c: float
    s: float
    s_low: float
    """95 % interval of s over texts, for these groups; nan with one text."""
    s_high: float
    log_bits: float
    """Mean log bits of the points; `level` is the value of the line there."""
    level: float
    """Log N on the line at `log_bits`."""
    covariance: list[list[float]]
    """Covariance of (level, s) over texts, (2, 2); nan with one text."""
    between: float
    """Standard deviation of groups around the line, on logs."""
    same_level_p: float
    """p that all groups share one level: F test over texts; nan where it cannot be tested."""
    same_exponent_p: float
    """p that all groups share one exponent: F test over texts."""
    least_bits: float
    most_bits: float
    texts: int
    outside: int
    """Texts and lengths whose threshold lies below or above all ranks tried: left out."""
    groups: list[LineGroup]
    """In the order of the fits."""

    @property
    def close(self) -> int:
        """Groups within CLOSE of the line."""
        return sum(abs(group.ratio - 1) <= CLOSE for group in self.groups)

    def parameters(self, bits: float) -> tuple[float, float, float]:
        """Parameters that a new group needs for so many bits, with a 95 % prediction interval.

        A new model or placement lies off the line as those fitted do. With one text there is no
        interval (nan).
        """
        x = math.log(bits) - self.log_bits
        log_parameters = self.level + self.s * x
        (of_level, with_s), (with_level, of_s) = self.covariance
        variance = of_level + (with_s + with_level) * x + of_s * x * x
        count = len(self.groups)
        variance += self.between**2 * (1 + 1 / count)
        # A covariance of a file that is none has no root.
        half = t_quantile(count - 1) * math.sqrt(variance) if variance >= 0 else math.nan
        low, high = safe_exp(log_parameters - half), safe_exp(log_parameters + half)
        return safe_exp(log_parameters), low, high


def threshold_points(group: str, cells: pd.DataFrame) -> pd.DataFrame:
    """The effective parameters at which each text is recalled with even chance, for each length.

    Args:
        group: its name.
        cells: rows of result.json, those that a law may use.

    Returns:
        POINT_COLUMNS: bits of the target, parameters, log_step (between the sizes tried, on logs)
        and outside (WITHIN, or on which side of all sizes; parameters is a bound there).
    """
    numbers = cells.assign(exact_match=pd.to_numeric(cells["exact_match"], errors="coerce"))
    measured = numbers.dropna(subset=["exact_match", EFFECTIVE.column])
    rows = []
    for _, runs in measured.groupby(["data_seed", "target_tokens"], dropna=False):
        seed = runs["data_seed"].iloc[0]
        length = float(runs["target_tokens"].iloc[0])
        recalled = runs.groupby(EFFECTIVE.column)["exact_match"].mean().sort_index()
        if len(recalled) < 2:
            continue
        sizes = recalled.index.to_numpy(float)
        parameters, outside = half_recall_rank(sizes, recalled.to_numpy(float))
        rows.append(
            {
                "group": group,
                "text": f"{runs['model'].iloc[0]}/{runs['data'].iloc[0]}/{seed}",
                "length": length,
                "bits": length * _nats(runs) / LN2,
                "parameters": parameters,
                "log_step": float(np.median(np.diff(np.log(sizes)))),
                "outside": outside,
            }
        )
    table = pd.DataFrame(rows, columns=list(POINT_COLUMNS))
    # A table without rows has no types, and would take them from those it is joined with.
    return table.astype(dict.fromkeys(("length", "bits", "parameters", "log_step"), float))


def _nats(runs: pd.DataFrame) -> float:
    """Nats per token of a target: the base loss, or the entropy of the source where it is less."""
    base = float(runs["base_loss"].mean())
    entropy = pd.to_numeric(runs["source_nats"], errors="coerce").min()
    return float(np.fmin(base, entropy))


def fit_line(loss: str, points: pd.DataFrame) -> BitsLine | None:
    """One line through the points of several groups; None for fewer than two groups or bits.

    Args:
        loss: of all groups.
        points: from `threshold_points`, of every group.
    """
    within = points[points["outside"] == WITHIN].reset_index(drop=True)
    if within["group"].nunique() < 2 or within["bits"].nunique() < 2:
        return None

    x = np.log(within["bits"].to_numpy(float))
    y = np.log(within["parameters"].to_numpy(float))
    weights = 1 / within.groupby("group")["bits"].transform("size").to_numpy(float)
    centre = float(np.average(x, weights=weights))
    level, s = _weighted_line(x - centre, y, weights[None])[0]
    covariance = _text_covariance(within["text"], x - centre, y, weights)

    residuals = within.assign(x=x, y=y, residual=y - level - s * (x - centre))
    groups = [_group(str(name), rows) for name, rows in residuals.groupby("group", sort=False)]
    texts = within["text"].nunique()
    # With one text the covariance is nan, and so are the ends.
    half = t_quantile(max(1, texts - 1)) * math.sqrt(covariance[1, 1])
    log_ratios = np.log([group.ratio for group in groups])
    return BitsLine(
        loss=loss,
        size=EFFECTIVE.name,
        c=math.exp(level - s * centre),
        s=float(s),
        s_low=float(s - half),
        s_high=float(s + half),
        log_bits=centre,
        level=float(level),
        covariance=covariance.tolist(),
        between=float(np.std(log_ratios, ddof=1)),
        same_level_p=_same_level(groups),
        same_exponent_p=_same_exponent(groups),
        least_bits=float(within["bits"].min()),
        most_bits=float(within["bits"].max()),
        texts=texts,
        outside=len(points) - len(within),
        groups=groups,
    )


def _weighted_line(x: Array, y: Array, weights_DP: Array) -> Array:
    """Weighted least squares of y = level + s x, (D, 2)."""
    total = weights_DP.sum(axis=1)
    x_mean = weights_DP @ x / total
    y_mean = weights_DP @ y / total
    xx = weights_DP @ x**2 / total - x_mean**2
    xy = weights_DP @ (x * y) / total - x_mean * y_mean
    with np.errstate(divide="ignore", invalid="ignore"):
        s = xy / xx
    return np.stack([y_mean - s * x_mean, s], axis=1)


def _text_covariance(texts: pd.Series[str], x: Array, y: Array, weights: Array) -> Array:
    """Covariance of level and s over texts, (2, 2): a bootstrap that draws texts whole.

    nan with one text: every draw would be that one.
    """
    _, text = np.unique(texts.to_numpy(str), return_inverse=True)
    count = int(text.max()) + 1
    if count < 2:
        return np.full((2, 2), math.nan)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), DRAWS)
    lines = _weighted_line(x, y, drawn[:, text] * weights)
    # A draw of points of equal bits has no slope.
    finite = lines[np.isfinite(lines).all(axis=1)]
    # Draws of few texts vary too little.
    return np.asarray(np.cov(finite.T) * count / max(1, count - 1))


def _group(name: str, rows: pd.DataFrame) -> LineGroup:
    """One group against the line.

    Args:
        rows: its points with x, y (logs of bits and parameters) and residual.
    """
    by_text = rows.groupby("text")
    of_text = by_text["residual"].mean().to_numpy(float)
    mean, error = _mean_and_error(of_text, rows["log_step"].median() / math.sqrt(12))
    half = t_quantile(max(1, len(of_text) - 1)) * error

    # Texts with one length have no exponent of their own.
    slopes = np.array([_slope(text) for _, text in by_text if text["x"].nunique() > 1])
    exponent, exponent_error = math.nan, math.nan
    if len(slopes):
        distances = rows["x"].std(ddof=0) * math.sqrt(rows["length"].nunique())
        rounding = rows["log_step"].median() / math.sqrt(12) / distances
        exponent, exponent_error = _mean_and_error(slopes, rounding)
    return LineGroup(
        name=name,
        texts=len(of_text),
        ratio=math.exp(mean),
        low=math.exp(mean - half),
        high=math.exp(mean + half),
        exponent=exponent,
        exponent_error=exponent_error,
    )


def _slope(text: pd.DataFrame) -> float:
    """s of one text, over its lengths."""
    return float(np.polyfit(text["x"], text["y"], 1)[0])


def _mean_and_error(values: Array, rounding: float) -> tuple[float, float]:
    """Mean of (T,) texts and its standard error, with that of rounding, which all texts share."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return float(values.mean()), math.hypot(spread / math.sqrt(len(values)), rounding)


def _same_level(groups: list[LineGroup]) -> float:
    """p of one height for all groups."""
    means = np.log([group.ratio for group in groups])
    errors = []
    for group in groups:
        half = math.log(group.high) - math.log(group.ratio)
        errors.append(half / t_quantile(max(1, group.texts - 1)))
    return _same(means, np.array(errors), groups)


def _same_exponent(groups: list[LineGroup]) -> float:
    """p of one exponent for all groups that have one; nan for fewer than two."""
    sloped = [group for group in groups if math.isfinite(group.exponent)]
    exponents = np.array([group.exponent for group in sloped])
    errors = np.array([group.exponent_error for group in sloped])
    return _same(exponents, errors, sloped)


def _same(means: Array, errors: Array, groups: list[LineGroup]) -> float:
    """p of equal means, (G,): weighted squares against F, with the texts' degrees of freedom."""
    freedom = sum(group.texts - 1 for group in groups)
    if len(groups) < 2 or freedom < 1:
        return math.nan
    weights = 1 / errors**2
    common = np.average(means, weights=weights)
    squares = float((weights * (means - common) ** 2).sum()) / (len(groups) - 1)
    return float(stats.f.sf(squares, len(groups) - 1, freedom))
