"""The page of a group, and its heat maps.

Each function takes a `law_view.View` and returns a figure, or None where the cells do not carry
one. The page is always drawn. The law is the chosen one, with the band that holds 95 % of new
cells; the paper's is dashed where the two differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pml_cli.report.figures import curves, heatmaps
from pml_cli.report.figures.law_view import View
from pml_cli.report.figures.parity import draw_parity
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import PAGE, column_figure, page_title, style_for_column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches of the upper row of the page
CURVES_HEIGHT = 5.0
# Inches of a row of a heat map on the page
MAP_ROW_HEIGHT = 0.29


@figure(
    "law",
    "the page of a group: gain by rank and length, predicted against measured, loss, accuracy",
)
def page_figure(view: View) -> Figure:
    """Draw the page of a group, after Figure 2 of the paper.

    Above: gain by rank and by length, predicted against measured gain. Below: heat maps of final
    loss and accuracy.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    cells = _measured_cells(view)
    rows = heatmaps.map_rows(cells, view.axis.grid)
    maps_height = max(3.2, 1.3 + MAP_ROW_HEIGHT * rows)
    figure = Figure(
        figsize=(12, CURVES_HEIGHT + maps_height),
        layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06),
    )
    title = view.name
    if view.analysis.chosen:
        title += f"   (law: {view.analysis.chosen.name})"
    page_title(figure, title, fontsize=13, fontweight="bold")

    # Each row of panels has a legend of its own below it.
    halves: Any = figure.subfigures(2, 1, height_ratios=[4.5, maps_height])
    upper, lower = halves
    by_rank, by_length, parity = upper.subplots(1, 3)
    _draw_curves(by_rank, view, "rank")
    _draw_curves(by_length, view, "length")
    draw_parity(parity, view, marker_size=4)
    parity.title.set_fontsize(9)
    curves.add_sign_legend(upper, by_rank, fontsize=8, columns=6)

    loss, accuracy = lower.subplots(1, 2)
    heatmaps.loss_map(loss, cells, view.axis.grid)
    heatmaps.accuracy_map(accuracy, cells, view.axis.grid)
    loss.title.set_fontsize(10)
    accuracy.title.set_fontsize(10)
    return figure


def _draw_curves(axes: Any, view: View, along: curves.Axis) -> None:
    """The curves of the page, with their legend and title."""
    curves.draw_curves(axes, view, along, marker_size=4)
    if len(view.observed):
        curves.legend_in_free_corner(axes, view, along)
    axes.set_title(curves.curve_title(view, along), fontsize=9)


@figure(
    "law-maps",
    "final loss, teacher-forced and free-running accuracy, bits per trainable parameter",
)
def maps_figure(view: View) -> Figure | None:
    """Heat maps of final loss, bits per parameter, and both accuracies; None without a cell."""
    cells = _measured_cells(view)
    if cells.empty:
        return None

    rows = heatmaps.map_rows(cells, view.axis.grid)
    map_height = max(1.7, 0.9 + 0.17 * rows)
    figure = column_figure(PAGE, 2 * map_height)
    (loss, bits), (accuracy, free_accuracy) = figure.subplots(2, 2)
    # Values of more columns would touch.
    fontsize = 6.5 if cells["target_tokens"].nunique() <= 10 else 5.5
    heatmaps.loss_map(loss, cells, view.axis.grid, fontsize)
    heatmaps.bits_map(bits, cells, view.axis.grid, fontsize)
    heatmaps.accuracy_map(accuracy, cells, view.axis.grid, fontsize=fontsize)
    heatmaps.accuracy_map(free_accuracy, cells, view.axis.grid, "free_accuracy", fontsize=fontsize)

    for axes in (loss, bits, accuracy, free_accuracy):
        style_for_column(axes, tick_length=0)
        axes.title.set_fontsize(7.5)
    return figure


def _measured_cells(view: View) -> pd.DataFrame:
    """The cells whose size, length, gain and final loss are numbers."""
    numbers = view.cells.reindex(
        columns=[view.axis.column, "target_tokens", "delta_loss", "final_loss"]
    )
    measured = np.isfinite(numbers.to_numpy(float)).all(axis=1)
    return pd.DataFrame(view.cells[measured])
