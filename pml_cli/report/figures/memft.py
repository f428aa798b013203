"""The figures of `pml memft`: accuracy by rank, and the rank that recall takes, under each loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pml_cli.format import counted
from pml_cli.report.figures.methods import (
    COLOURS,
    NAMES,
    colour_and_marker,
    sft_first,
)
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import add_legend_below, page_title
from pml_cli.results.groups import ENTRY_BREAK
from pml_cli.stats import t_half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# More panels side by side would be too narrow.
MAX_COLUMNS = 3

# Legend of hollow markers.
BOUND = "hollow: a bound, some texts lie below or above all ranks tried"


@figure("memft", "accuracy by rank under each loss, a panel for each length")
def accuracy_figure(runs: pd.DataFrame, at_best_rates: bool) -> Figure:
    """Tokens predicted correctly, %, by rank: mean over texts and seeds with its 95 % interval.

    Args:
        runs: of one model and kind of data, from `paired.comparable_runs`.
        at_best_rates: whether each method is at its own best learning rate, else at the same one.
    """
    from matplotlib.figure import Figure

    lengths = sorted(runs["seqlen"].unique())
    methods = sft_first(runs["method"])
    columns = min(len(lengths), MAX_COLUMNS)
    rows = math.ceil(len(lengths) / columns)

    size = (max(7.0, 4.1 * columns), 3.4 * rows + 1.5)
    page = Figure(figsize=size, layout="constrained")
    grid = page.subplots(rows, columns, sharey=True, squeeze=False)
    panels = grid.ravel()
    for axes, length in zip(panels, lengths, strict=False):
        of_length = runs[runs["seqlen"] == length]
        _accuracy_panel(axes, of_length, methods)
        if at_best_rates:
            _write_best_rates(axes, of_length, methods)
        axes.set_title(f"{counted(int(length), 'token')} to remember", fontsize=10)
    for axes in panels[len(lengths) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("token accuracy, %")

    terms = "each at its best learning rate" if at_best_rates else "at the same learning rate"
    page_title(
        page,
        "What an adapter recalls, by its rank and the loss it was trained with\n"
        f"{_source(runs)}; {_steps(runs)}, {terms}; mean and 95 % interval over {_repeats(runs)}",
        fontsize=10,
    )
    handles, labels = panels[0].get_legend_handles_labels()
    add_legend_below(page, handles, labels, columns=2)
    return page


def _accuracy_panel(
    axes: Axes,
    runs: pd.DataFrame,
    methods: list[str],
) -> None:
    """Token accuracy by rank, a line for each method."""
    for index, method in enumerate(methods):
        colour, marker = colour_and_marker(index)
        accuracy = runs[runs["method"] == method].groupby("rank")["token_accuracy"]
        mean = 100 * accuracy.mean()
        half_width = accuracy.agg(lambda values: t_half_width(values.to_numpy(float)))
        half_width = 100 * half_width.fillna(0.0)
        ranks = mean.index.to_numpy(float)
        low = (mean - half_width).clip(0, 100)
        high = (mean + half_width).clip(0, 100)
        # The 95 % interval.
        axes.fill_between(
            ranks,
            low,
            high,
            color=colour,
            alpha=0.12,
            lw=0,
        )

        # sft is wider, so that it can be seen where another line lies on it.
        marker_size, line_width = (9.0, 4.0) if method == "sft" else (5.0, 1.5)
        axes.plot(
            ranks,
            mean,
            color=colour,
            marker=marker,
            ms=marker_size,
            lw=line_width,
            label=NAMES.get(method, method),
        )

    axes.axhline(100, color="0.6", lw=0.8, ls=":", zorder=0)
    # Ranks are mostly doubled, so they are evenly spaced here.
    axes.set_xscale("log", base=2)
    ticks = sorted(runs["rank"].unique())
    axes.set_xticks(ticks, [f"{rank:g}" for rank in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set(xlabel="rank of the adapter", ylim=(0, 104))
    axes.grid(axis="y", color="0.9", lw=0.6)


def _write_best_rates(
    axes: Axes,
    runs: pd.DataFrame,
    methods: list[str],
) -> None:
    """The best learning rate of each method, in a corner of its panel."""
    best = runs.groupby("method")["lr"].first()
    lines = ["best rate"]
    for method in methods:
        if method in best:
            lines.append(f"{method.removeprefix('memft_')} {best[method]:g}")

    axes.text(
        0.98,
        0.02,
        "\n".join(lines),
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=7,
    )


def _repeats(runs: pd.DataFrame) -> str:
    """How many texts and seeds a mean is over: 3 texts and seeds, 2 to 3 texts and seeds."""
    units = runs.groupby(["seqlen", "rank", "method"]).size()
    least = int(units.min())
    most = int(units.max())
    if least < most:
        return f"{least} to {most} texts and seeds"
    return counted(least, "text", "s and seeds")


@figure("ranks", "rank needed for exact recall by length under each loss, and relative to sft")
def rank_figure(ranks: pd.DataFrame) -> Figure:
    """The rank that exact recall takes by length under each loss, and its ratio to sft's.

    Where texts lie beyond the ranks tried, the point is a bound, and hollow.

    Args:
        ranks: `rank_thresholds.rank_table` of one model, kind of data and adapter.
    """
    from matplotlib.figure import Figure

    ranks = ranks[ranks["seqlen"].notna()]
    page = Figure(figsize=(9.5, 4.6), layout="constrained")
    rank_axes, ratio_axes = page.subplots(1, 2)
    _rank_panel(rank_axes, ranks)
    _ratio_panel(ratio_axes, ranks)

    lengths = sorted(ranks["seqlen"].unique())
    for axes in (rank_axes, ratio_axes):
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("tokens to remember")
        axes.grid(axis="y", color="0.9", lw=0.6)
        axes.title.set_fontsize(10)
    # Only now, because the scale of x adds a margin to both.
    ratio_axes.set_ylim(0, max(1.15, *ratio_axes.get_ylim()))

    texts = counted(int(ranks["texts"].max()), "text")
    page_title(
        page,
        f"The rank that verbatim recall takes: {_source(ranks)}; {texts}, 95 % intervals",
        fontsize=10,
    )
    handles, labels = rank_axes.get_legend_handles_labels()
    if (ranks["outside"] != "").any():
        handles = [*handles, _hollow_points(rank_axes, [], [], "0.35", "o")]
        labels = [*labels, BOUND]
    add_legend_below(page, handles, labels, columns=2)
    return page


def _rank_panel(axes: Axes, ranks: pd.DataFrame) -> None:
    """The rank at which half of the samples of a text are recalled, under each method."""
    methods = sft_first(ranks["method"])

    for index, method in enumerate(methods):
        of_method = ranks[ranks["method"] == method].sort_values("seqlen")
        is_bound = of_method["outside"] != ""
        ends = of_method["rank"], of_method["low"], of_method["high"]
        _interval_line(
            axes,
            of_method["seqlen"],
            ends,
            is_bound,
            index=index,
            methods=len(methods),
            label=NAMES.get(method, method),
        )

    axes.set(
        ylabel="rank", title="rank from which a text is recalled verbatim, mean", ylim=(0, None)
    )


def _ratio_panel(axes: Axes, ranks: pd.DataFrame) -> None:
    """Draw the thresholds as ratios to the rank under plain fine-tuning."""
    methods = sft_first(ranks["method"])
    outside = ranks["outside"] != ""
    # At these lengths sft's rank is a bound, and so is every ratio to it.
    bounds_of_sft = ranks.loc[outside & (ranks["method"] == "sft"), "seqlen"]

    for index, method in enumerate(methods):
        if method == "sft":
            continue
        of_method = ranks[ranks["method"] == method].sort_values("seqlen")
        is_bound = (of_method["outside"] != "") | of_method["seqlen"].isin(bounds_of_sft)
        ends = of_method["to_sft"], of_method["to_sft_low"], of_method["to_sft_high"]
        _interval_line(
            axes,
            of_method["seqlen"],
            ends,
            is_bound,
            index=index,
            methods=len(methods),
        )

    axes.axhline(1, color=COLOURS[0], lw=3)
    axes.text(
        0.98,
        1.03,
        "plain fine-tuning",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=8,
        color="0.35",
    )
    axes.set_ylabel("share of plain fine-tuning's rank")
    axes.set_title("the same, text by text, against plain fine-tuning")


def _interval_line(
    axes: Axes,
    lengths: pd.Series[int],
    ends: Sequence[pd.Series[float]],
    is_bound: pd.Series[bool],
    *,
    index: int,
    methods: int,
    label: str | None = None,
) -> None:
    """A line with 95 % intervals; bounds are hollow.

    Args:
        ends: the values, and the low and high ends of their intervals.
        index, methods: which one of how many methods it is, for its style and position.
        label: in the legend; None: not in the legend.
    """
    colour, marker = colour_and_marker(index)
    # Side by side, so that intervals do not overlap.
    shift = 0.012 * (index - methods / 2)
    x = lengths.to_numpy(float) * (1 + shift)
    value, low, high = (end.to_numpy(float) for end in ends)

    axes.errorbar(
        x,
        value,
        np.nan_to_num([value - low, high - value]),
        color=colour,
        marker=marker,
        ms=5,
        lw=1.5,
        capsize=2.5,
        label=label,
    )

    chosen = is_bound.to_numpy(bool)
    _hollow_points(axes, x[chosen], value[chosen], colour, marker)


def _hollow_points(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    colour: str,
    marker: str,
) -> Line2D:
    """Hollow markers on top of a line's own; not in the legend of the axes."""
    (points,) = axes.plot(
        x,
        y,
        ls="none",
        marker=marker,
        ms=6,
        label="_bound",
        mec=colour,
        mfc="white",
        mew=1.3,
        zorder=3,
    )
    return points


def _source(runs: pd.DataFrame) -> str:
    """Model, data, and what else the setting says of the data (without a text's hash)."""
    first = runs.iloc[0]
    # The hash of a text tells a reader nothing.
    settings = [
        setting
        for setting in ENTRY_BREAK.split(str(first["setting"]))
        if setting.startswith("data.") and not setting.startswith(("data.text=", "data.path="))
    ]
    source = f"{first['model']}, {first['data']}"
    return f"{source}, {' '.join(settings)}" if settings else source


def _steps(runs: pd.DataFrame) -> str:
    steps = np.unique(runs["steps"])
    if len(steps) == 1:
        return counted(int(steps[0]), "step")
    return f"{steps[0]} to {steps[-1]} steps (budgets differ)"
