"""The gain over rank and length: measured as colours, the law as contour lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pml_cli.report.figures.law_view import View
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    COLUMN,
    MANY_POINTS,
    column_figure,
    log_ticks,
    size_label,
    style_for_column,
    tick_label,
)
from pml_cli.stats import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Nats per token; gains within this range have no contours
MIN_RANGE = 1e-9
# Points of each axis at which the law is computed.
LAW_GRID = 120

# More cells than this get smaller dots.
SMALL_DOTS_ABOVE = 300


@figure("law-surface", "measured gain over rank and length as colours, the law as contour lines")
def surface_figure(view: View) -> Figure | None:
    """Draw the measured gain as filled contours between the cells, the law at the same levels."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator
    from matplotlib.tri import Triangulation

    points = view.points
    gain = points["delta"].to_numpy(float)
    distinct = min(points["rank"].nunique(), points["length"].nunique())
    if distinct < 2 or np.ptp(gain) < MIN_RANGE:
        return None
    log_length = np.log(points["length"].to_numpy(float))
    log_rank = np.log(points["rank"].to_numpy(float))
    try:
        mesh = Triangulation(log_length, log_rank)
    except (RuntimeError, ValueError):
        # All points are on one line.
        return None

    figure = column_figure(COLUMN, 2.9)
    axes = figure.subplots()
    locator = MaxNLocator(10, steps=[1, 2, 2.5, 5, 10])
    lowest = float(gain.min())
    highest = float(gain.max())
    levels = locator.tick_values(lowest, highest)
    # The dark end of viridis would hide the black lines.
    light_colours = colormaps["viridis"](np.linspace(0.25, 1, 256))
    light_viridis = ListedColormap(light_colours.tolist())
    filled = axes.tricontourf(mesh, gain, levels=levels, cmap=light_viridis)
    if view.law is not None:
        _draw_law_contours(axes, view, log_length, log_rank, levels)
    axes.plot(
        log_length,
        log_rank,
        ".",
        color="black",
        ms=2 if len(points) < SMALL_DOTS_ABOVE else 0.6,
        rasterized=len(points) > MANY_POINTS,
        clip_on=False,
    )

    # The mesh is on logarithms, so that the ticks are, too.
    for axis, column in ((axes.xaxis, "length"), (axes.yaxis, "rank")):
        ticks = log_ticks(points[column])
        labels = [tick_label(tick) for tick in ticks]
        axis.set_ticks(np.log(ticks), labels=labels)
    axes.set(xlabel="length l, tokens", ylabel=size_label(view.axis))
    lines = "no law fitted" if view.law is None else "lines: the law"
    axes.set_title(f"Colours: measured gain; {lines}")
    bar = figure.colorbar(filled, ax=axes, pad=0.02)
    bar.set_label("measured gain dL, nats per token", fontsize=7)
    bar.ax.tick_params(labelsize=6.5)
    style_for_column(axes)
    return figure


def _draw_law_contours(
    axes: Axes, view: View, log_length: Array, log_rank: Array, levels: Sequence[float]
) -> None:
    """Draw the law as labelled contour lines over the range of the points.

    Args:
        axes: where to.
        view: what of; it has a law.
        log_length, log_rank: of the points, (n,).
        levels: gains that have a line, nats per token.
    """
    from matplotlib.patheffects import withStroke

    assert view.law is not None
    x, y = np.meshgrid(
        np.linspace(log_length.min(), log_length.max(), LAW_GRID),
        np.linspace(log_rank.min(), log_rank.max(), LAW_GRID),
    )
    length = np.exp(x).ravel()
    rank = np.exp(y).ravel()
    gain = view.law.predict(rank, length, view.base_at(length))

    lines = axes.contour(
        x,
        y,
        gain.reshape(x.shape),
        levels=levels,
        colors="black",
        linewidths=0.9,
    )
    for label in axes.clabel(lines, fontsize=6, fmt="%g"):
        label.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
