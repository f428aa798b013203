"""The law in pictures: on one page, in rank, in length; and the heat maps.

Each function takes a `law_view.View` and returns a figure, or None where the cells carry no such picture. The page is always
drawn. The law is the chosen one, with the band that holds 95 % of new cells; the paper's is dashed where the two differ.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pml_cli.law.power_law import BOUND_HIT, OK
from pml_cli.report.figures import heatmaps
from pml_cli.report.figures.law_view import View
from pml_cli.report.figures.parity import agreement
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    COLUMN,
    GREY,
    MANY_POINTS,
    MARKERS,
    PAGE,
    axis_limits,
    column_figure,
    log_axis,
    sequential_colours,
    size_label,
    style_for_column,
)
from pml_cli.stats import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = 9  # of one panel; more cannot be told apart
DASHED = (0, (4, 2))
MAP_ROW = 0.29  # inches
DIFFERS = 0.02  # of the largest gain; nearer than this two lines are one


@figure(
    "law",
    "the page of a group: gain by rank and length, predicted against measured, loss, accuracy",
)
def page_figure(view: View) -> Figure:
    """Gain by rank and by length, predicted against measured, heat maps of final loss and accuracy: the paper's Figure 2."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    there = _measured(view)
    height = max(3.2, 1.3 + MAP_ROW * heatmaps.map_rows(there, view.x))
    figure = Figure(
        figsize=(12, 5.0 + height), layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06)
    )
    heading = (
        f"{view.name}   (law: {view.analysis.chosen.name})" if view.analysis.chosen else view.name
    )
    figure.suptitle(heading, fontsize=13, fontweight="bold")
    rows: Any = figure.subfigures(2, 1, height_ratios=[4.5, height])
    panels = rows[0].subplots(1, 3)
    for axes, along in ((panels[0], "rank"), (panels[1], "length")):
        _curves(axes, view, along, marker=4)
        if len(view.observed):
            axes.legend(
                title=_lines_title(view, along),
                fontsize=7,
                title_fontsize=8,
                **_inside(view, along),
            )
        axes.set_title(_curve_title(view, along))
    agreement(panels[2], view, marker=4)
    _style_legend(rows[0], panels[0], fontsize=8, columns=6)
    maps = rows[1].subplots(1, 2)
    heatmaps.loss_map(maps[0], there, view.x)
    heatmaps.accuracy_map(maps[1], there, view.x)
    for axes, size in (
        (panels[0], 9),
        (panels[1], 9),
        (panels[2], 9),
        (maps[0], 10),
        (maps[1], 10),
    ):
        axes.title.set_fontsize(size)
    return figure


@figure("law-rank", "gain by rank, as wide as one column of print")
def rank_figure(view: View) -> Figure | None:
    """Gain against rank, a line a length."""
    return _curve_figure(view, "rank")


@figure("law-length", "gain by length, as wide as one column of print")
def length_figure(view: View) -> Figure | None:
    """Gain against length, a line a rank."""
    return _curve_figure(view, "length")


def _curve_figure(view: View, along: str) -> Figure | None:
    if not len(view.observed):
        return None
    figure = column_figure(COLUMN, 3.1)
    axes = figure.subplots()
    _curves(axes, view, along, marker=3)
    style = {
        "fontsize": 6.5,
        "title_fontsize": 7,
        "handletextpad": 0.3,
        "handlelength": 1.2,
        "frameon": False,
    }
    figure.legend(
        title=_lines_title(view, along),
        loc="outside right center",
        labelspacing=0.35,
        borderaxespad=0.1,
        **style,
    )
    _style_legend(figure, axes, fontsize=6, columns=3)
    figure.suptitle(_curve_title(view, along), fontsize=8)
    style_for_column(axes)
    return figure


