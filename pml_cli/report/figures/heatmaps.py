"""Heat maps over rank and length: a value in every cell, and a line around the cells that count."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pml_cli.report.figures.style import joined, nothing, rank_label, short
from pml_cli.stats import LN2, Mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WRITTEN = 16, 30  # columns and rows up to which every value is written in its cell
LABELS = 10, 24  # ticks, at most, where there are more values than that
BINS = 64, 32  # more distinct ranks or lengths than the first are put together into the second
RED = "#d7301f"


def loss_map(axes: Axes, cells: pd.DataFrame, x: str = "rank", size: float = 8) -> None:
    """Final loss, with those at or below ln 2 outlined: p is then above one half on average."""
    table = grid(cells, "final_loss", x)
    inside = table.to_numpy(float) <= LN2
    base = pd.to_numeric(cells.reindex(columns=["base_loss"])["base_loss"], errors="coerce").max()
    _heat(
        axes, table, "viridis_r", None, size=size, most=float(base)
    )  # a diverged cell must not dim the others
    _outline(axes, inside)
    axes.set_title(f"Final loss, nats/token: <= ln 2 in {_count(inside, table)}")
    _label(axes, cells, x)


def accuracy_map(
    axes: Axes,
    cells: pd.DataFrame,
    x: str = "rank",
    column: str = "token_accuracy",
    size: float = 8,
) -> None:
    """Share of the tokens that are right, in per cent, with the cells where all are outlined."""
    table = grid(cells, column, x) * 100
    inside = table.to_numpy(float) == 100
    _heat(axes, table, "viridis", 100, size=size)
    _outline(axes, inside)
    how = "Teacher-forced" if column == "token_accuracy" else "Free-running"
    axes.set_title(f"{how} accuracy, %: 100 in {_count(inside, table)}")
    _label(axes, cells, x)


def bits_map(axes: Axes, cells: pd.DataFrame, x: str = "rank", size: float = 8) -> None:
    """Bits per trainable parameter: of the source where its entropy is known everywhere, else those gained."""
    bits = cells.reindex(columns=["bits_memorised", "bits_gained"]).apply(
        pd.to_numeric, errors="coerce"
    )
    known = len(bits) > 0 and bits["bits_memorised"].notna().all()
    column = "bits_memorised" if known else "bits_gained"
    size_of = pd.to_numeric(
        cells.reindex(columns=["trainable_parameters"])["trainable_parameters"], errors="coerce"
    )
    share = (bits[column] / size_of).where(size_of > 0)
    _heat(axes, grid(cells.assign(share=share), "share", x), "viridis", None, size=size)
    axes.set_title(f"Bits {'memorised' if known else 'gained'} per trainable parameter")
    _label(axes, cells, x)


def grid(cells: pd.DataFrame, column: str, x: str = "rank") -> pd.DataFrame:
    """The mean of a column over each cell, largest rank on top."""
    values = cells.reindex(columns=[x, "target_tokens", column]).apply(
        pd.to_numeric, errors="coerce"
    )
    for axis in (x, "target_tokens"):
        values[axis] = _together(values[axis])
    table: pd.DataFrame = values.pivot_table(
        index=x, columns="target_tokens", values=column, dropna=False
    )
    return table.sort_index(ascending=False)


def rows(cells: pd.DataFrame, x: str = "rank") -> int:
    """How many rows of a page a map takes: fewer where no values are written."""
    found = cells[x].nunique()
    return found if found <= WRITTEN[1] else WRITTEN[1] // 2


def _together(values: pd.Series[float]) -> pd.Series[float]:
    """The values, or where there are too many the middles of bins of equal ratio, with two digits."""
    if values.nunique() <= BINS[0]:
        return values
    low, ratio = math.log(values.min()), math.log(values.max() / values.min())
    place = np.minimum(
        np.floor((np.log(values.to_numpy(float)) - low) / ratio * BINS[1]), BINS[1] - 1
    )
    middle = np.exp(low + (place + 0.5) * ratio / BINS[1])
    return pd.Series([float(f"{value:.2g}") for value in middle], values.index)


def _label(axes: Axes, cells: pd.DataFrame, x: str) -> None:
    repeats = "mean of the runs in a cell" if cells.duplicated([x, "target_tokens"]).any() else ""
    axes.set(xlabel=joined("length l, tokens", repeats), ylabel=rank_label(x))


def _count(inside: Mask, table: pd.DataFrame) -> str:
    found, of = int(inside.sum()), int(np.isfinite(table.to_numpy(float)).sum())
    return f"{found} of {of} (outlined)" if found else f"none of {of}"


def _heat(
    axes: Axes,
    table: pd.DataFrame,
    colours: str,
    top: float | None,
    *,
    size: float,
    most: float = math.inf,
) -> None:
    """From 0 to `top` (None: the largest, or `most`), the values written in their cells where there is room, else a bar."""
    from matplotlib import colormaps

    values = table.to_numpy(float)
    if not np.isfinite(values).any():
        nothing(axes, "not measured")
        return
    end = top or min(float(np.nanmax(values)), most if math.isfinite(most) else math.inf)
    image = axes.imshow(
        values,
        aspect="auto",
        cmap=colormaps[colours],
        vmin=0,
        vmax=max(end, 1e-9),
        interpolation="nearest",
    )
    ranks, lengths = table.index.to_numpy(float), table.columns.to_numpy(float)
    for place, labels, count in ((axes.xaxis, lengths, LABELS[0]), (axes.yaxis, ranks, LABELS[1])):
        step = 1 if len(labels) <= WRITTEN[0] else math.ceil(len(labels) / count)
        shown = range(0, len(labels), step)
        place.set_ticks(shown, labels=[short(float(labels[k])) for k in shown], fontsize=size)
    axes.tick_params(length=0)
    if values.shape[1] > WRITTEN[0] or values.shape[0] > WRITTEN[1]:
        figure = axes.get_figure()
        assert figure is not None
        figure.colorbar(image, ax=axes, pad=0.01).ax.tick_params(labelsize=size)
        return
    smaller = size - 1 if values.shape[1] > 10 else size
    for (i, j), value in np.ndenumerate(values):
        if math.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            colour = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
            axes.text(
                j, i, _written(value, top), ha="center", va="center", fontsize=smaller, color=colour
            )


def _written(value: float, top: float | None) -> str:
    """A loss or a count of bits with three digits; per cent without decimals, never rounded up to 100."""
    if top is None:
        return (
            f"{value:.2f}"
            if abs(value) < 10
            else f"{value:.1f}"
            if abs(value) < 100
            else f"{value:.0f}"
        )
    return f"{math.floor(value) if value > 99 else value:.0f}"


def _outline(axes: Axes, inside: Mask) -> None:
    """A line around the region of a heat map where `inside` holds."""
    from matplotlib.collections import LineCollection

    padded = np.pad(inside, 1)
    lines = [
        [(j - 0.5, i - 1.5), (j - 0.5, i - 0.5)]
        for i, j in np.argwhere(padded[:, 1:] != padded[:, :-1]).tolist()
    ]
    lines += [
        [(j - 1.5, i - 0.5), (j - 0.5, i - 0.5)]
        for i, j in np.argwhere(padded[1:] != padded[:-1]).tolist()
    ]
    width = 2.2 if inside.size < 400 else 1.2
    axes.add_collection(
        LineCollection(lines, colors=RED, linewidths=width, capstyle="round", clip_on=False),
        autolim=False,
    )
