"""Relative residuals of the law; those of a good law have no trend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pml_cli.report.figures.law_view import View
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    GREY,
    MANY_POINTS,
    ORANGE,
    PAGE,
    PURPLE,
    column_figure,
    legend_below,
    log_axis,
    size_label,
    style_for_column,
)
from pml_cli.stats import Array, Mask, normal_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Up to this number of distinct values, the mean is drawn at each; beyond, in bins.
MAX_DISTINCT = 24

# Bins at most, and the least number of cells in one.
MAX_BINS = 8
CELLS_A_BIN = 5


@figure("law-residuals", "residuals by rank, length and predicted gain")
def residuals_figure(view: View) -> Figure | None:
    """Draw relative residuals against rank, length and predicted gain; None without a law."""
    if view.law is None:
        return None
    observed = view.observed
    predicted = view.law.predict(observed.rank, observed.length, observed.base)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = 100 * (observed.delta / predicted - 1)
    in_fit = np.isfinite(residual) & view.uncensored
    saturated = np.isfinite(residual) & ~view.uncensored
    if not in_fit.any():
        return None

    figure = column_figure(PAGE, 2.5)
    by_rank, by_length, by_gain = figure.subplots(1, 3, sharey=True)
    panels = (by_rank, by_length, by_gain)
    largest = float(np.abs(residual[in_fit]).max())
    limit = 1.3 * largest + 1e-9
    for axes, x in zip(panels, (observed.rank, observed.length, predicted), strict=True):
        _draw_points(axes, x, residual, in_fit=in_fit, saturated=saturated, limit=limit)
        # Every cell has a predicted gain of its own, so that only bins have a mean.
        means = _binned_means if axes is by_gain else _means
        mean_x, mean = means(x[in_fit], residual[in_fit])
        axes.plot(
            mean_x,
            mean,
            "_",
            color="black",
            ms=9,
            mew=1.6,
            zorder=3,
            label="mean in the fit",
        )

    log_axis(by_rank, observed.rank)
    log_axis(by_length, observed.length)
    by_rank.set(xlabel=size_label(view.axis), ylabel="measured above predicted, %")
    by_rank.set_ylim(-limit, limit)
    by_length.set_xlabel("length l, tokens")
    by_gain.set_xlabel("predicted gain dL, nats per token")
    for axes in panels:
        style_for_column(axes)

    spread = 100 * view.law.parameters.get("spread", math.nan)
    if math.isfinite(spread):
        _draw_spread(panels, spread)
    legend_below(figure, by_rank, columns=4, fontsize=6.5)
    figure.suptitle("Residuals: a trend in their means speaks against the law", fontsize=8)
    return figure


def _draw_spread(panels: Sequence[Axes], spread: float) -> None:
    """The band that holds 95 % of the cells, if the law and its spread are right.

    Args:
        panels: the first one gets the entry of the legend.
        spread: standard deviation of a cell around the law, per cent.
    """
    half = normal_quantile() * spread
    for axes in panels:
        axes.axhspan(-half, half, color=PURPLE, alpha=0.09, lw=0, zorder=0)
    # An empty artist in the colour that the band has on white, for the legend.
    # Two digits would write 120 as 1.2e+02.
    width = f"{half:.2g}" if half < 99.5 else f"{half:.0f}"
    label = f"95 % by the law's spread, ± {width} %"
    panels[0].fill_between([], [], color=PURPLE, alpha=0.18, lw=0, label=label)


def _draw_points(
    axes: Axes, x: Array, residual: Array, *, in_fit: Mask, saturated: Mask, limit: float
) -> None:
    """Residuals of the cells in the fit, and of saturated ones, clipped to the frame.

    Args:
        axes: where to.
        x: of each cell, (N,).
        residual: of each cell, per cent, (N,).
        in_fit, saturated: which cells these are, (N,).
        limit: end of the y axis, per cent.
    """
    style: dict[str, Any] = {
        "ls": "none",
        "ms": 2.6,
        "mew": 0.7,
        "rasterized": len(x) > MANY_POINTS,
        "clip_on": False,
        "zorder": 2,
    }
    axes.axhline(0, color=GREY, lw=0.8, zorder=1)
    axes.plot(
        x[in_fit],
        residual[in_fit],
        "o",
        color=PURPLE,
        alpha=0.6,
        label="in the fit",
        **style,
    )
    if not saturated.any():
        return

    clipped = np.clip(residual[saturated], -limit, limit)
    label = "saturated"
    if (clipped != residual[saturated]).any():
        label += ", clipped"
    axes.plot(
        x[saturated],
        clipped,
        "s",
        mec=ORANGE,
        mfc="white",
        label=label,
        **style,
    )


def _means(x: Array, residual: Array) -> tuple[Array, Array]:
    """The mean residual at each x where values repeat, as ranks and lengths do; else in bins.

    Args:
        x, residual: (n,).
    """
    distinct, index = np.unique(x, return_inverse=True)
    # Of values that hardly repeat, the mean of one cell would be that cell.
    if len(distinct) > min(MAX_DISTINCT, len(x) / 2):
        return _binned_means(x, residual)
    cells = np.bincount(index.ravel())
    return distinct, np.bincount(index.ravel(), residual) / cells


def _binned_means(x: Array, residual: Array) -> tuple[Array, Array]:
    """The mean residual in bins of as many cells each, at the median x of the bin.

    Args:
        x, residual: (n,).
    """
    order = np.argsort(x, kind="stable")
    bin_count = max(1, min(MAX_BINS, len(x) // CELLS_A_BIN))
    bins = np.array_split(order, bin_count)
    median_x = np.array([np.median(x[cells]) for cells in bins])
    mean = np.array([residual[cells].mean() for cells in bins])
    return median_x, mean
