"""How well the law agrees with the cells: predicted against measured gain, and both as surfaces over rank and length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pml_cli.law.observations import of_size
from pml_cli.report.figures.law_view import View
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    COLUMN,
    GREY,
    MANY_POINTS,
    ORANGE,
    PURPLE,
    axis_limits,
    column_figure,
    empty_panel,
    log_ticks,
    size_label,
    style_for_column,
    three_digits,
    tick_label,
)
from pml_cli.stats import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@figure(
    "law-predicted",
    "predicted against measured gain, the largest ranks and longest lengths held out",
)
def predicted_figure(view: View) -> Figure | None:
    """Predicted against measured gain, the cells left out predicted by a fit without them."""
    if view.law is None:
        return None
    figure = column_figure(COLUMN, 3.5)
    axes = figure.subplots()
    agreement(axes, view, marker=3)
    style_for_column(axes)
    axes.legend(loc="upper left", fontsize=6, framealpha=0.85)
    return figure


def agreement(axes: Axes, view: View, marker: float) -> None:
    """Predicted against measured gain: cells in the fit, saturated ones, and those a fit without them predicts."""
    axes.set(xlabel="measured gain dL, nats per token", ylabel="predicted gain, nats per token")
    if view.law is None:
        axes.set_title("No law fitted")
        empty_panel(axes, of_size(view.paper.reason, view.x))
        return
    o, unseen = view.observed, view.unseen
    predicted = view.law.predict(o.rank, o.length, o.base)
    low, high = axis_limits(o.delta, predicted[view.in_full])
    out = unseen.out if unseen is not None else np.zeros(len(o), bool)
    axes.plot([low, high], [low, high], color=GREY, lw=0.8, zorder=1)

    def dots(measured: Array, gain: Array, shape: str, label: str, **style: Any) -> None:
        many = len(o) > MANY_POINTS
        shown = np.clip(gain, low, high)
        label += " (clipped)" if (shown != gain).any() else ""
        if len(measured):
            axes.plot(
                measured,
                shown,
                shape,
                ls="none",
                ms=marker,
                mew=0.8,
                label=label,
                rasterized=many,
                clip_on=False,
                **style,
            )

    saturated = ~view.in_full
    dots(
        o.delta[~out & ~saturated],
        predicted[~out & ~saturated],
        "o",
        "in the fit",
        color=PURPLE,
        alpha=0.75,
        zorder=2,
    )
    dots(
        o.delta[~out & saturated],
        predicted[~out & saturated],
        "o",
        "saturated",
        mec=PURPLE,
        mfc="none",
        zorder=2,
    )
    if unseen is not None:
        if unseen.paper is not None:
            dots(o.delta[out], unseen.paper, "x", "unseen, paper's law", color=GREY, zorder=1.5)
        full = ~saturated[out]
        dots(
            o.delta[out][full],
            unseen.law[full],
            "D",
            "unseen by the fit",
            mec=ORANGE,
            mfc=ORANGE,
            zorder=3,
        )
        dots(
            o.delta[out][~full],
            unseen.law[~full],
            "D",
            "unseen, saturated",
            mec=ORANGE,
            mfc="white",
            zorder=3,
        )
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.text(
        0.97,
        0.03,
        _numbers(view),
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=2 * marker + 0.5,
    )
    axes.legend(loc="upper left", fontsize=8, framealpha=0.85)
    axes.set_title(_title(view))


def _numbers(view: View) -> str:
    fit = view.fit or view.paper
    shown = [
        f"{name} = {three_digits(value)}"
        for name, value in view.parameters.items()
        if name != "spread"
    ]
    return "\n".join([*shown, f"R2 = {fit.r2:.4f}, MAPE = {fit.mape:.1f} %"])


def _title(view: View) -> str:
    check = view.check()
    if check is None or not math.isfinite(check.mape):
        fit = view.fit or view.paper
        return f"The law fits its cells to {fit.mape:.1f} %"
    paper = view.check("paper") if view.fit is not None else None
    beside = (
        f" (paper's {paper.mape:.1f} %)" if paper is not None and math.isfinite(paper.mape) else ""
    )
    return f"Unseen cells are off by {check.mape:.1f} %{beside}"


@figure("law-surface", "measured gain over rank and length as colours, the law as contour lines")
def surface_figure(view: View) -> Figure | None:
    """The gain over rank and length: measured as filled contours between the cells, the law as lines at the same levels."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator
    from matplotlib.tri import Triangulation

    points = view.points
    if (
        points["rank"].nunique() < 2
        or points["length"].nunique() < 2
        or np.ptp(points["delta"]) < 1e-9
    ):
        return None
    x, y, gain = (
        np.log(points["length"].to_numpy()),
        np.log(points["rank"].to_numpy()),
        points["delta"].to_numpy(float),
    )
    try:
        mesh = Triangulation(x, y)
    except (RuntimeError, ValueError):  # all on one line
        return None
    levels = MaxNLocator(10, steps=[1, 2, 2.5, 5, 10]).tick_values(
        float(gain.min()), float(gain.max())
    )
    figure = column_figure(COLUMN, 2.9)
    axes = figure.subplots()
    light = ListedColormap(colormaps["viridis"](np.linspace(0.25, 1, 256)).tolist())
    filled = axes.tricontourf(mesh, gain, levels=levels, cmap=light)
    if view.law is not None:
        at_x, at_y = np.meshgrid(
            np.linspace(x.min(), x.max(), 120), np.linspace(y.min(), y.max(), 120)
        )
        law = view.law.predict(
            np.exp(at_y).ravel(), np.exp(at_x).ravel(), view.base_at(np.exp(at_x)).ravel()
        )
        lines = axes.contour(
            at_x, at_y, law.reshape(at_x.shape), levels=levels, colors="black", linewidths=0.9
        )
        for text in axes.clabel(lines, fontsize=6, fmt="%g"):
            text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
    many = len(points) > MANY_POINTS
    axes.plot(
        x, y, ".", color="black", ms=2 if len(points) < 300 else 0.6, rasterized=many, clip_on=False
    )
    for place, values in ((axes.xaxis, points["length"]), (axes.yaxis, points["rank"])):
        ticks = log_ticks(values)
        place.set_ticks(np.log(ticks), labels=[tick_label(tick) for tick in ticks])
    axes.set(xlabel="length l, tokens", ylabel=size_label(view.x))
    lines_are = "lines: the law" if view.law is not None else "no law fitted"
    axes.set_title(f"Colours: measured gain; {lines_are}")
    bar = figure.colorbar(filled, ax=axes, pad=0.02)
    bar.set_label("measured gain dL, nats per token", fontsize=7)
    bar.ax.tick_params(labelsize=6.5)
    style_for_column(axes)
    return figure
