"""Figures as matplotlib objects: they are returned, not shown, and touch no global state.

matplotlib is imported inside the functions that draw, so that importing this module costs nothing. Colours: viridis for
ordered ranks and lengths, orange against purple around p = 0.5; both keep their order without colour vision and in grey.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .law import BOUND_HIT, NOT_IDENTIFIED, LawFit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
GREY = "0.45"
ORANGE, PURPLE = "#b35806", "#542788"
LEGEND_ROWS = 7
MANY_POINTS = 1000  # above this, the points of an SVG are one picture: it would take megabytes


def save(figure: Figure, path: Path, form: str) -> None:
    """Write one figure as png or svg, whatever the suffix of the path."""
    figure.savefig(path, format=form, dpi=DPI, metadata={"Date": None} if form == "svg" else None)


def law_figure(cells: pd.DataFrame, fit: LawFit, name: str) -> Figure:
    """The law on one page: gain by rank and by length, predicted against measured, heat maps of final loss and accuracy.

    Args:
        cells: one row a run: rank, target_tokens, delta_loss and final_loss (nats per token), token_accuracy (0..1), kept.
        fit: the law fitted to them; without one (NOT_IDENTIFIED) only what was measured is drawn.
        name: what was measured, for the heading.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    there = cells[np.isfinite(cells[["rank", "target_tokens", "delta_loss", "final_loss"]].to_numpy(float)).all(axis=1)]
    rows = there["rank"].nunique()
    height = max(3.2, 1.3 + 0.29 * rows)  # of the heat maps, inches
    figure = Figure(figsize=(12, 4.7 + height), layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06))
    figure.suptitle(name, fontsize=13, fontweight="bold")
    grid = figure.add_gridspec(2, 6, height_ratios=[4.2, height])
    left, middle, right = (figure.add_subplot(grid[0, k : k + 2]) for k in (0, 2, 4))
    _curves(left, there, fit, "rank", "target_tokens")
    _curves(middle, there, fit, "target_tokens", "rank")
    _agreement(right, there, fit)
    maps = figure.add_subplot(grid[1, :3]), figure.add_subplot(grid[1, 3:])
    repeats = "mean of the runs in a cell" if there.duplicated(["rank", "target_tokens"]).any() else ""
    _loss_map(maps[0], there, repeats)
    _accuracy_map(maps[1], there, repeats)
    return figure


def _curves(axes: Axes, cells: pd.DataFrame, fit: LawFit, x: str, line: str) -> None:
    """Gain against one axis, a line for every value of the other."""
    lines = sorted(cells[line].unique())
    many = len(cells) > MANY_POINTS
    span = np.geomspace(cells[x].min(), cells[x].max(), 100) if len(cells) else np.array([])
    for value, colour in zip(lines, _ordered(len(lines)), strict=True):
        group = cells[cells[line] == value]
        if fit.status != NOT_IDENTIFIED:
            rank, length = (span, value) if x == "rank" else (value, span)
            axes.plot(span, fit.predict(rank, length), color=colour, lw=1.1, zorder=1)
        for kept, face in ((True, colour), (False, "none")):
            points = group[group["kept"] == kept]
            axes.plot(points[x], points["delta_loss"], "o", ms=4, mec=colour, mfc=face, mew=0.9, zorder=2, rasterized=many)
        axes.plot([], [], "o", ms=5, color=colour, label=f"{value:g}")
    _log_axis(axes, cells[x])
    if len(cells):
        axes.set_ylim(*_limits(cells["delta_loss"]))
    axis, other = ("rank r", "length") if x == "rank" else ("length l, tokens", "rank")
    hollow = "hollow: not in the fit" if not cells["kept"].all() else ""
    axes.set(xlabel=_joined(axis, hollow), ylabel="gain dL, nats per token")
    columns = max(1, math.ceil(len(lines) / LEGEND_ROWS))
    style: dict[str, Any] = {
        "fontsize": 7,
        "title_fontsize": 8,
        "handletextpad": 0.1,
        "columnspacing": 0.6,
        "labelspacing": 0.25,
    }
    if lines:
        axes.legend(title=other, ncols=columns, loc="best", framealpha=0.8, **style)
    axes.set_title(_curve_title(fit, x), fontsize=10)


def _curve_title(fit: LawFit, x: str) -> str:
    word = "rank" if x == "rank" else "length"
    if fit.status == NOT_IDENTIFIED:
        return f"Gain by {word} (no law fitted)"
    if fit.status == BOUND_HIT:
        return f"Gain by {word} (no power law: see status)"
    return f"Twice the {word}: gain above b times {2**fit.alpha if x == 'rank' else 2**-fit.beta:.2f}"


