"""Heat maps over rank and length: a value in every cell, an outline around those that count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pml_cli.law.observations import RANK, SizeAxis
from pml_cli.report.figures.style import empty_panel, size_label, tick_label
from pml_cli.stats import LN2, Array, Mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# A larger map has a colour bar instead of a value in each cell.
MAX_ANNOTATED_COLUMNS = 16
MAX_ANNOTATED_ROWS = 30

# Labels of the axes of a larger map.
MAX_X_LABELS = 10
MAX_Y_LABELS = 24

# An axis with more distinct ranks or lengths than this is binned.
MAX_DISTINCT = 64
BINS = 32

OUTLINE_COLOUR = "#d7301f"


def loss_map(axes: Axes, cells: pd.DataFrame, size: SizeAxis = RANK, fontsize: float = 8) -> None:
    """Final loss, with an outline where it is at or below ln 2 (p is then above 0.5 on average).

    Args:
        cells: one row a run, with the size, target_tokens, base_loss and final_loss.
        size: what is on the y axis.
        fontsize: points.
    """
    table = cell_means(cells, "final_loss", size)
    below_ln2 = table.to_numpy(float) <= LN2
    # Colours end at the base loss: one diverged cell must not dim the others.
    largest_base_loss = _numeric(cells, ["base_loss"])["base_loss"].max()

    _heat_map(axes, table, "viridis_r", fontsize=fontsize, vmax_limit=float(largest_base_loss))
    _outline(axes, below_ln2)
    axes.set_title(f"Final loss, nats/token: <= ln 2 in {_outlined_count(below_ln2, table)}")
    _label_axes(axes, cells, size)


def accuracy_map(
    axes: Axes,
    cells: pd.DataFrame,
    size: SizeAxis = RANK,
    column: str = "token_accuracy",
    fontsize: float = 8,
) -> None:
    """Token accuracy in per cent, with an outline where it is 100.

    Args:
        cells: one row a run, with the size, target_tokens and `column`.
        size: what is on the y axis.
        column: token_accuracy (teacher-forced) or free_accuracy (free-running), 0..1.
        fontsize: points.
    """
    table = cell_means(cells, column, size) * 100
    perfect = table.to_numpy(float) == 100

    _heat_map(axes, table, "viridis", fontsize=fontsize, vmax=100)
    _outline(axes, perfect)
    decoding = "Teacher-forced" if column == "token_accuracy" else "Free-running"
    axes.set_title(f"{decoding} accuracy, %: 100 in {_outlined_count(perfect, table)}")
    _label_axes(axes, cells, size)


def bits_map(axes: Axes, cells: pd.DataFrame, size: SizeAxis = RANK, fontsize: float = 8) -> None:
    """Bits per trainable parameter: memorised where the source's entropy is known, else gained.

    Args:
        cells: one row a run, with the size, target_tokens, trainable_parameters and
            bits_memorised or bits_gained.
        size: what is on the y axis.
        fontsize: points.
    """
    numbers = _numeric(cells, ["bits_memorised", "bits_gained", "trainable_parameters"])
    entropy_known = len(numbers) > 0 and numbers["bits_memorised"].notna().all()
    bits = numbers["bits_memorised"] if entropy_known else numbers["bits_gained"]
    parameters = numbers["trainable_parameters"]
    bits_per_parameter = (bits / parameters).where(parameters > 0)

    table = cell_means(
        cells.assign(bits_per_parameter=bits_per_parameter), "bits_per_parameter", size
    )
    _heat_map(axes, table, "viridis", fontsize=fontsize)
    verb = "memorised" if entropy_known else "gained"
    axes.set_title(f"Bits {verb} per trainable parameter")
    _label_axes(axes, cells, size)


def cell_means(cells: pd.DataFrame, column: str, size: SizeAxis = RANK) -> pd.DataFrame:
    """The mean of a column over the runs of each cell.

    Args:
        cells: one row a run.
        column: what is averaged.
        size: what is on the y axis.

    Returns:
        Sizes (largest first) x lengths; nan where there is no run. Axes with more than
        MAX_DISTINCT values are binned.
    """
    values = _numeric(cells, [size.column, "target_tokens", column])
    values[size.column] = _binned(values[size.column])
    values["target_tokens"] = _binned(values["target_tokens"])
    # dropna=False keeps rows and columns without a run in the map, as gaps.

    table = values.pivot_table(
        index=size.column,
        columns="target_tokens",
        values=column,
        dropna=False,
    )
    return table.sort_index(ascending=False)


def map_rows(cells: pd.DataFrame, size: SizeAxis = RANK) -> int:
    """The height of a map in rows of text: less where no values are written.

    Args:
        cells: one row a run, with the size.
    """
    rows = cells[size.column].nunique()
    return rows if rows <= MAX_ANNOTATED_ROWS else MAX_ANNOTATED_ROWS // 2


def _numeric(cells: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The columns as numbers; nan where a value, or a column, is missing."""
    selected = cells.reindex(columns=list(columns))
    numbers: pd.DataFrame = selected.apply(pd.to_numeric, errors="coerce")
    return numbers


