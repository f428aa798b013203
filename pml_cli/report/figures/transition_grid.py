"""The stubborn grid: final p of one text by position and rank.

Dark is stubborn: lightness rises with p and jumps at 0.5, so that the grid can be read in grey and
without colour vision.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pml_cli.analysis.transition import StubbornGrid, TransitionSummary
from pml_cli.format import counted
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import PAGE, column_figure, style_for_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from pml_cli.stats import Array

# More columns would be thinner than a pixel.
MAX_COLUMNS = 1000

# More labels would touch.
MAX_RANK_TICKS = 16

# Colours at both ends of p <= 0.5 and of p > 0.5.
STUBBORN_COLOURS = ("#3d1c00", "#d98a3d")
RECALLED_COLOURS = ("#c9c3e6", "#ffffff")


@figure("transition-grid", "stubborn tokens of one text by rank, at several lengths")
def grid_figure(group: TransitionSummary) -> Figure | None:
    """The stubborn grids of one text, one below the other by length."""
    if not group.grids:
        return None

    grids = sorted(group.grids, key=lambda grid: grid.length)
    page = column_figure(PAGE, 2.1 * len(grids) + 0.2)
    panels = page.subplots(len(grids), 1, squeeze=False)
    for axes, grid in zip(panels.ravel(), grids, strict=True):
        grid_panel(axes, grid, font_size=6.5)
        style_for_column(axes)
    return page


def grid_panel(axes: Axes, grid: StubbornGrid, font_size: float = 9) -> None:
    """Final p by position and rank; triangles mark the first failure of each rank.

    Args:
        font_size: of the colour bar, points.
    """
    p_RS, merged = _merge_columns(grid.p_RS)
    image = axes.imshow(
        p_RS,
        aspect="auto",
        origin="lower",
        cmap=stubborn_map(),
        vmin=0,
        vmax=1,
        interpolation="none",
    )
    _label_ranks(axes, grid.ranks)
    _label_positions(axes, p_RS.shape[1], merged)
    single = grid.samples == 1
    position_label = "position in the target, tokens"
    axes.set_xlabel(position_label if single else "target tokens, samples side by side")

    # With several samples side by side there is no single first failure.
    marked = single and _mark_first_failures(axes, grid, merged, 0.75 * font_size)
    axes.set_title(_title(grid, marked))

    # Axes that are not drawn have no figure; these do.
    canvas = axes.get_figure()
    assert canvas is not None
    ticks = [0, 0.25, 0.5, 0.75, 1]
    bar = canvas.colorbar(image, ax=axes, pad=0.01, ticks=ticks)
    bar.set_label(f"final p (least of {merged})" if merged > 1 else "final p", fontsize=font_size)
    bar.ax.tick_params(labelsize=font_size)


def _merge_columns(p_RS: Array) -> tuple[Array, int]:
    """The least p of neighbouring tokens where there are more than MAX_COLUMNS.

    Returns:
        (R, columns), and how many tokens share a column.
    """
    merged = math.ceil(p_RS.shape[1] / MAX_COLUMNS)
    padding = -p_RS.shape[1] % merged
    # The last column may hold fewer tokens: the last one is repeated.
    padded = np.pad(p_RS, ((0, 0), (0, padding)), mode="edge")
    neighbours = padded.reshape(len(p_RS), -1, merged)
    return neighbours.min(axis=2), merged


def _label_ranks(axes: Axes, ranks: Array) -> None:
    every = math.ceil(len(ranks) / MAX_RANK_TICKS)
    labels = [f"{rank:g}" for rank in ranks[::every]]
    axes.set_yticks(range(0, len(ranks), every), labels)
    axes.set_ylabel("rank of the adapter")

    # Minor ticks carry the lines between ranks.
    borders = np.arange(len(ranks) - 1) + 0.5
    axes.set_yticks(borders, minor=True)
    axes.grid(which="minor", axis="y", color="0.5", lw=0.5)
    axes.tick_params(which="minor", length=0)


def _label_positions(axes: Axes, columns: int, merged: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick * merged:.0f}")
    axes.set_xlim(-0.5, columns - 0.5)


def _mark_first_failures(
    axes: Axes,
    grid: StubbornGrid,
    merged: int,
    size: float,
) -> bool:
    """Triangles at the first failure of each rank; returns whether there is one.

    Args:
        size: of a triangle, points.
    """
    wrong_RS = ~grid.correct_RS
    rows = np.flatnonzero(wrong_RS.any(axis=1))
    first = wrong_RS.argmax(axis=1)[rows]

    (marks,) = axes.plot(
        first / merged,
        rows,
        ">",
        color="white",
        mec="black",
        mew=0.8,
        ms=size,
        ls="none",
        clip_on=False,
        zorder=5,
    )
    # The layout would reserve room for what is not clipped.
    marks.set_in_layout(False)
    return bool(len(rows))


def _title(grid: StubbornGrid, marked: bool) -> str:
    text = "" if pd.isna(grid.text) else f" of text {grid.text:g}"
    seed = "" if pd.isna(grid.seed) else f", seed {grid.seed:g}"
    marks = "; triangles: first failure" if marked else ""
    return f"Stubborn tokens (dark){text}: {counted(grid.length, 'token')}{seed}{marks}"


def stubborn_map() -> Colormap:
    """Dark to light orange up to p = 0.5, pale purple to white above.

    Lightness rises throughout, and jumps at 0.5.
    """
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    positions = np.linspace(0, 1, 128)
    halves = [
        LinearSegmentedColormap.from_list("half", ends)(positions)
        for ends in (STUBBORN_COLOURS, RECALLED_COLOURS)
    ]
    return ListedColormap(np.concatenate(halves).tolist())