def _curves(axes: Axes, view: View, along: str, marker: float) -> None:
    """Gain against rank or length, a line for every value of the other; the topmost line first in the legend."""
    other = "length" if along == "rank" else "rank"
    points = view.points
    picked = _picked(np.unique(points[other].to_numpy(float)))
    top = axis_limits(points["low"].to_numpy(float), points["high"].to_numpy(float))
    order = picked if along == "rank" else picked[::-1]
    colours = dict(zip(picked.tolist(), sequential_colours(len(picked)), strict=True))
    many = len(points) > MANY_POINTS
    for k, value in enumerate(order.tolist()):
        colour, shape = colours[value], MARKERS[k % len(MARKERS)]
        if view.law is not None:
            _law_line(axes, view, along, value, colour=colour, top=top[1])
        group = points[points[other] == value]
        style: dict[str, Any] = {
            "ms": marker,
            "mec": colour,
            "mew": 0.8,
            "ls": "none",
            "zorder": 3,
            "rasterized": many,
        }
        wide = group[group["low"] < group["high"]]
        if len(wide):
            axes.vlines(
                wide[along],
                wide["low"],
                wide["high"],
                color=colour,
                lw=0.7,
                zorder=2,
                rasterized=many,
                label="_range",
            )
        for full, face, label in ((True, colour, "_full"), (False, "white", "_hollow")):
            part = group[group["full"] == full]
            if len(part):
                axes.plot(part[along], part["delta"], shape, mfc=face, label=label, **style)
        axes.plot([], [], marker=shape, color=colour, ms=marker, lw=1.1, label=f"{value:.0f}")
    bad = view.excluded
    if len(bad):
        axes.plot(
            bad[along],
            np.clip(bad["delta"], *top),
            "x",
            color=GREY,
            ms=marker,
            label="_excluded",
            rasterized=many,
        )
    if len(points) and view.observed.base.min() < top[1]:
        _ceiling(axes, view, along)
    log_axis(axes, points[along])
    axes.set_ylim(*top)
    axes.set(
        xlabel=size_label(view.x) if along == "rank" else "length l, tokens",
        ylabel="gain dL, nats per token",
    )


def _picked(values: Array) -> Array:
    """At most LINES of the values, the ends among them."""
    if len(values) <= LINES:
        return values
    return np.asarray(values[np.linspace(0, len(values) - 1, LINES).round().astype(int)])


def _law_line(axes: Axes, view: View, along: str, value: float, *, colour: Any, top: float) -> None:
    """The law with its band, and the paper's dashed where it is another line."""
    assert view.law is not None
    measured = getattr(view.observed, along)
    span = np.geomspace(measured.min(), measured.max(), 100)
    rank, length = (
        (span, np.full_like(span, value)) if along == "rank" else (np.full_like(span, value), span)
    )
    at = rank, length, view.base_at(length)
    gain = view.law.predict(*at)
    axes.plot(span, gain, color=colour, lw=1.1, zorder=1.5)
    if view.law.status == OK:
        axes.fill_between(
            span, *view.law.band(*at), color=colour, alpha=0.18, lw=0, zorder=1, label="_band"
        )
    if view.dashed is not None:
        paper = view.dashed.predict(*at)
        apart = np.abs(np.minimum(paper, top) - np.minimum(gain, top)) > DIFFERS * top
        if apart.any():
            axes.plot(
                span,
                np.where(apart, paper, np.nan),
                color=colour,
                lw=0.7,
                ls=DASHED,
                zorder=1.4,
                label="_paper",
            )


def _ceiling(axes: Axes, view: View, along: str) -> None:
    """The base loss, which no gain exceeds: its least and largest over the texts of a length, or over all cells."""
    o = view.observed
    where = o.length if along == "length" else np.ones(len(o))
    for reach in (np.minimum, np.maximum):
        ends = [
            (length, float(reach.reduce(o.base[where == length]))) for length in np.unique(where)
        ]
        if along == "length":
            axes.plot(
                *zip(*ends, strict=True), color="black", lw=0.7, ls=":", zorder=1, label="_base"
            )
        elif ends:
            axes.axhline(ends[0][1], color="black", lw=0.7, ls=":", zorder=1, label="_base")