def _binned(values: pd.Series[float]) -> pd.Series[float]:
    """The values; where there are too many, the middles of bins of equal ratio (two digits)."""
    if values.nunique() <= MAX_DISTINCT:
        return values

    log_low = math.log(values.min())
    log_range = math.log(values.max() / values.min())
    position = (np.log(values.to_numpy(float)) - log_low) / log_range
    bin_index = np.minimum(np.floor(position * BINS), BINS - 1)
    middle = np.exp(log_low + (bin_index + 0.5) * log_range / BINS)
    return pd.Series([float(f"{value:.2g}") for value in middle], values.index)


def _label_axes(axes: Axes, cells: pd.DataFrame, size: SizeAxis) -> None:
    label = "length l, tokens"
    if cells.duplicated([size.column, "target_tokens"]).any():
        label += "   (mean of the runs in a cell)"
    axes.set(xlabel=label, ylabel=size_label(size))


def _outlined_count(inside: Mask, table: pd.DataFrame) -> str:
    """How many of the measured cells are outlined; `inside` and `table` are (sizes, lengths)."""
    measured = int(np.isfinite(table.to_numpy(float)).sum())
    if not inside.any():
        return f"none of {measured}"
    return f"{int(inside.sum())} of {measured} (outlined)"


def _heat_map(
    axes: Axes,
    table: pd.DataFrame,
    cmap: str,
    *,
    fontsize: float,
    vmax: float | None = None,
    vmax_limit: float = math.inf,
) -> None:
    """Draw a table as colours from 0, with values in the cells where there is room, else a bar.

    Args:
        table: sizes x lengths, as from `cell_means`.
        cmap: name of a matplotlib colour map.
        fontsize: points.
        vmax: value of the last colour; None for the largest in the table.
        vmax_limit: no more than this where `vmax` is None; nan for no limit.
    """
    from matplotlib import colormaps

    values = table.to_numpy(float)
    if not np.isfinite(values).any():
        empty_panel(axes, "not measured")
        return

    end = vmax
    if end is None:
        end = float(np.nanmax(values))
        if math.isfinite(vmax_limit):
            end = min(end, vmax_limit)
    image = axes.imshow(
        values,
        aspect="auto",
        cmap=colormaps[cmap],
        vmin=0,
        vmax=max(end, 1e-9),
        interpolation="nearest",
    )

    _label_ticks(axes.xaxis, table.columns.to_numpy(float), MAX_X_LABELS, fontsize)
    _label_ticks(axes.yaxis, table.index.to_numpy(float), MAX_Y_LABELS, fontsize)
    axes.tick_params(length=0)

    # Values in the cells say more than a bar, as long as they can be read.
    rows, columns = values.shape
    if columns > MAX_ANNOTATED_COLUMNS or rows > MAX_ANNOTATED_ROWS:
        figure = axes.get_figure()
        assert figure is not None
        bar = figure.colorbar(image, ax=axes, pad=0.01)
        bar.ax.tick_params(labelsize=fontsize)
        return
    smaller = fontsize - 1 if columns > 10 else fontsize
    _annotate(axes, image, values, percent=vmax is not None, fontsize=smaller)


def _label_ticks(axis: Axis, values: Array, max_labels: int, fontsize: float) -> None:
    """Label the rows or columns of a map; every nth where there are many. values: (n,)."""
    step = 1
    if len(values) > MAX_ANNOTATED_COLUMNS:
        step = math.ceil(len(values) / max_labels)
    positions = range(0, len(values), step)
    labels = [tick_label(float(values[k])) for k in positions]
    axis.set_ticks(positions, labels=labels, fontsize=fontsize)


def _annotate(axes: Axes, image: Any, values: Array, *, percent: bool, fontsize: float) -> None:
    """Write each finite value in its cell, in white on dark colours. values: (sizes, lengths)."""
    for (i, j), value in np.ndenumerate(values):
        if not math.isfinite(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        # Weights of ITU-R BT.601
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        axes.text(
            j,
            i,
            _percent_text(value) if percent else _value_text(value),
            ha="center",
            va="center",
            fontsize=fontsize,
            color="white" if luminance < 0.5 else "black",
        )


def _percent_text(value: float) -> str:
    """Without decimals, and never rounded up to 100."""
    return f"{math.floor(value) if value > 99 else value:.0f}"


def _value_text(value: float) -> str:
    """A loss or a number of bits with about three digits."""
    if abs(value) < 10:
        return f"{value:.2f}"
    if abs(value) < 100:
        return f"{value:.1f}"
    return f"{value:.0f}"


def _outline(axes: Axes, inside: Mask) -> None:
    """Draw a line around the region of a map where `inside` (sizes, lengths) holds."""
    from matplotlib.collections import LineCollection

    # A frame of cells outside closes the line at the edge of the map.
    padded = np.pad(inside, 1)
    changes_to_the_right = padded[:, 1:] != padded[:, :-1]
    changes_below = padded[1:] != padded[:-1]

    # Cell (i, j) of the map is the square of side 1 around the point (j, i).
    segments = []
    for i, j in np.argwhere(changes_to_the_right).tolist():
        x = j - 0.5
        segments.append([(x, i - 1.5), (x, i - 0.5)])
    for i, j in np.argwhere(changes_below).tolist():
        y = i - 0.5
        segments.append([(j - 1.5, y), (j - 0.5, y)])

    lines = LineCollection(
        segments,
        colors=OUTLINE_COLOUR,
        linewidths=2.2 if inside.size < 400 else 1.2,
        capstyle="round",
        clip_on=False,
    )
    axes.add_collection(lines, autolim=False)
