"""Gain against rank and against length: points, the law with its band, the paper's law dashed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from pml_cli.law.findings import BOUND_HIT, OK
from pml_cli.report.figures.law_view import View
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    COLUMN,
    GREY,
    MANY_POINTS,
    MARKERS,
    axis_limits,
    column_figure,
    evenly_spaced,
    log_axis,
    sequential_colours,
    size_label,
    style_for_column,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Axis = Literal["rank", "length"]
"""What the x axis holds; a line is drawn for each value of the other."""

# Lines of one panel; more cannot be distinguished.
MAX_LINES = 9

# Line style of the paper's law.
DASHES = (0, (4, 2))

# The paper's law is drawn where it differs by more than this fraction of the largest gain.
MIN_DIFFERENCE = 0.02

# Points at which a curve is computed.
CURVE_POINTS = 100


@figure("law-rank", "gain by rank, as wide as one column of print")
def rank_figure(view: View) -> Figure | None:
    """Gain against rank, a line for each length."""
    return _curve_figure(view, "rank")


@figure("law-length", "gain by length, as wide as one column of print")
def length_figure(view: View) -> Figure | None:
    """Gain against length, a line for each rank."""
    return _curve_figure(view, "length")


def _curve_figure(view: View, along: Axis) -> Figure | None:
    if not len(view.observed):
        return None

    figure = column_figure(COLUMN, 3.1)
    axes = figure.subplots()
    draw_curves(axes, view, along, marker_size=3)
    figure.legend(
        title=lines_title(view, along),
        loc="outside right center",
        labelspacing=0.35,
        borderaxespad=0.1,
        fontsize=6.5,
        title_fontsize=7,
        handletextpad=0.3,
        handlelength=1.2,
        frameon=False,
    )
    add_sign_legend(figure, axes, fontsize=6, columns=2)
    figure.suptitle(curve_title(view, along), fontsize=8)
    style_for_column(axes)
    return figure


def draw_curves(axes: Axes, view: View, along: Axis, marker_size: float) -> None:
    """Draw the measured gains and the law.

    Args:
        axes: where to.
        view: what of.
        along: the x axis; a line is drawn for each value of the other, the topmost line first in
            the legend.
        marker_size: points.
    """
    points = view.points
    limits = axis_limits(points["low"].to_numpy(float), points["high"].to_numpy(float))
    rasterized = len(points) > MANY_POINTS

    for k, (value, colour) in enumerate(_lines_from_top(points, along)):
        marker = MARKERS[k % len(MARKERS)]
        if view.law is not None:
            _draw_law(axes, view, along, value, colour=colour, top=limits[1])
        _draw_points(
            axes,
            points[points[_other(along)] == value],
            along,
            colour=colour,
            marker=marker,
            marker_size=marker_size,
            rasterized=rasterized,
        )
        # The legend has line and marker in one sign.
        label = f"{value:.0f}"
        axes.plot([], [], marker=marker, color=colour, ms=marker_size, lw=1.1, label=label)

    _draw_excluded(axes, view, along, limits, marker_size=marker_size, rasterized=rasterized)
    # Far above all gains it would take half of the panel.
    if len(points) and view.observed.base.min() < limits[1]:
        _draw_base_loss(axes, view, along)

    log_axis(axes, points[along])
    axes.set_ylim(*limits)
    axes.set(
        xlabel=size_label(view.axis) if along == "rank" else "length l, tokens",
        ylabel="gain dL, nats per token",
    )


def _other(along: Axis) -> Axis:
    return "length" if along == "rank" else "rank"


def _lines_from_top(points: pd.DataFrame, along: Axis) -> list[tuple[float, Any]]:
    """Which lines are drawn: the value of the other axis and the colour of each."""
    distinct = np.unique(points[_other(along)].to_numpy(float))
    values = evenly_spaced(distinct, MAX_LINES).tolist()
    colours = sequential_colours(len(values))
    # The gain rises with rank and falls with length.
    if along == "length":
        values.reverse()
        colours.reverse()
    return list(zip(values, colours, strict=True))


def _draw_excluded(
    axes: Axes,
    view: View,
    along: Axis,
    limits: tuple[float, float],
    *,
    marker_size: float,
    rasterized: bool,
) -> None:
    """Mark the cells that the law is not fitted to.

    Args:
        limits: lower and upper end of the y axis.
    """
    excluded = view.excluded
    if not len(excluded):
        return
    # A diverged cell has a large negative gain: it sits at the edge of the frame.
    axes.plot(
        excluded[along],
        np.clip(excluded["delta"], *limits),
        "x",
        color=GREY,
        ms=marker_size,
        label="_excluded",
        rasterized=rasterized,
    )


def _draw_points(
    axes: Axes,
    points: pd.DataFrame,
    along: Axis,
    *,
    colour: Any,
    marker: str,
    marker_size: float,
    rasterized: bool,
) -> None:
    """Mean gains of one line, hollow where most runs are saturated, and the range of the runs."""
    repeated = points[points["low"] < points["high"]]
    if len(repeated):
        axes.vlines(
            repeated[along],
            repeated["low"],
            repeated["high"],
            color=colour,
            lw=0.7,
            zorder=2,
            rasterized=rasterized,
            label="_range",
        )

    for uncensored in (True, False):
        selected = points[points["uncensored"] == uncensored]
        if len(selected):
            axes.plot(
                selected[along],
                selected["delta"],
                marker,
                mfc=colour if uncensored else "white",
                mec=colour,
                mew=0.8,
                ms=marker_size,
                ls="none",
                zorder=3,
                rasterized=rasterized,
                label="_full" if uncensored else "_hollow",
            )


def _draw_law(
    axes: Axes, view: View, along: Axis, value: float, *, colour: Any, top: float
) -> None:
    """Draw the law with its band, and the paper's dashed where it is another line.

    Args:
        axes: where to.
        view: what of.
        along: the x axis.
        value: of the other axis.
        colour: of the line.
        top: the largest gain on the y axis.
    """
    assert view.law is not None
    measured = getattr(view.observed, along)
    # No extrapolation: the line ends at the smallest and largest value measured.
    x = np.geomspace(measured.min(), measured.max(), CURVE_POINTS)
    rank = x if along == "rank" else np.full_like(x, value)
    length = x if along == "length" else np.full_like(x, value)
    base = view.base_at(length)

    # Bands lie under lines, lines under points.
    gain = view.law.predict(rank, length, base)
    axes.plot(x, gain, color=colour, lw=1.1, zorder=1.5)
    # At a bound the covariance, and so the band, is not known.
    if view.law.status == OK:
        low, high = view.law.band(rank, length, base)
        axes.fill_between(
            x,
            low,
            high,
            color=colour,
            alpha=0.18,
            lw=0,
            zorder=1,
            label="_band",
        )

    if view.paper_beside_chosen is None:
        return
    paper = view.paper_beside_chosen.predict(rank, length, base)
    # What lies above the frame is not seen to differ.
    visible_paper = np.minimum(paper, top)
    visible_gain = np.minimum(gain, top)
    difference = np.abs(visible_paper - visible_gain)
    differs = difference > MIN_DIFFERENCE * top
    if differs.any():
        axes.plot(
            x,
            np.where(differs, paper, np.nan),
            color=colour,
            lw=0.7,
            ls=DASHES,
            zorder=1.4,
            label="_paper",
        )


def _draw_base_loss(axes: Axes, view: View, along: Axis) -> None:
    """Draw the base loss, which no gain exceeds: its smallest and largest over the texts.

    Against length they are lines, against rank one value for all cells.
    """
    style: dict[str, Any] = {
        "color": "black",
        "lw": 0.7,
        "ls": ":",
        "zorder": 1,
        "label": "_base",
    }
    base = view.observed.base
    if along == "rank":
        axes.axhline(float(base.min()), **style)
        axes.axhline(float(base.max()), **style)
        return

    by_length = pd.Series(base).groupby(view.observed.length)
    for line in (by_length.min(), by_length.max()):
        axes.plot(line.index, line, **style)


def add_sign_legend(figure: Any, axes: Axes, fontsize: float, columns: int) -> None:
    """Explain the signs of the curves below them: those that were drawn.

    Args:
        figure: a Figure or SubFigure, which gets the legend.
        axes: those with the curves.
        fontsize: points.
        columns: of the legend.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    point: dict[str, Any] = {
        "marker": "o",
        "ls": "none",
        "color": GREY,
        "ms": 0.55 * fontsize,
    }
    # Artists are labelled with these keys where they are drawn; matplotlib leaves labels that
    # begin with an underscore out of its own legends.
    signs = {
        "_full": Line2D([], [], label="in the fit", **point),
        "_hollow": Line2D([], [], label="saturated", **point | {"mfc": "white"}),
        "_excluded": Line2D([], [], label="excluded, see cells.csv", **point | {"marker": "x"}),
        "_range": Line2D([], [], label="range of the runs", **point | {"marker": "|"}),
        "_band": Patch(color=GREY, alpha=0.3, lw=0, label="95 % prediction band, mean base loss"),
        "_paper": Line2D(
            [],
            [],
            label="the paper's law",
            color=GREY,
            lw=0.8,
            ls=DASHES,
        ),
        "_base": Line2D(
            [],
            [],
            label="base loss, range",
            color="black",
            lw=0.8,
            ls=":",
        ),
    }
    drawn = {artist.get_label() for artist in axes.get_children()}
    handles = [sign for label, sign in signs.items() if label in drawn]
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns,
            fontsize=fontsize,
            frameon=False,
        )


