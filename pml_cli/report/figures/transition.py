"""The phase transition of one group: a page with all panels, and some of them in a column of print.

Orange is p <= 0.5, purple above; ranks go from dark to light.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pml_cli.analysis.survival import survival
from pml_cli.analysis.trajectories import THRESHOLD
from pml_cli.analysis.transition import TransitionSummary
from pml_cli.format import counted
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    COLUMN,
    MANY_POINTS,
    MARKERS,
    ORANGE,
    PAGE,
    PURPLE,
    column_figure,
    empty_panel,
    evenly_spaced,
    page_title,
    panel_in_column,
    sequential_colours,
    shrink_texts,
    style_for_column,
)
from pml_cli.report.figures.transition_failures import (
    agreement_panel,
    position_panel,
    relative_position_panel,
)
from pml_cli.report.figures.transition_grid import grid_panel
from pml_cli.stats import LN2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pml_cli.stats import Array, Mask

# More lines of one panel cannot be distinguished.
MAX_LINES = 9

# More panels of the survival figure do not fit on half a page of print.
MAX_LENGTHS = 4


@figure("transition", "all panels of a group on one page")
def page_figure(group: TransitionSummary) -> Figure:
    """All panels of a group."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09)
    page = Figure(figsize=(13, 12.5), layout=layout)
    page_title(page, group.name, fontsize=13, fontweight="bold")
    height_ratios = [1.05, 0.95, 1]
    rows: Any = page.subfigures(3, 1, height_ratios=height_ratios)

    top = rows[0].subplots(1, 3)
    recall_panel(top[0], group)
    loss_panel(top[1], group)
    survival_panel(top[2], group.crossings)
    top[2].set_title("How long tokens stay stubborn")

    middle = rows[1].subplots()
    if group.grids:
        grid_panel(middle, group.grids[0])
    else:
        empty_panel(middle, "no run of this text")

    bottom = rows[2].subplots(1, 3)
    agreement_panel(bottom[0], group)
    position_panel(bottom[1], group)
    relative_position_panel(bottom[2], group)

    # The titles are sentences, too long for the default size.
    for axes in [*top, middle, *bottom]:
        axes.title.set_fontsize(10)
    return page


@figure("transition-recall", "share of tokens recalled by their final p")
def recall_figure(group: TransitionSummary) -> Figure:
    """The panel of recall by p, for a column of print."""
    return panel_in_column(recall_panel, group)


def recall_panel(axes: Axes, group: TransitionSummary) -> None:
    """Share of tokens decoded correctly in each bin of p, with intervals, and the line at 0.5."""
    table = group.recall_by_p[group.recall_by_p["tokens"] > 0]
    is_above = table["low_p"].to_numpy(float) >= THRESHOLD

    axes.axvspan(THRESHOLD, 1, color=PURPLE, alpha=0.07, lw=0)
    axes.axvline(THRESHOLD, color="black", lw=1, ls="--")
    _recall_points(axes, table[~is_above], label="p <= 0.5", color=ORANGE, marker="o")
    _recall_points(axes, table[is_above], label="p > 0.5", color=PURPLE, marker="s")

    # Beyond 0 and 100 % there is room for half a marker.
    axes.set(xlim=(0, 1), ylim=(-4, 104))
    axes.set(xlabel="p of the target token", ylabel="decoded (argmax is the target), %")
    axes.legend(
        loc="lower right",
        fontsize=7.5,
        frameon=False,
        handlelength=1,
        handletextpad=0.3,
    )
    axes.set_title(_violations_title(int(group.cells["violations"].sum())))


def _recall_points(
    axes: Axes,
    table: pd.DataFrame,
    label: str,
    color: str,
    marker: str,
) -> None:
    """The share of tokens decoded correctly in some bins of p, with 95 % intervals."""
    middle = (table["low_p"] + table["high_p"]).to_numpy(float) / 2
    share = 100 * table["share"].to_numpy(float)
    below = share - 100 * table["low"].to_numpy(float)
    above = 100 * table["high"].to_numpy(float) - share
    tokens = int(table["tokens"].sum())

    axes.errorbar(
        middle,
        share,
        yerr=np.stack([below, above]).clip(0),
        fmt=marker,
        color=color,
        ms=4,
        capsize=2,
        lw=1,
        label=f"{label}: {counted(int(tokens), 'token', spec=',')}",
    )


def _violations_title(violations: int) -> str:
    if not violations:
        return "No token above p = 0.5 is decoded wrongly"
    subject = counted(violations, "token", spec=",")
    verb = "is" if violations == 1 else "are"
    return f"{subject} above p = 0.5 {verb} decoded wrongly"


