"""Where recall breaks: first failures against stubborn tokens, and where in the text they lie."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pml_cli.analysis.transition import TransitionSummary
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    GREY,
    MANY_POINTS,
    ORANGE,
    PAGE,
    column_figure,
    empty_panel,
    evenly_spaced,
    panel_in_column,
    sequential_colours,
    style_for_column,
    tick_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More ranks do not fit beside the panel.
MAX_RANKS = 9

# More bars of a histogram would be thinner than a pixel.
MAX_BARS = 260

# Candidates for ticks of a logarithmic axis of positions.
TICKS = [digit * 10**power for power in range(5) for digit in (1, 2, 5)]


@figure("transition-failures", "first failure and earliest stubborn token of each sequence")
def agreement_figure(group: TransitionSummary) -> Figure:
    """The first failure against the earliest stubborn token, for a column of print."""
    return panel_in_column(agreement_panel, group)


def agreement_panel(axes: Axes, group: TransitionSummary) -> None:
    """First failure against earliest stubborn position, coloured by rank.

    No point can lie below the diagonal.
    """
    sequences = group.sequences.dropna(subset=["earliest_stubborn", "first_failure"])
    if sequences.empty:
        empty_panel(axes, "no sequence has a stubborn token and a failure")
        return

    axes.axline(
        (0, 0),
        slope=1,
        color=GREY,
        lw=1,
        ls="--",
        zorder=1,
    )
    _scatter(axes, sequences)

    # Positions count from 1 here, for the logarithmic axes.
    last = sequences[["earliest_stubborn", "first_failure"]].max().max() + 1
    end = 1.25 * float(last)
    axes.set(xscale="log", yscale="log")
    axes.set(xlim=(0.8, end), ylim=(0.8, end))
    ticks = [tick for tick in TICKS if tick <= end]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels=[tick_label(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set_xlabel("earliest stubborn token (the first is 1)")
    axes.set_ylabel("first failure (larger points: more runs)")
    axes.set_title(_agreement_title(group))


def _scatter(axes: Axes, sequences: pd.DataFrame) -> None:
    """One point for equal sequences of a rank, larger for more of them, and the ranks' legend."""
    columns = ["rank", "earliest_stubborn", "first_failure"]
    points = sequences.groupby(columns, as_index=False).size()
    ranks = np.unique(points["rank"].to_numpy())
    colour_list = sequential_colours(len(ranks))
    colours = dict(zip(ranks.tolist(), colour_list, strict=True))

    # The area of a point grows with the logarithm of its number of runs.
    axes.scatter(
        points["earliest_stubborn"] + 1,
        points["first_failure"] + 1,
        s=12 + 14 * np.log2(points["size"].to_numpy(float)),
        c=[colours[rank] for rank in points["rank"].tolist()],
        alpha=0.75,
        edgecolors="black",
        linewidths=0.4,
        zorder=2,
        rasterized=len(points) > MANY_POINTS,
    )
    for rank in evenly_spaced(ranks, MAX_RANKS).tolist():
        # No points: for the legend alone.
        axes.plot(
            [],
            [],
            "o",
            color=colours[rank],
            mec="black",
            mew=0.4,
            ms=5,
            label=f"{rank:g}",
        )
    axes.legend(
        title="rank",
        fontsize=7,
        title_fontsize=8,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )


def _agreement_title(group: TransitionSummary) -> str:
    agreement = group.agreement
    both = agreement.both
    title = f"{agreement.same} of {both.n} fail at their first stubborn token"
    if math.isnan(both.rho):
        return title

    title += f"\nrho {both.rho:.2f}"
    if not math.isnan(both.low):
        interval = f"95 % {both.low:.2f} to {both.high:.2f}"
        title += f" ({interval}; by chance {agreement.chance:.2f})"
    return title


@figure("transition-gathering", "where in the text first failures lie")
def concentration_figure(group: TransitionSummary) -> Figure:
    """First failures of one text by position, and of all texts by relative position."""
    page = column_figure(PAGE, 2.6)
    position_axes, relative_axes = page.subplots(1, 2)
    position_panel(position_axes, group)
    relative_position_panel(relative_axes, group)
    style_for_column(position_axes)
    style_for_column(relative_axes)
    return page


def position_panel(axes: Axes, group: TransitionSummary) -> None:
    """Histogram of the first failures of one text, over all ranks, lengths and seeds."""
    texts = group.concentration.texts
    if texts.empty:
        empty_panel(axes, "too few first failures of one text")
        return

    # The one with the most failures.
    text = texts.head(1).to_dict("records")[0]
    positions = _first_failures(group.sequences, text)
    tokens = positions.max() + 1
    width = max(1, math.ceil(tokens / MAX_BARS))
    counts = np.bincount(positions // width)
    first_token = np.arange(len(counts)) * width
    centres = first_token + (width - 1) / 2
    bars = axes.bar(centres, counts, 0.85 * width, color=GREY)
    bars[text["position"] // width].set_facecolor(ORANGE)

    bar_width = f" (bars of {width})" if width > 1 else ""
    axes.set_xlabel(f"position of the first failure, tokens{bar_width}")
    axes.set_ylabel("runs")
    several_samples = group.sequences["sample"].nunique() > 1
    sample = f", sample {text['sample']}" if several_samples else ""
    axes.set_title(
        f"{text['count']} of {text['failures']} first failures of text {text['data_seed']:g}"
        f"{sample} are at\nposition {text['position']} ({100 * text['share']:.0f} %; by chance "
        f"{100 * text['chance']:.0f} %)"
    )


def _first_failures(sequences: pd.DataFrame, text: dict[Any, Any]) -> Any:
    """Positions of the first failures of one text and sample, (N,) of int."""
    failed = sequences.dropna(subset=["first_failure"])
    # Data without seeds is a single text.
    no_seed = failed["data_seed"].isna()
    of_text = no_seed | (failed["data_seed"] == text["data_seed"])
    of_sample = failed["sample"] == text["sample"]
    return failed[of_text & of_sample]["first_failure"].to_numpy(int)


def relative_position_panel(axes: Axes, group: TransitionSummary) -> None:
    """Histogram of the first failures of all texts, as a share of the length."""
    failed = group.sequences.dropna(subset=["first_failure"])
    if failed.empty:
        empty_panel(axes, "no first failure: everything is recalled")
        return

    position = failed["first_failure"].to_numpy(float)
    relative = 100 * position / failed["length"].to_numpy(float)
    # Twenty bars of 5 %, drawn at their middle.
    counts, edges = np.histogram(relative, bins=20, range=(0, 100))
    centres = edges[:-1] + 2.5
    shares = 100 * counts / len(relative)
    axes.bar(centres, shares, 4.3, color=GREY)
    axes.set(xlabel="first failure, % of the length", ylabel="% of the failing sequences")
    axes.set(xlim=(0, 100))

    early = 100 * float((relative < 10).mean())
    axes.set_title(
        f"{early:.0f} % of {len(relative)} first failures lie\nin the first tenth of the text"
    )
