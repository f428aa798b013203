"""What the figures share: file formats, sizes, colours and axes. Figures are returned, not shown.

matplotlib is imported inside the functions that draw, so that importing this module costs nothing.
Its pyplot, which keeps figures alive, is imported nowhere. Colours: viridis for ordered ranks and
lengths, orange against purple for two kinds of points. Both keep their order without colour vision
and in grey, and each kind of point has a marker of its own besides.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pml_cli.law.observations import SizeAxis
from pml_cli.stats import Array

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Group = TypeVar("Group")

# Dots per inch of a PNG: of a page for the screen, and of a figure for a column of print.
SCREEN_DPI = 150
PRINT_DPI = 300

# Width of one column of print, inches
COLUMN = 3.5

# Width of two columns of print, inches
PAGE = 7.1

# Of the width of a figure, how much a title takes at most.
MAX_TITLE_WIDTH = 0.97

# Of the height of a figure, how much a legend takes before the figure grows.
MAX_LEGEND_HEIGHT = 0.2

# Characters of a line of a label in a legend, at least.
SHORTEST_LABEL = 20

# Reference lines and secondary marks.
GREY = "0.45"

# The ends of the colour map PuOr: distinguishable without colour vision, and in grey.
ORANGE = "#b35806"
PURPLE = "#542788"

# Markers in the order of their use.
MARKERS = "osD^vPX<>"

# Above this, the points of an SVG are rasterized: as vectors they would take megabytes
MANY_POINTS = 1000

# Labels of three characters that fit side by side
MAX_LOG_TICKS = 9

# Fewer do not show that an axis is logarithmic.
MIN_LOG_TICKS = 3

# By the name of a SizeAxis
SIZE_LABELS = {
    "rank": "rank r",
    "parameters": "trainable parameters N",
    "effective": "effective parameters N_e",
}


def save(figure: Figure, path: Path, suffix: str) -> None:
    """Write one figure, whatever the suffix of the path. The same figure gives the same bytes.

    Args:
        suffix: the format, png, svg or pdf.
    """
    from matplotlib import rc_context

    # Where a disk refuses what matplotlib writes to it, closing the file hides the cause.
    content = io.BytesIO()
    _show_as_it_is(figure)
    # An SVG holds the date and random ids unless told otherwise, a PDF the date.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
    with rc_context({"svg.hashsalt": "pml"}):
        figure.savefig(
            content,
            format=suffix,
            dpi=max(SCREEN_DPI, figure.dpi),
            metadata=metadata,
        )
    path.write_bytes(content.getvalue())


def _show_as_it_is(figure: Figure) -> None:
    """Show texts with dollar signs as they are: a name of a file is no formula of TeX's.

    Ours have none, but for the numbers at logarithmic axes.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text) and "\\mathdefault" not in text.get_text():
            text.set_parse_math("$" not in text.get_text())


