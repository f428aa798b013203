"""What speaks against a law, and how sure it is: its residuals, and the profiles of its exponents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from pml_cli.law.bootstrap import Profile
from pml_cli.law.mle import NATURAL
from pml_cli.law.observations import of_size
from pml_cli.law.power_law import OK
from pml_cli.report.figures.law_view import View
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    GREY,
    MANY_POINTS,
    ORANGE,
    PAGE,
    PURPLE,
    column_figure,
    log_axis,
    size_label,
    style_for_column,
    three_digits,
)
from pml_cli.stats import CONFIDENCE, Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pml_cli.law.group_comparison import Comparison, Tie

MEANING = {
    "alpha": "power of rank",
    "beta": "power of length",
    "b": "nats per token",
    "k": "sharpness of the bend",
}
WIDEST = 20.0  # how many times k the axis of its profile may reach
BINS = 24  # values of an axis up to which each has a mean of its own
TOP = 12.0  # of the deviance axis; 95 % ends at 3.84


@figure("law-residuals", "residuals by rank, length and predicted gain")
def residuals_figure(view: View) -> Figure | None:
    """Relative residuals against rank, length and predicted gain; what is left after a good law has no trend."""
    if view.law is None:
        return None
    o = view.observed
    predicted = view.law.predict(o.rank, o.length, o.base)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = 100 * (o.delta / predicted - 1)
    there = np.isfinite(residual)
    full = there & view.in_full
    if not full.any():
        return None
    figure = column_figure(PAGE, 2.5)
    panels = figure.subplots(1, 3, sharey=True)
    columns = (
        (o.rank, size_label(view.x)),
        (o.length, "length l, tokens"),
        (predicted, "predicted gain dL, nats per token"),
    )
    size = 1.3 * float(np.abs(residual[full]).max()) + 1e-9
    for axes, (values, label) in zip(panels, columns, strict=True):
        _residuals(
            axes, values, residual, full=full, there=there, size=size, binned=values is predicted
        )
        if values is not predicted:
            log_axis(axes, values)
        axes.set_xlabel(label)
        style_for_column(axes)
    panels[0].set(ylabel="measured above predicted, %", ylim=(-size, size))
    panels[0].yaxis.label.set_size(7.5)
    spread = 100 * view.parameters["spread"] if "spread" in view.parameters else math.nan
    if math.isfinite(spread):
        half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * spread
        for axes in panels:
            axes.axhspan(-half, half, color=PURPLE, alpha=0.09, lw=0, zorder=0)
        panels[0].fill_between(
            [],
            [],
            color=PURPLE,
            alpha=0.18,
            lw=0,
            label=f"95 % by the law's spread, ± {half:.2g} %",
        )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=6.5, frameon=False)
    figure.suptitle(
        "What the law leaves over: a trend in the means would be a fault of the law", fontsize=8
    )
    return figure


def _residuals(
    axes: Axes, values: Array, residual: Array, *, full: Any, there: Any, size: float, binned: bool
) -> None:
    """Points, their mean at each value (or in bins of as many points), and those beyond the frame at its edge."""
    style: dict[str, Any] = {
        "ls": "none",
        "ms": 2.6,
        "mew": 0.7,
        "rasterized": len(values) > MANY_POINTS,
        "clip_on": False,
    }
    axes.axhline(0, color=GREY, lw=0.8, zorder=1)
    axes.plot(
        values[full],
        residual[full],
        "o",
        color=PURPLE,
        alpha=0.6,
        label="in the fit",
        zorder=2,
        **style,
    )
    rest = there & ~full
    if rest.any():
        shown = np.clip(residual[rest], -size, size)
        label = "saturated" + (", clipped" if (shown != residual[rest]).any() else "")
        axes.plot(values[rest], shown, "s", mec=ORANGE, mfc="white", label=label, zorder=2, **style)
    x, mean = _means(values[full], residual[full], binned)
    axes.plot(x, mean, "_", color="black", ms=9, mew=1.6, zorder=3, label="mean in the fit")


def _means(values: Array, residual: Array, binned: bool) -> tuple[Array, Array]:
    """At each value where values repeat, as ranks and lengths do; else in bins, for the mean of one cell is that cell."""
    distinct, place = np.unique(values, return_inverse=True)
    if binned or len(distinct) > min(BINS, len(values) / 2):
        order = np.argsort(values, kind="stable")
        parts = np.array_split(order, min(8, max(1, len(values) // 5)))
        return np.array([np.median(values[part]) for part in parts]), np.array(
            [residual[part].mean() for part in parts]
        )
    return distinct, np.bincount(place.ravel(), residual) / np.bincount(place.ravel())


@figure(
    "law-profile",
    "profile deviance of alpha, beta, b and k, the bootstrap's draws and interval",
)
def profile_figure(view: View) -> Figure | None:
    """How the likelihood falls when one parameter is held, beside the bootstrap's draws: alpha, beta, b, k."""
    lines = [line for line in view.analysis.profiles.values() if len(line.values) > 1]
    if not lines or view.fit is None:
        return None
    figure = column_figure(min(PAGE, 2.4 * len(lines)), 2.4)
    panels = figure.subplots(1, len(lines), squeeze=False, sharey=True)[0]
    for axes, line in zip(panels, lines, strict=True):
        _profile(axes, view, line)
        style_for_column(axes)
    panels[0].set_ylabel("profile deviance", fontsize=7.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=4 if len(lines) > 2 else 2,
        fontsize=6.5,
        frameon=False,
    )
    figure.suptitle(
        "What the cells allow: below the line (were all independent), in the band (bootstrap)",
        fontsize=8,
    )
    return figure