def _agreement(axes: Axes, cells: pd.DataFrame, fit: LawFit) -> None:
    """Predicted against measured gain."""
    axes.set(xlabel="measured gain dL, nats per token", ylabel="predicted gain, nats per token")
    if fit.status == NOT_IDENTIFIED:
        axes.set_title("No law fitted", fontsize=10)
        axes.text(0.5, 0.5, _wrapped(fit.reason), transform=axes.transAxes, ha="center", va="center", fontsize=9, color=GREY)
        axes.set(xticks=[], yticks=[])
        return
    predicted = fit.predict(cells["rank"].to_numpy(float), cells["target_tokens"].to_numpy(float))
    measured, kept = cells["delta_loss"].to_numpy(float), cells["kept"].to_numpy(bool)
    many = len(cells) > MANY_POINTS
    low, high = _limits(pd.Series(np.concatenate([measured, predicted[kept]])))
    axes.plot([low, high], [low, high], color=GREY, lw=1, zorder=1)
    axes.plot(measured[kept], predicted[kept], "o", ms=4, color=PURPLE, alpha=0.75, label="in the fit", rasterized=many)
    if not kept.all():
        clipped = np.clip(predicted[~kept], low, high)  # where gains saturate the law overshoots; the frame shows it
        label = "left out" + (" (clipped at the top)" if (clipped != predicted[~kept]).any() else "")
        axes.plot(measured[~kept], clipped, "o", ms=4, mec=ORANGE, mfc="none", clip_on=False, label=label, zorder=3)
    axes.set(xlim=(low, high), ylim=(low, high))
    words = [f"C = {fit.C:.3g}", f"alpha = {fit.alpha:.3f}", f"beta = {fit.beta:.3f}", f"b = {fit.b:.3g}"]
    axes.text(0.97, 0.03, "\n".join(words), transform=axes.transAxes, ha="right", va="bottom", fontsize=9)
    axes.legend(loc="best", fontsize=8, framealpha=0.8)
    axes.set_title(f"The law against {fit.n} cells: R2 {fit.r2:.3f}, MAPE {fit.mape:.1f} %", fontsize=10)


def _loss_map(axes: Axes, cells: pd.DataFrame, repeats: str) -> None:
    table = _grid(cells, "final_loss")
    values = table.to_numpy(float)
    below = values <= math.log(2)
    _heat(axes, table, "viridis_r", None)
    _outline(axes, below)
    axes.set_title(f"Final loss, nats per token: at or below ln 2 in {_count(below, values)}", fontsize=10)
    axes.set_xlabel(_joined("length l, tokens", repeats))


def _accuracy_map(axes: Axes, cells: pd.DataFrame, repeats: str) -> None:
    table = _grid(cells, "token_accuracy") * 100
    values = table.to_numpy(float)
    _heat(axes, table, "viridis", 100)
    whole = values == 100
    _outline(axes, whole)
    axes.set_title(f"Tokens predicted right, %: all in {_count(whole, values)}", fontsize=10)
    axes.set_xlabel(_joined("length l, tokens", repeats))


def _count(inside: NDArray[np.bool_], values: NDArray[np.float64]) -> str:
    found, of = int(inside.sum()), int(np.isfinite(values).sum())
    return f"{found} of {of} cells (outlined)" if found else f"none of {of} cells"


def _grid(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    cells = cells.assign(**{column: pd.to_numeric(cells[column], errors="coerce")})
    table = cells.pivot_table(index="rank", columns="target_tokens", values=column, aggfunc="mean", dropna=False)
    return table.sort_index(ascending=False)  # largest rank on top


def _heat(axes: Axes, table: pd.DataFrame, colours: str, top: float | None) -> None:
    """A heat map over (rank, length) from 0 to `top` (None: the largest) with every value written in its cell."""
    from matplotlib import colormaps

    values = table.to_numpy(float)
    axes.set_ylabel("rank r")
    if not np.isfinite(values).any():
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    image = axes.imshow(values, aspect="auto", cmap=colormaps[colours], vmin=0, vmax=top)
    axes.set_xticks(range(table.shape[1]), [_short(float(v)) for v in table.columns.to_numpy()], fontsize=8)
    axes.set_yticks(range(table.shape[0]), [f"{v:g}" for v in table.index], fontsize=8)
    axes.tick_params(length=0)
    size = 7 if table.shape[1] > 10 else 8
    for (i, j), value in np.ndenumerate(values):
        if math.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(
                j, i, _written(value, top), ha="center", va="center", fontsize=size, color="white" if dark else "black"
            )


def _written(value: float, top: float | None) -> str:
    """A loss with three digits; per cent without decimals, never rounded up to 100."""
    if top is None:
        return f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return f"{math.floor(value) if value > 99 else value:.0f}"


def _outline(axes: Axes, inside: NDArray[np.bool_]) -> None:
    """A line around the region of a heat map where `inside` holds."""
    padded = np.pad(inside, 1)
    style: dict[str, Any] = {"color": "#d7301f", "lw": 2.2, "solid_capstyle": "round", "clip_on": False}
    for i, j in np.argwhere(padded[:, 1:] != padded[:, :-1]):
        axes.plot([j - 0.5] * 2, [i - 1.5, i - 0.5], **style)
    for i, j in np.argwhere(padded[1:] != padded[:-1]):
        axes.plot([j - 1.5, j - 0.5], [i - 0.5] * 2, **style)


def _ordered(count: int) -> list[Any]:
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.9, max(count, 1)))[:count])


def _log_axis(axes: Axes, values: pd.Series[float]) -> None:
    """Logarithmic x with the measured values as ticks, thinned where they would touch."""
    axes.set_xscale("log")
    distinct = sorted(values.unique())
    if not distinct:
        return
    gap = math.log(max(distinct[-1] / distinct[0], 1.0001)) / 9
    ticks: list[float] = []
    for value in distinct:
        if not ticks or math.log(value / ticks[-1]) >= gap:
            ticks.append(value)
    axes.set_xticks(ticks, [_short(v) for v in ticks], fontsize=8)
    axes.set_xticks([], minor=True)


def _limits(values: pd.Series[float]) -> tuple[float, float]:
    low, high = min(0.0, float(values.min())), float(values.max())
    return low - 0.03 * (high - low), high + 0.05 * max(high - low, 1e-6)


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 and value % 100 == 0 else f"{value:g}"


def _joined(label: str, note: str) -> str:
    return f"{label}   ({note})" if note else label


def _wrapped(text: str) -> str:
    import textwrap

    return textwrap.fill(text, 34)