def lines_title(view: View, along: Axis) -> str:
    """What a line stands for, and how many of them are drawn: the title of their legend."""
    size = f"{view.axis.label} {view.axis.symbol}"
    name = "length l" if along == "rank" else size
    values = view.points[_other(along)].nunique()
    return f"{name}\n({MAX_LINES} of {values})" if values > MAX_LINES else name


def legend_in_free_corner(axes: Axes, view: View, along: Axis) -> None:
    """Put the legend of the lines where the curves leave room."""
    lines = min(MAX_LINES, view.points[_other(along)].nunique())
    axes.legend(
        title=lines_title(view, along),
        loc="lower right" if along == "rank" else "lower left",
        ncols=max(1, math.ceil(lines / 4)),
        fontsize=7,
        title_fontsize=8,
        columnspacing=0.8,
        handlelength=1.4,
        framealpha=0.85,
    )


def curve_title(view: View, along: Axis) -> str:
    """How much the law gains by twice the rank or length."""
    size = view.axis.label
    axis_name = "length" if along == "length" else size
    if view.law is None:
        return f"Gain by {axis_name}: no law fitted"
    if view.law.status == BOUND_HIT:
        return f"Gain by {axis_name}: no power law"

    parameters = view.law.parameters
    exponent = parameters["alpha"] if along == "rank" else -parameters["beta"]
    factor = 2**exponent
    if "level" in parameters:
        return f"Twice the {axis_name}: stored amount x times {factor:.2f}"
    above = " above b" if "b" in parameters else ""
    limit = ", until it bends" if view.chosen is not None else ""
    return f"Twice the {axis_name}: gain{above} times {factor:.2f}{limit}"