def _profile(axes: Axes, view: View, line: Profile) -> None:
    fit, made = view.fit, view.analysis.bootstrap
    assert fit is not None
    at, (low, high) = (
        fit.parameters[line.name],
        view.analysis.intervals.get(line.name, (math.nan, math.nan)),
    )
    span = f" ({three_digits(low)} to {three_digits(high)})" if math.isfinite(low + high) else ""
    ends = [float(line.values.min()), float(line.values.max())]
    if made is not None and made.status == OK:
        draws = made.draws[:, NATURAL.index(line.name)]
        reach = [*np.quantile(draws, [0.005, 0.995]).tolist(), low, high]
        ends = [min(ends[0], *reach), max(ends[1], *reach)]
        ends = [max(ends[0], at / WIDEST), min(ends[1], at * WIDEST)] if line.name == "k" else ends
        wide = line.name == "k" and ends[1] > 4 * ends[0]
        count, edges = np.histogram(
            draws, (np.geomspace if wide else np.linspace)(ends[0], ends[1], 41)
        )
        height = count / max(1, count.max()) * 0.45 * TOP
        axes.stairs(height, edges, fill=True, color="0.8", label="bootstrap draws", zorder=0)
        axes.axvspan(
            low, high, color=ORANGE, alpha=0.13, lw=0, zorder=0.5, label="its 95 % interval"
        )
        for end in (low, high):
            axes.axvline(end, color=ORANGE, lw=0.7, ls=":", zorder=1)
    axes.plot(line.values, line.deviance, color=PURPLE, lw=1.2, label="profile deviance", zorder=3)
    limit = float(stats.chi2.ppf(CONFIDENCE, 1))
    axes.axhline(limit, color="black", lw=0.8, ls="--", label=f"95 % line, {limit:.2f}", zorder=2)
    axes.axvline(at, color=GREY, lw=0.7, zorder=1)
    if line.name == "k" and ends[1] > 4 * ends[0]:
        axes.set_xscale("log")
        ticks = np.geomspace(ends[0], ends[1], 5)
        axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    axes.set(
        ylim=(0, TOP), xlim=ends, xlabel=f"{line.name} ({of_size(MEANING[line.name], view.x)})"
    )
    axes.set_title(f"{three_digits(at)}{span}")


@figure("comparison", "exponents of compared groups with 95 % intervals and the shared value")
def forest_figure(found: Comparison) -> Figure:
    """Exponents of groups side by side with their 95 % intervals, the value that they would share, both tests of that."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = [
        one.name + ("\n(rejects the common law)" if one.rejects else "") for one in found.groups
    ]
    figure = Figure(figsize=(8.2, 1.7 + 0.4 * len(names)), layout=ConstrainedLayoutEngine())
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, ("alpha", "beta"), strict=True):
        for place, one in enumerate(found.groups):
            low, high = one.interval(name)
            axes.plot([low, high], [place, place], color=PURPLE, lw=2)
            face = "white" if one.rejects else PURPLE
            axes.plot(one.fit.parameters[name], place, "o", mec=PURPLE, mfc=face, mew=1.5, ms=6)
        axes.set_title(name, fontsize=9)
        for tie in found.ties:
            if tie.what == name:  # not that of both exponents, whose shared values are others
                axes.axvline(tie.shared[name], color=ORANGE, ls="--", lw=1.2, zorder=0)
                axes.set_title(_tie_words(tie), fontsize=9)
        axes.set(xlabel=f"{name}, 95 % interval", ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="x", color="0.9")
    return figure


def _tie_words(tie: Tie) -> str:
    clustered = f", {tie.p_clustered:.2g} (clusters)" if math.isfinite(tie.p_clustered) else ""
    said = f"{tie.what}: {tie.verdict} (shared: {tie.shared[tie.what]:.3f}, dashed)"
    return f"{said}\np = {tie.p:.2g} (likelihood ratio){clustered}"
