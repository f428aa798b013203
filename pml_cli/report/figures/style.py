"""What the figures share: how they are saved, their colours and their axes. Figures are returned, not shown.

matplotlib is imported inside the functions that draw, so that importing this module costs nothing; its pyplot, which keeps
figures alive, nowhere. Colours: viridis for ordered ranks and lengths, orange against purple for two kinds of points; both
keep their order without colour vision and in grey, and each kind of point has a shape of its own besides.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pml_cli.stats import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
PRINT = 300  # dots per inch of the figures made for a column of a paper
COLUMN, PAGE = 3.5, 7.1  # widths of one and of two columns, inches
GREY = "0.45"
ORANGE, PURPLE = "#b35806", "#542788"
MARKERS = "osD^vPX<>"
MANY_POINTS = 1000  # above this, the points of an SVG are one picture: it would take megabytes
TICKS = 9  # at most, on a logarithmic axis
RANK_AXIS = {"rank": "rank r"}  # every other column that may stand for it is a count of parameters


def save(figure: Figure, path: Path, form: str) -> None:
    """Write one figure as png or svg, whatever the suffix of the path. The same figure gives the same bytes."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "pml"}):
        figure.savefig(
            path,
            format=form,
            dpi=max(DPI, figure.dpi),
            metadata={"Date": None} if form == "svg" else None,
        )


def column_figure(width: float = COLUMN, height: float = 2.8) -> Figure:
    """A figure in the width of a column (inches), its letters as small as those of a caption."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(
        figsize=(width, height), dpi=PRINT, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
    )


def small(axes: Axes, tick: float = 2.5) -> None:
    """Letters of 6 to 8 points, for a column."""
    axes.tick_params(labelsize=6.5, width=0.6, length=tick)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(7.5)
    axes.title.set_fontsize(8)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)


def ordered(count: int) -> list[Any]:
    """Colours from dark to light."""
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.87, max(count, 1)))[:count])


def log_axis(axes: Axes, values: ArrayLike) -> None:
    """Logarithmic x, with measured values as ticks."""
    axes.set_xscale("log")
    ticks = thinned(values)
    if ticks:
        axes.set_xticks(ticks, [short(tick) for tick in ticks])
        axes.set_xticks([], minor=True)


def thinned(values: ArrayLike) -> list[float]:
    """Those of the distinct positive values that do not touch as ticks of a logarithmic axis; the ends are among them.

    TICKS labels of three letters fit side by side; longer ones take more room.
    """
    distinct = np.unique(np.asarray(values, float))
    distinct = distinct[np.isfinite(distinct) & (distinct > 0)]
    if not len(distinct):
        return []
    first, last = float(distinct[0]), float(distinct[-1])
    gap = math.log(max(last / first, 1.0001)) / TICKS

    def apart(low: float, high: float) -> bool:
        letters = (len(short(low)) + len(short(high))) / 2
        return math.log(high / low) >= gap * max(1.0, letters / 3)

    ticks = [first]
    for value in distinct[1:-1].tolist():
        if apart(ticks[-1], value) and apart(value, last):
            ticks.append(value)
    return [*ticks, last] if last > first else ticks


def limits(*values: Array) -> tuple[float, float]:
    """From 0 or the least value to the largest, with a margin."""
    joined = np.concatenate(values)
    joined = joined[np.isfinite(joined)]
    if not len(joined):
        return 0.0, 1.0
    low, high = min(0.0, float(joined.min())), float(joined.max())
    size = max(high - low, 1e-6)
    return low - 0.03 * size, high + 0.06 * size


def short(value: float) -> str:
    """512, 4k, 12.3k, 1.5M."""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    if value >= 1e4 or (value >= 1000 and value % 100 == 0):
        return f"{value / 1000:.3g}k"
    return f"{value:g}"


def digits(value: float) -> str:
    """Three of them: 0.600, 14.0, 1.2e+05."""
    return f"{value:#.3g}".rstrip(".")


def rank_label(column: str) -> str:
    """Of the axis on which the adapter's size stands."""
    return RANK_AXIS.get(column, "trainable parameters N")


def joined(label: str, note: str) -> str:
    return f"{label}   ({note})" if note else label


def nothing(axes: Axes, words: str) -> None:
    """Say in an empty frame why it is empty."""
    axes.text(
        0.5,
        0.5,
        textwrap.fill(words, 34),
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=9,
        color=GREY,
    )
    axes.set(xticks=[], yticks=[])
