"""Parity plot: predicted against measured gain, with the cells that a fit did not see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pml_cli.format import three_digits
from pml_cli.law.fit_result import FitResult
from pml_cli.report.figures.law_view import HeldOut, View
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
    style_for_column,
)
from pml_cli.report.law_text import sentence
from pml_cli.stats import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@figure(
    "law-predicted",
    "predicted against measured gain, the largest ranks and longest lengths held out",
)
def predicted_figure(view: View) -> Figure | None:
    """Draw predicted against measured gain by itself; None without a law."""
    if view.law is None:
        return None
    figure = column_figure(COLUMN, 3.5)
    axes = figure.subplots()
    draw_parity(axes, view, marker_size=3)
    style_for_column(axes)
    # Replaces the legend, whose letters are those of a page.
    axes.legend(loc="upper left", fontsize=6, framealpha=0.85)
    return figure


def draw_parity(axes: Axes, view: View, marker_size: float) -> None:
    """Draw predicted against measured gain.

    Cells in the fit and saturated ones are predicted by the law, the largest ranks and longest
    lengths by a fit without them. Predictions beyond the frame are clipped to its edge.

    Args:
        axes: where to.
        view: what of.
        marker_size: points.
    """
    axes.set(xlabel="measured gain dL, nats per token", ylabel="predicted gain, nats per token")
    if view.law is None:
        axes.set_title("No law fitted")
        empty_panel(axes, sentence(view.paper.finding, view.axis))
        return

    observed = view.observed
    predicted = view.law.predict(observed.rank, observed.length, observed.base)
    # Saturated cells are predicted above what was measured; they must not stretch the frame.
    low, high = axis_limits(observed.delta, predicted[view.uncensored])
    marks = _Marks(
        axes=axes,
        low=low,
        high=high,
        size=marker_size,
        rasterized=len(observed) > MANY_POINTS,
    )
    _draw_seen(marks, view, predicted)
    if view.held_out is not None:
        _draw_unseen(marks, view, view.held_out)

    # Equal axes: the diagonal is where both gains are the same.
    axes.plot([low, high], [low, high], color=GREY, lw=0.8, zorder=1)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.text(
        0.97,
        0.03,
        _parameters_text(view.law),
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=2 * marker_size + 0.5,
    )
    axes.legend(loc="upper left", fontsize=8, framealpha=0.85)
    axes.set_title(_title(view, view.law))


@dataclass(frozen=True, kw_only=True)
class _Marks:
    """Draws points of one kind into a frame, clipped to its edges."""

    axes: Axes
    low: float
    high: float
    """Ends of both axes, nats per token."""
    size: float
    """Of a marker, points."""
    rasterized: bool

    def plot(self, x: Array, y: Array, marker: str, label: str, **style: Any) -> None:
        """Draw points, (n,) each; of none there is no entry in the legend either."""
        if not len(x):
            return
        clipped = np.clip(y, self.low, self.high)
        if (clipped != y).any():
            label += " (clipped)"
        self.axes.plot(
            x,
            clipped,
            marker,
            ls="none",
            ms=self.size,
            mew=0.8,
            label=label,
            rasterized=self.rasterized,
            clip_on=False,
            **style,
        )


def _draw_seen(marks: _Marks, view: View, predicted: Array) -> None:
    """The cells that no held-out check leaves out."""
    measured = view.observed.delta
    seen = np.ones(len(measured), bool)
    if view.held_out is not None:
        seen = ~view.held_out.mask
    fitted = seen & view.uncensored
    saturated = seen & ~view.uncensored

    filled = {"color": PURPLE, "alpha": 0.75, "zorder": 2}
    hollow = {"mec": PURPLE, "mfc": "none", "zorder": 2}
    marks.plot(measured[fitted], predicted[fitted], "o", "in the fit", **filled)
    marks.plot(measured[saturated], predicted[saturated], "o", "saturated", **hollow)


def _draw_unseen(marks: _Marks, view: View, held_out: HeldOut) -> None:
    """The largest ranks and longest lengths, by fits without them."""
    x = view.observed.delta[held_out.mask]
    full = view.uncensored[held_out.mask]
    by_law = held_out.law
    # The paper's law lies under the other where both predict the same.
    if held_out.paper is not None:
        marks.plot(x, held_out.paper, "x", "unseen, paper's law", color=GREY, zorder=1.5)

    filled = {"mec": ORANGE, "mfc": ORANGE, "zorder": 3}
    hollow = {"mec": ORANGE, "mfc": "white", "zorder": 3}
    marks.plot(x[full], by_law[full], "D", "unseen by the fit", **filled)
    marks.plot(x[~full], by_law[~full], "D", "unseen, saturated", **hollow)


def _parameters_text(law: FitResult) -> str:
    """The parameters of the law and how well it fits, a line each."""
    lines = [
        f"{name} = {three_digits(value)}"
        for name, value in law.parameters.items()
        # The spread does not change the curve.
        if name != "spread"
    ]
    lines.append(f"R2 = {law.r2:.4f}, MAPE = {law.mape:.1f} %")
    return "\n".join(lines)


def _title(view: View, law: FitResult) -> str:
    """The error on the held-out cells, or that of the fit where nothing was held out."""
    check = view.check()
    if check is None or not math.isfinite(check.mape):
        return f"MAPE of the fit: {law.mape:.1f} %"

    title = f"MAPE on unseen cells: {check.mape:.1f} %"
    paper_check = view.check("paper") if view.chosen is not None else None
    if paper_check is not None and math.isfinite(paper_check.mape):
        title += f" (paper's law: {paper_check.mape:.1f} %)"
    return title