def column_figure(width: float = COLUMN, height: float = 2.8) -> Figure:
    """An empty figure for print.

    Args:
        width, height: inches.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
    return Figure(figsize=(width, height), dpi=PRINT_DPI, layout=layout)


def panel_in_column(draw: Callable[[Axes, Group], None], group: Group) -> Figure:
    """One panel of a page as a figure of its own, for a column of print.

    Args:
        draw: draws the panel into axes.
        group: what it draws.
    """
    column = column_figure(COLUMN, 3.0)
    axes = column.subplots()
    draw(axes, group)
    style_for_column(axes)
    shrink_texts(axes)
    return column


def style_for_column(axes: Axes, tick_length: float = 2.5) -> None:
    """Set labels to the 6 to 8 points of a caption, and thin lines.

    Args:
        tick_length: points.
    """
    axes.tick_params(labelsize=6.5, width=0.6, length=tick_length)
    axes.xaxis.label.set_fontsize(7.5)
    axes.yaxis.label.set_fontsize(7.5)
    axes.title.set_fontsize(8)

    for spine in axes.spines.values():
        spine.set_linewidth(0.6)


def shrink_texts(axes: Axes) -> None:
    """Set the legend and the texts inside the axes to the size of a column of print."""
    legend = axes.get_legend()
    if legend is not None:
        for text in [*legend.get_texts(), legend.get_title()]:
            text.set_fontsize(6)
    for text in axes.texts:
        text.set_fontsize(6.5)


def sequential_colours(count: int) -> list[Any]:
    """Colours (RGBA) for ordered values, from dark to light."""
    from matplotlib import colormaps

    # The lightest yellow of viridis is too pale for a line on white.
    positions = np.linspace(0, 0.87, max(count, 1))
    return list(colormaps["viridis"](positions)[:count])


def log_axis(axes: Axes, values: ArrayLike) -> None:
    """Make x logarithmic, with measured values as ticks.

    Args:
        values: the x of the points, (n,).
    """
    axes.set_xscale("log")
    ticks = log_ticks(values)
    if ticks:
        axes.set_xticks(ticks, [tick_label(tick) for tick in ticks])
        # matplotlib would label these, too.
        axes.set_xticks([], minor=True)


def round_log_axis(axes: Axes, name: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with round ticks; after all is drawn.

    Args:
        name: of the axis.
    """
    axis = axes.xaxis if name == "x" else axes.yaxis
    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    axes.autoscale_view()
    ticks = round_ticks(*axis.get_view_interval())
    axis.set_ticks(ticks, [tick_label(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: powers of ten, also 2 and 5 times them, where those
    are few any round ones."""
    from matplotlib.ticker import MaxNLocator

    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5)):
        candidates = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in candidates if low <= tick <= high]
        if len(ticks) >= MIN_LOG_TICKS:
            return ticks
    values = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(value) for value in values if low <= value <= high]


def log_ticks(values: ArrayLike) -> list[float]:
    """Distinct positive values whose labels do not touch on a logarithmic axis.

    The smallest and the largest value are among them. MAX_LOG_TICKS labels of three characters fit
    side by side; longer ones take more room.

    Args:
        values: (n,).
    """
    distinct = np.unique(np.asarray(values, float))
    distinct = distinct[np.isfinite(distinct) & (distinct > 0)]
    if not len(distinct):
        return []

    first = float(distinct[0])
    last = float(distinct[-1])
    if first == last:
        return [first]
    # Equal distances on the axis are equal ratios.
    min_gap = math.log(max(last / first, 1.0001)) / MAX_LOG_TICKS

    def fits(low: float, high: float) -> bool:
        labels = tick_label(low) + tick_label(high)
        characters = len(labels) / 2
        return math.log(high / low) >= min_gap * max(1.0, characters / 3)

    ticks = [first]
    for value in distinct[1:-1].tolist():
        if fits(ticks[-1], value) and fits(value, last):
            ticks.append(value)
    return [*ticks, last]


def axis_limits(*values: Array) -> tuple[float, float]:
    """From 0, or the smallest value below it, to the largest, with a margin.

    Args:
        values: arrays of any shape; values that are not finite are passed over.
    """
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return 0.0, 1.0

    low = min(0.0, float(finite.min()))
    high = float(finite.max())
    # matplotlib warns of an axis of no extent.
    size = max(high - low, 1e-6)
    return low - 0.03 * size, high + 0.06 * size


def page_title(figure: Figure, text: str, fontsize: float, **font: Any) -> None:
    """Add a title above all panels, in as many lines as the width of the figure asks for.

    Args:
        figure: what gets the title.
        text: its lines, which are broken at blanks where they are too long.
        fontsize: points.
        font: further properties of the text.
    """
    title = figure.suptitle(text, fontsize=fontsize, **font)
    title.set_parse_math(False)
    room = MAX_TITLE_WIDTH * figure.bbox.width
    characters = max(map(len, text.splitlines()))

    while title.get_window_extent().width > room and characters > 20:
        characters -= 2
        lines = [_broken(line, characters) for line in text.splitlines()]
        title.set_text("\n".join(lines))


def _broken(line: str, characters: int, *, long_words: bool = False) -> str:
    return textwrap.fill(line, characters, break_long_words=long_words, break_on_hyphens=False)


def legend_below(figure: Figure, axes: Axes, *, columns: int, fontsize: float) -> None:
    """Add a legend of what is labelled in `axes`, below all panels.

    Args:
        figure: what gets the legend.
        axes: whose labels stand for all panels.
        columns: of the legend.
        fontsize: points.
    """
    handles, labels = axes.get_legend_handles_labels()
    add_legend_below(figure, handles, labels, columns=columns, fontsize=fontsize)


def add_legend_below(
    figure: Figure,
    handles: Sequence[Artist],
    labels: Sequence[str],
    *,
    columns: int,
    fontsize: float = 9,
) -> None:
    """Add a legend below all panels: in fewer columns, and broken labels, where it is too wide.

    Of many lines, it makes the figure higher, and leaves the panels their size.

    Args:
        columns: at most.
        fontsize: points.
    """
    room = MAX_TITLE_WIDTH * figure.bbox.width
    characters = max(map(len, labels), default=0)
    shown = list(labels)
    while True:
        legend = figure.legend(
            handles,
            shown,
            loc="outside lower center",
            ncols=columns,
            fontsize=fontsize,
            frameon=False,
        )
        extent = legend.get_window_extent()
        if extent.width <= room or (columns == 1 and characters <= SHORTEST_LABEL):
            break
        legend.remove()
        if columns > 1:
            columns -= 1
        else:
            characters -= 4
            shown = [_broken(label, characters, long_words=True) for label in labels]

    width, height = figure.get_size_inches()
    extra = extent.height / figure.dpi - MAX_LEGEND_HEIGHT * height
    if extra > 0:
        figure.set_size_inches(width, height + extra)


def tick_label(value: float) -> str:
    """A short number: 512, 4k, 12.3k, 1.5M."""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    if value >= 1e4 or (value >= 1000 and value % 100 == 0):
        return f"{value / 1000:.3g}k"
    return f"{value:g}"


def evenly_spaced(values: NDArray[Any], count: int) -> NDArray[Any]:
    """At most `count` of the values, evenly spaced by index, the first and the last among them.

    Args:
        values: (n,).
    """
    positions = np.linspace(0, len(values) - 1, min(count, len(values)))
    index = np.unique(positions.round().astype(int))
    chosen: NDArray[Any] = values[index]
    return chosen


def size_label(size: SizeAxis) -> str:
    """Label of the axis of adapter sizes, with its symbol."""
    return SIZE_LABELS[size.name]


def empty_panel(axes: Axes, reason: str) -> None:
    """Write into an empty frame why it is empty; axes that share its own keep their ticks."""
    axes.text(
        0.5,
        0.5,
        textwrap.fill(reason, 34),
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=9,
        color=GREY,
    )
    # Ticks that are removed are removed from every panel that shares the axis.
    axes.tick_params(
        which="both",
        left=False,
        bottom=False,
        labelleft=False,
        labelbottom=False,
    )