@figure("transition-loss", "recall of each cell by its final loss")
def loss_figure(group: TransitionSummary) -> Figure:
    """The panel of recall against the final loss, for a column of print."""
    return panel_in_column(loss_panel, group)


def loss_panel(axes: Axes, group: TransitionSummary) -> None:
    """Token accuracy against the final mean loss of each cell, verbatim ones distinguished."""
    measures = group.cells[["final_loss", "token_accuracy", "exact_match"]]
    numbers = measures.apply(pd.to_numeric, errors="coerce").astype(float)
    loss = numbers["final_loss"].to_numpy()
    accuracy = 100 * numbers["token_accuracy"].to_numpy()
    verbatim = (numbers["exact_match"] == 1).to_numpy()

    # A token with this loss has p = 0.5.
    axes.axvline(LN2, color="black", lw=1, ls="--")
    rasterized = len(loss) > MANY_POINTS

    def plot(
        chosen: Mask,
        label: str,
        color: str,
        marker: str,
        fill: str,
    ) -> None:
        axes.plot(
            loss[chosen],
            accuracy[chosen],
            marker,
            color=color,
            mfc=fill,
            ms=3.5,
            mew=0.8,
            ls="none",
            label=f"{label}: {chosen.sum()}",
            rasterized=rasterized,
        )

    plot(~verbatim, "with a wrong token", color=ORANGE, marker="o", fill="none")
    plot(verbatim, "recalled verbatim", color=PURPLE, marker="s", fill=PURPLE)

    axes.text(LN2, 50, " ln 2", ha="left", va="center", fontsize=8)
    axes.set(xlabel="final mean loss, nats per token", ylabel="token accuracy, %")
    axes.set(ylim=(-4, 104), xlim=(0, None))
    axes.legend(loc="lower left", fontsize=8, framealpha=0.95, edgecolor="none")

    low = group.loss_against_recall["low_loss_not_verbatim"]
    high = group.loss_against_recall["high_loss_verbatim"]
    axes.set_title(
        f"Loss below ln 2: {low.successes} of {counted(low.trials, 'cell')} are not verbatim;\n"
        f"above it: {high.successes} of {high.trials} are"
    )


@figure(
    "transition-survival",
    "share of tokens not yet above p = 0.5 for good, by training step and rank",
)
def survival_figure(group: TransitionSummary) -> Figure:
    """Kaplan-Meier curves by rank, a panel for each of up to MAX_LENGTHS lengths."""
    all_lengths = np.unique(group.crossings["target_tokens"].to_numpy())
    lengths = evenly_spaced(all_lengths, MAX_LENGTHS).tolist()
    rows = math.ceil(len(lengths) / 2)
    columns = min(2, len(lengths))

    page = column_figure(PAGE if columns > 1 else COLUMN, 2.6 * rows)
    grid = page.subplots(rows, columns, squeeze=False)
    panels = grid.ravel().tolist()
    for axes, length in zip(panels, lengths, strict=False):
        survival_panel(axes, group.crossings[group.crossings["target_tokens"] == length])
        axes.set_title(counted(int(length), "token"))
        style_for_column(axes)
        shrink_texts(axes)
    for axes in panels[len(lengths) :]:
        axes.set_visible(False)
    return page


def survival_panel(axes: Axes, crossings: pd.DataFrame) -> None:
    """The share of tokens still stubborn after each step, a line for each rank.

    Args:
        crossings: see `survival`, with rank.
    """
    all_ranks = np.unique(crossings["rank"].to_numpy())
    ranks = evenly_spaced(all_ranks, MAX_LINES).tolist()
    colours = sequential_colours(len(ranks))
    for k, rank in enumerate(ranks):
        curve = survival(crossings[crossings["rank"] == rank])
        step, stubborn = _curve_points(curve)
        # Markers of different lines at different steps, so that lines that coincide can be seen.
        every = max(1, len(step) // 6)
        axes.step(
            step,
            stubborn,
            where="post",
            color=colours[k],
            lw=1.4,
            marker=MARKERS[k % len(MARKERS)],
            ms=3.5,
            markevery=(k % every, every),
            label=f"{rank:g}",
        )

    axes.set(xlabel="training step (as logged)", ylabel="not above p = 0.5 for good, %")
    axes.set(ylim=(-3, 103))
    axes.set_xlim(left=0)
    # Beside the panel: the curves may pass anywhere inside.
    axes.legend(
        title="rank",
        fontsize=7,
        title_fontsize=8,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )


def _curve_points(curve: pd.DataFrame) -> tuple[Array, Array]:
    """Step and per cent stubborn, from step 0, where all tokens are stubborn."""
    step = curve["step"].to_numpy(float)
    stubborn = 100 * curve["stubborn"].to_numpy(float)
    return np.insert(step, 0, 0.0), np.insert(stubborn, 0, 100.0)
