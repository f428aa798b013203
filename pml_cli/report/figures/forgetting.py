"""The figure of `pml forgetting`: recall against harm to other text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pml_cli.analysis.forgetting import ALL, pareto_front
from pml_cli.format import counted
from pml_cli.report.figures.methods import MARKERS, colour_and_marker, sft_first
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    GREY,
    add_legend_below,
    empty_panel,
    page_title,
    round_ticks,
)
from pml_cli.stats import safe_exp

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Less harm than this is drawn here: on a logarithmic axis there is no zero.
LEAST_HARM = 1e-3

# Names of points as close as this would overlap: decades of harm, and per cent of recall.
CLOSE_DECADES = 0.12
CLOSE_PERCENT = 6

# Names of close points stand in lines one above the other, at most so many.
MAX_LINES = 4

# With more cells than this, only those on the front are named.
MAX_NAMED = 12


@figure("forgetting", "share of samples recalled whole against the harm to other text")
def forgetting_figure(table: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """A point a cell: recall against harm, coloured by loss, named by penalty; and the front.

    Args:
        table: `forgetting.measurement_table` of one model, kind of data, adapter and length.
        means: `forgetting.mean_table` of the same runs.
    """
    from matplotlib.figure import Figure

    page = Figure(figsize=(8.2, 5.6), layout="constrained")
    axes = page.subplots()
    page_title(page, _title(table), fontsize=11)
    measured = means.dropna(subset=["harm", "recall"])
    if measured.empty:
        empty_panel(axes, "harm: not measured on all of prose, docs, code and chat")
        return page

    _draw_axes(axes, measured)
    _draw_front(axes, measured)
    _draw_runs(axes, table[table["kind"] == ALL], _methods(measured))
    _draw_cells(axes, measured)
    if _are_kept(table):
        _name_cells(axes, measured)

    handles, labels = axes.get_legend_handles_labels()
    add_legend_below(page, handles, labels, columns=min(len(labels), 3))
    return page


def _methods(means: pd.DataFrame) -> list[str]:
    """The methods in the order of their colours; grey is always that of sft."""
    return sft_first(["sft", *means["method"]])


def _title(table: pd.DataFrame) -> str:
    first = table.iloc[0]
    runs = table.drop_duplicates("id")
    lengths = ", ".join(f"{length:g}" for length in sorted(runs["target_tokens"].unique()))
    labels = "; beside each point its loss.keep" if _are_kept(table) else ""
    return (
        "What an adapter recalls, and what it harms\n"
        f"{first['model']}, {first['data']}, adapter {first['adapter']}; "
        f"{counted(len(runs), 'run')}, {lengths} target tokens{labels}"
    )


def _are_kept(table: pd.DataFrame) -> bool:
    """Whether any run was kept close to the base model."""
    return bool(table["penalty"].astype(bool).any())


def _on_axis(harm: Any) -> Any:
    """Where a harm is drawn, a number or an array."""
    return np.maximum(harm, LEAST_HARM)


def _draw_axes(axes: Axes, means: pd.DataFrame) -> None:
    """Logarithmic harm, with what it means for the perplexity above."""
    axes.set_xscale("log")
    harm = _on_axis(means["harm"].to_numpy(float))
    low = harm.min() / 1.8
    high = harm.max() * 1.8
    axes.set_xlim(low, high)

    ticks = round_ticks(low, high)
    labels = [f"≤{tick:g}" if tick == LEAST_HARM else f"{tick:g}" for tick in ticks]
    axes.set_xticks(ticks, labels)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("harm: nats per token added to the loss of prose, documentation, code, chat")

    above = axes.secondary_xaxis("top")
    above.set_xticks(ticks, [_perplexity(tick) for tick in ticks])
    above.set_xticks([], minor=True)
    above.set_xlabel("perplexity of that text", fontsize=9)
    above.tick_params(labelsize=8)

    axes.set_ylim(-7, 107)
    axes.set_ylabel("samples recalled whole, %")
    axes.grid(color="0.9", lw=0.6)


def _perplexity(harm: float) -> str:
    """The perplexity under a harm, against that of the base model, to two digits."""
    ratio = safe_exp(harm)
    # Bounds of two digits: what is larger would be written as +1e+02 % and as 10.0 times.
    if ratio < 1.995:
        return f"+{100 * (ratio - 1):.2g} %"
    if ratio < 9.95:
        return f"{ratio:.1f} times"
    return f"{ratio:.0f} times"


def _draw_front(axes: Axes, means: pd.DataFrame) -> None:
    """The cells that no other one beats, as steps."""
    front = pareto_front(means)
    x = _on_axis(front["harm"].to_numpy(float))
    y = 100 * front["recall"].to_numpy(float)
    style: dict[str, Any] = {"color": GREY, "lw": 1.2, "ls": "--"}
    # The last step goes on to the frame.
    right = axes.get_xlim()[1]
    axes.step([*x, right], [*y, y[-1]], where="post", zorder=1, **style)
    axes.plot([], [], label="front: none is better in both", **style)


def _draw_runs(axes: Axes, runs: pd.DataFrame, methods: list[str]) -> None:
    """Every run, small and pale."""
    for index, method in enumerate(methods):
        colour, _ = colour_and_marker(index)
        of_method = runs[runs["method"] == method]
        harm = _on_axis(of_method["harm"].to_numpy(float))
        recall = 100 * of_method["exact_match"].to_numpy(float)
        axes.scatter(harm, recall, s=9, color=colour, alpha=0.35, lw=0, zorder=2)


def _draw_cells(axes: Axes, means: pd.DataFrame) -> None:
    """The mean of every cell with its intervals; a line joins cells of one loss, rank and setup."""
    ranks = sorted(means["rank"].unique())
    for index, method in enumerate(_methods(means)):
        colour, _ = colour_and_marker(index)
        of_method = means[means["method"] == method]
        for rank, cells in of_method.groupby("rank"):
            label = method if len(ranks) == 1 else f"{method}, rank {rank:g}"
            marker = MARKERS[ranks.index(rank) % len(MARKERS)]
            x = _on_axis(cells["harm"].to_numpy(float))
            y = 100 * cells["recall"].to_numpy(float)
            axes.plot(x, y, lw=0, label=label, color=colour, marker=marker, ms=6.5, zorder=3)

            for _, of_setup in cells.groupby(["setting", "layer", "lr", "steps"]):
                ordered = of_setup.sort_values("harm")
                x = _on_axis(ordered["harm"].to_numpy(float))
                y = 100 * ordered["recall"].to_numpy(float)
                axes.plot(x, y, color=colour, lw=0.9, alpha=0.6, zorder=1)
            _draw_intervals(axes, cells, colour)


def _draw_intervals(axes: Axes, cells: pd.DataFrame, colour: str) -> None:
    for row in cells.to_dict("records"):
        x = _on_axis(row["harm"])
        y = 100 * row["recall"]
        style: dict[str, Any] = {"color": colour, "zorder": 2}
        if pd.notna(row["harm_low"]):
            low, high = _on_axis(row["harm_low"]), _on_axis(row["harm_high"])
            axes.hlines(y, low, high, lw=1.0, alpha=0.8, **style)
        # With few runs these are long: paler, so that they do not hide the points.
        low, high = 100 * row["recall_low"], 100 * row["recall_high"]
        axes.vlines(x, low, high, lw=0.8, alpha=0.4, **style)


def _name_cells(axes: Axes, means: pd.DataFrame) -> None:
    """The penalty beside each point; of many points those on the front alone."""
    methods = _methods(means)
    named = means if len(means) <= MAX_NAMED else pareto_front(means)
    # log10 of the harm, recall in per cent and line of each name so far.
    taken: list[tuple[float, float, int]] = []
    for row in named.sort_values(["recall", "harm"]).to_dict("records"):
        x = float(np.log10(_on_axis(row["harm"])))
        y = 100 * row["recall"]
        lines_of_close = set()
        for other_x, other_y, line in taken:
            if abs(x - other_x) < CLOSE_DECADES and abs(y - other_y) < CLOSE_PERCENT:
                lines_of_close.add(line)
        free = [line for line in range(MAX_LINES) if line not in lines_of_close]
        line = free[0] if free else 0
        taken.append((x, y, line))

        # Away from the frame: above points of the lower half, below those of the upper one.
        distance = 7 + 9 * line
        offset = distance if y < 50 else -distance - 5
        colour, _ = colour_and_marker(methods.index(row["method"]))
        axes.annotate(
            row["penalty"].removeprefix("keep=") or "0",
            (10**x, y),
            xytext=(5, offset),
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
        )
