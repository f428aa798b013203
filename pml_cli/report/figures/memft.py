"""The figure of `pml memft`: accuracy against rank under each loss, a panel a length.

Colours are Okabe and Ito's, told apart without colour vision; each method has a marker of its own besides.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pml_cli.report.figures.registry import figure
from pml_cli.stats import t_half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

STYLES = [
    ("#9A9A9A", "o"),
    ("#0072B2", "s"),
    ("#E69F00", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#D55E00", "P"),
    ("#56B4E9", "X"),
]
NAMES = {
    "sft": "plain fine-tuning (sft)",
    "memft_ot": "MemFT, threshold (memft_ot)",
    "memft_sw": "MemFT, window (memft_sw)",
}
NAMES |= {"memft_margin": "margin, then hinge (memft_margin)"}
MOST_COLUMNS = 3
BOUND = "hollow: a bound, some texts lie below or above all ranks tried"


@figure("memft", "accuracy by rank under each loss, a panel for each length")
def accuracy_figure(runs: pd.DataFrame, rates: bool) -> Figure:
    """Tokens predicted right, in per cent, against rank: mean over texts and seeds with its 95 % interval.

    Args:
        runs: of one model and kind of data, with `method`; token_accuracy in 0..1.
        rates: whether each method is at its own best learning rate, else at the same one.
    """
    from matplotlib.figure import Figure

    lengths, found = (
        sorted(runs["seqlen"].unique()),
        sorted(runs["method"].unique(), key=lambda m: (m != "sft", m)),
    )
    columns = min(len(lengths), MOST_COLUMNS)
    rows = math.ceil(len(lengths) / columns)
    figure = Figure(figsize=(max(7.0, 4.1 * columns), 3.4 * rows + 1.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, length in zip(panels, lengths, strict=False):
        _panel(axes, runs[runs["seqlen"] == length], found, rates)
        axes.set_title(f"{length} tokens to remember", fontsize=10)
    for axes in panels[len(lengths) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("tokens predicted right, %")
    units = runs.groupby(["seqlen", "rank", "method"]).size()
    repeats = f"{units.min()}" if units.min() == units.max() else f"{units.min()} to {units.max()}"
    terms = "each at its best learning rate" if rates else "at the same learning rate"
    figure.suptitle(
        f"What an adapter recalls, by its rank and the loss it was trained with\n"
        f"{_source(runs)}; {_steps(runs)}, {terms}; "
        f"mean and 95 % interval over {repeats} text{'s and seeds' if repeats != '1' else ''}",
        fontsize=10,
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _panel(axes: Axes, runs: pd.DataFrame, found: list[str], rates: bool) -> None:
    for i, method in enumerate(found):
        colour, marker = STYLES[i % len(STYLES)]
        group = runs[runs["method"] == method]
        grouped = group.groupby("rank")["token_accuracy"]
        mean = 100 * grouped.mean()
        half = 100 * grouped.agg(lambda values: t_half_width(values.to_numpy(float))).fillna(0.0)
        ranks = mean.index.to_numpy(float)
        axes.fill_between(
            ranks,
            (mean - half).clip(0, 100),
            (mean + half).clip(0, 100),
            color=colour,
            alpha=0.12,
            lw=0,
        )
        under = method == "sft"  # wider, so that it shows where another line lies on it
        size, width = (9.0, 4.0) if under else (5.0, 1.5)
        axes.plot(
            ranks,
            mean,
            color=colour,
            marker=marker,
            ms=size,
            lw=width,
            label=NAMES.get(method, method),
        )
    axes.axhline(100, color="0.6", lw=0.8, ls=":", zorder=0)
    axes.set_xscale("log", base=2)
    ticks = sorted(runs["rank"].unique())
    axes.set_xticks(ticks, [f"{rank:g}" for rank in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set(xlabel="rank of the adapter", ylim=(0, 104))
    axes.grid(axis="y", color="0.9", lw=0.6)
    if rates:
        chosen = runs.groupby("method")["lr"].first()
        words = [
            f"{method.removeprefix('memft_')} {chosen[method]:g}"
            for method in found
            if method in chosen
        ]
        axes.text(
            0.98,
            0.02,
            "best rate\n" + "\n".join(words),
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            fontsize=7,
        )


@figure("ranks", "rank needed for exact recall by length under each loss, and relative to sft")
def rank_figure(ranks: pd.DataFrame) -> Figure:
    """The rank that exact recall takes against length under each loss, and its share of plain fine-tuning's.

    What holds texts beyond the ranks tried is a bound and hollow.

    Args:
        ranks: `thresholds.rank_table` of one model, kind of data and adapter.
    """
    from matplotlib.figure import Figure

    ranks = ranks[ranks["seqlen"].notna()]
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _rank_lines(left, right, ranks)
    right.axhline(1, color=STYLES[0][0], lw=3)
    right.text(
        0.98,
        1.03,
        "plain fine-tuning",
        transform=right.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=8,
        color="0.35",
    )
    lengths = sorted(ranks["seqlen"].unique())
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("tokens to remember")
        axes.grid(axis="y", color="0.9", lw=0.6)
    left.set(ylabel="rank", title="rank from which a text is recalled whole, mean", ylim=(0, None))
    right.set(
        ylabel="share of plain fine-tuning's rank",
        title="the same, text by text, against plain fine-tuning",
    )
    right.set_ylim(0, max(1.15, *right.get_ylim()))
    for axes in (left, right):
        axes.title.set_fontsize(10)
    figure.suptitle(
        f"The rank that verbatim recall takes: {_source(ranks)}; {ranks['texts'].max()} texts, 95 % intervals",
        fontsize=10,
    )
    handles, labels = left.get_legend_handles_labels()
    if (ranks["outside"] != "").any():
        handles, labels = [*handles, _hollow(left, [], [], "0.35", "o")], [*labels, BOUND]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _rank_lines(left: Axes, right: Axes, ranks: pd.DataFrame) -> None:
    found = sorted(ranks["method"].unique(), key=lambda m: (m != "sft", m))
    beyond = ranks["outside"] != ""
    plain = ranks.loc[
        beyond & (ranks["method"] == "sft"), "seqlen"
    ]  # lengths at which every share is one of a bound
    for i, method in enumerate(found):
        colour, marker = STYLES[i % len(STYLES)]
        own = ranks[ranks["method"] == method].sort_values("seqlen")
        for axes, name, ends in ((left, "rank", ""), (right, "to_sft", "to_sft_")):
            if axes is right and method == "sft":
                continue
            x, y = (
                own["seqlen"].to_numpy(float) * (1 + 0.012 * (i - len(found) / 2)),
                own[name].to_numpy(float),
            )
            reach = np.nan_to_num([y - own[f"{ends}low"], own[f"{ends}high"] - y])
            label = NAMES.get(method, method) if axes is left else None
            axes.errorbar(
                x, y, reach, color=colour, marker=marker, ms=5, lw=1.5, capsize=2.5, label=label
            )
            bound = beyond[own.index] | (own["seqlen"].isin(plain) if axes is right else False)
            _hollow(axes, x[bound], y[bound], colour, marker)


def _hollow(axes: Axes, x: ArrayLike, y: ArrayLike, colour: str, marker: str) -> Line2D:
    style: dict[str, Any] = {"mec": colour, "mfc": "white", "mew": 1.3, "zorder": 3}
    (points,) = axes.plot(x, y, ls="none", marker=marker, ms=6, label="_bound", **style)
    return points


def _source(runs: pd.DataFrame) -> str:
    """Model, data and what else the setting says of the data (a text's hash left out)."""
    first = runs.iloc[0]
    words = " ".join(
        word
        for word in str(first["setting"]).split()
        if word.startswith("data.") and not word.startswith(("data.text=", "data.path="))
    )
    return f"{first['model']}, {first['data']}{', ' + words if words else ''}"


def _steps(runs: pd.DataFrame) -> str:
    steps = np.unique(runs["steps"])
    return (
        f"{steps[0]} steps"
        if len(steps) == 1
        else f"{steps[0]} to {steps[-1]} steps (budgets differ)"
    )