def _style_legend(figure: Any, axes: Axes, fontsize: float, columns: int) -> None:
    """What the signs of the curves mean, below them: of those that were drawn."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    point: dict[str, Any] = {"marker": "o", "ls": "none", "color": GREY, "ms": 0.55 * fontsize}
    dashes: dict[str, Any] = {"color": GREY, "lw": 0.8, "ls": DASHED}
    signs = {
        "_full": Line2D([], [], label="in the fit", **point),
        "_hollow": Line2D([], [], label="saturated", **point | {"mfc": "white"}),
        "_excluded": Line2D([], [], label="excluded, see cells.csv", **point | {"marker": "x"}),
        "_range": Line2D([], [], label="range of the runs", **point | {"marker": "|"}),
        "_band": Patch(
            color=GREY, alpha=0.3, lw=0, label="holds 95 % of new cells, mean base loss"
        ),
        "_paper": Line2D([], [], label="the paper's law", **dashes),
        "_base": Line2D([], [], color="black", lw=0.8, ls=":", label="base loss, range"),
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


def _inside(view: View, along: str) -> dict[str, Any]:
    """A legend in the corner that the curves leave free."""
    lines = min(LINES, view.points["length" if along == "rank" else "rank"].nunique())
    where = "lower right" if along == "rank" else "lower left"
    return {
        "loc": where,
        "ncols": max(1, math.ceil(lines / 4)),
        "columnspacing": 0.8,
        "handlelength": 1.4,
        "framealpha": 0.85,
    }


def _lines_title(view: View, along: str) -> str:
    """What a line stands for, and how many of them are drawn."""
    other = "length" if along == "rank" else "rank"
    name = "length l" if along == "rank" else "rank r" if view.x == "rank" else "parameters N"
    found = view.points[other].nunique()
    return f"{name}\n({LINES} of {found})" if found > LINES else name


def _curve_title(view: View, along: str) -> str:
    """How much the law gains by twice the rank or length."""
    word = "length" if along == "length" else "rank" if view.x == "rank" else "parameters"
    if view.law is None:
        return f"Gain by {word}: no law fitted"
    if view.law.status == BOUND_HIT:
        return f"Gain by {word}: no power law"
    values = view.parameters
    factor = 2 ** (values["alpha"] if along == "rank" else -values["beta"])
    above = " above b" if "b" in values else ""
    if "level" in values:
        return f"Twice the {word}: x, what is held, times {factor:.2f}"
    far = ", until it bends" if view.fit is not None else ""
    return f"Twice the {word}: gain{above} times {factor:.2f}{far}"


@figure(
    "law-maps",
    "final loss, teacher-forced and free-running accuracy, bits per trainable parameter",
)
def maps_figure(view: View) -> Figure | None:
    """Final loss, accuracy given the true text and alone, bits per trainable parameter, over rank and length."""
    there = _measured(view)
    if there.empty:
        return None
    figure = column_figure(PAGE, 2 * max(1.7, 0.9 + 0.17 * heatmaps.map_rows(there, view.x)))
    panels = figure.subplots(2, 2)
    size = 6.5 if there["target_tokens"].nunique() <= 10 else 5.5
    heatmaps.loss_map(panels[0, 0], there, view.x, size)
    heatmaps.bits_map(panels[0, 1], there, view.x, size)
    heatmaps.accuracy_map(panels[1, 0], there, view.x, fontsize=size)
    heatmaps.accuracy_map(panels[1, 1], there, view.x, "free_accuracy", fontsize=size)
    for axes in panels.flat:
        style_for_column(axes, tick_length=0)
        axes.title.set_fontsize(7.5)
    return figure


def _measured(view: View) -> Any:
    """Every cell whose numbers are there."""
    table = view.cells.reindex(columns=[view.x, "target_tokens", "delta_loss", "final_loss"])
    return view.cells[np.isfinite(table.to_numpy(float)).all(axis=1)]
