"""The phase transition in pictures: one page a group, and each panel as wide as a column of print.

Orange is p of one half or less, purple above, as in the picture of a probe; ranks go from dark to light. In the stubborn
grid dark is stubborn: its lightness rises with p and jumps at 0.5, so that it reads in grey and without colour vision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pml_cli.analysis.survival import survival
from pml_cli.analysis.transition import Grid, Phases
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    COLUMN,
    GREY,
    MANY_POINTS,
    MARKERS,
    ORANGE,
    PAGE,
    PURPLE,
    column_figure,
    empty_panel,
    sequential_colours,
    style_for_column,
    tick_label,
)
from pml_cli.stats import LN2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

LINES = 9  # ranks of one panel; more cannot be told apart
PANELS = 4  # lengths of the survival figure
WIDEST = 1000  # columns of a grid that can be seen; beyond, the least p of neighbours
BARS = 260  # of a histogram of positions
DARK, LIGHT = ("#3d1c00", "#d98a3d"), ("#c9c3e6", "#ffffff")


@figure("transition", "all panels of a group on one page")
def page_figure(group: Phases) -> Figure:
    """All panels of a group."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(13, 12.5), layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09))
    figure.suptitle(group.name, fontsize=13, fontweight="bold")
    rows: Any = figure.subfigures(3, 1, height_ratios=[1.05, 0.95, 1])
    recall, loss, wait = rows[0].subplots(1, 3)
    recall_panel(recall, group)
    loss_panel(loss, group)
    survival_panel(wait, group)
    axes = rows[1].subplots()
    if group.grids:
        grid_panel(axes, group.grids[0])
    else:
        empty_panel(axes, "no run of this text")
    agreement, place, share = rows[2].subplots(1, 3)
    failure_panel(agreement, group)
    position_panel(place, group)
    relative_panel(share, group)
    for one in (recall, loss, wait, axes, agreement, place, share):
        one.title.set_fontsize(10)
    return figure


def _column(panel: Callable[[Axes, Phases], None], group: Phases, height: float = 3.0) -> Figure:
    figure = column_figure(COLUMN, height)
    axes = figure.subplots()
    panel(axes, group)
    style_for_column(axes)
    _shrink(axes)
    return figure


def _shrink(axes: Axes) -> None:
    legend = axes.get_legend()
    if legend is not None:
        for text in [*legend.get_texts(), legend.get_title()]:
            text.set_fontsize(6)
    for text in axes.texts:
        text.set_fontsize(6.5)


def recall_panel(axes: Axes, group: Phases) -> None:
    """Share decoded rightly in each bin of p, with intervals, and the exact line at 0.5."""
    table = group.recall[group.recall["tokens"] > 0]
    middle = (table["low_p"] + table["high_p"]).to_numpy(float) / 2
    share, low, high = (100 * table[name].to_numpy(float) for name in ("share", "low", "high"))
    above = table["low_p"].to_numpy(float) >= 0.5
    axes.axvspan(0.5, 1, color=PURPLE, alpha=0.07, lw=0)
    axes.axvline(0.5, color="black", lw=1, ls="--")
    for side, colour, marker, words in (
        (~above, ORANGE, "o", "p <= 0.5"),
        (above, PURPLE, "s", "p > 0.5"),
    ):
        count = int(table["tokens"].to_numpy(np.int64)[side].sum())
        spread = np.stack([share - low, high - share])[:, side].clip(0)
        axes.errorbar(
            middle[side], share[side], yerr=spread, fmt=marker, color=colour, ms=4, capsize=2, lw=1,
            label=f"{words}: {count:,} tokens",
        )  # fmt: skip
    axes.set(
        xlim=(0, 1),
        ylim=(-4, 104),
        xlabel="p of the target token",
        ylabel="decoded (argmax is the target), %",
    )
    axes.legend(loc="lower right", fontsize=7.5, frameon=False, handlelength=1, handletextpad=0.3)
    bad = int(group.cells["violations"].sum())
    wrong = (
        f"{bad:,} tokens above p = 0.5 are decoded wrongly"
        if bad
        else "No token above p = 0.5 is decoded wrongly"
    )
    axes.set_title(wrong)


def loss_panel(axes: Axes, group: Phases) -> None:
    """Token accuracy against the final mean loss of each cell; those recalled whole apart."""
    cells = group.cells
    names = ("final_loss", "token_accuracy", "exact_match")
    loss, accuracy, exact = (
        pd.to_numeric(cells[name], errors="coerce").to_numpy(float) for name in names
    )
    whole = exact == 1
    axes.axvline(LN2, color="black", lw=1, ls="--")
    many = len(cells) > MANY_POINTS
    for chosen, colour, marker, face, words in (
        (~whole, ORANGE, "o", "none", "with a wrong token"),
        (whole, PURPLE, "s", PURPLE, "recalled whole"),
    ):
        axes.plot(
            loss[chosen], 100 * accuracy[chosen], marker, color=colour, mfc=face, ms=3.5, mew=0.8, ls="none",
            label=f"{words}: {chosen.sum()}", rasterized=many,
        )  # fmt: skip
    low, high = group.misled["low_loss_not_verbatim"], group.misled["high_loss_verbatim"]
    axes.text(LN2, 50, " ln 2", ha="left", va="center", fontsize=8)
    axes.set(
        xlabel="final mean loss, nats per token",
        ylabel="tokens decoded rightly, %",
        ylim=(-4, 104),
        xlim=(0, None),
    )
    axes.legend(loc="lower left", fontsize=8, framealpha=0.95, edgecolor="none")
    axes.set_title(
        f"Loss below ln 2: {low.successes} of {low.trials} cells are not verbatim;\nabove it: {high.successes} of {high.trials} are"
    )


def survival_panel(axes: Axes, group: Phases) -> None:
    """The tokens that are still stubborn after each step, a line a rank, all lengths together."""
    _survival(axes, group.crossings)
    axes.set_title("How long tokens stay stubborn")


def _survival(axes: Axes, crossings: pd.DataFrame) -> None:
    ranks = np.unique(crossings["rank"].to_numpy())
    shown = ranks[
        np.unique(np.linspace(0, len(ranks) - 1, min(LINES, len(ranks))).round().astype(int))
    ]
    for k, (rank, colour) in enumerate(
        zip(shown.tolist(), sequential_colours(len(shown)), strict=True)
    ):
        curve = survival(crossings[crossings["rank"] == rank])
        x = np.concatenate([[0.0], curve["step"].to_numpy(float)])
        y = 100 * np.concatenate([[1.0], curve["stubborn"].to_numpy(float)])
        every = max(1, len(x) // 6)
        axes.step(
            x, y, where="post", color=colour, lw=1.4, marker=MARKERS[k % len(MARKERS)], ms=3.5, markevery=(k % every, every),
            label=f"{rank:g}",
        )  # fmt: skip
    axes.set(
        xlabel="training step (as logged)", ylabel="not above p = 0.5 for good, %", ylim=(-3, 103)
    )
    axes.set_xlim(left=0)
    axes.legend(
        title="rank",
        fontsize=7,
        title_fontsize=8,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )


def grid_panel(axes: Axes, grid: Grid, size: float = 9) -> None:
    """Final p by position and rank; triangles mark the first failure of each rank."""
    from matplotlib.ticker import MaxNLocator

    figure = axes.get_figure()
    assert figure is not None
    p_RS, together = _thinned(grid.p_RS)
    image = axes.imshow(
        p_RS,
        aspect="auto",
        origin="lower",
        cmap=stubborn_map(),
        vmin=0,
        vmax=1,
        interpolation="none",
    )
    step = math.ceil(len(grid.ranks) / 16)
    axes.set_yticks(range(0, len(grid.ranks), step), [f"{rank:g}" for rank in grid.ranks[::step]])
    axes.set_yticks(np.arange(len(grid.ranks) - 1) + 0.5, minor=True)
    axes.grid(which="minor", axis="y", color="0.5", lw=0.5)
    axes.tick_params(which="minor", length=0)
    wrong = ~grid.correct_RS
    failing = np.flatnonzero(wrong.any(axis=1))
    first = wrong.argmax(axis=1)[failing]
    if grid.samples == 1:
        (marks,) = axes.plot(
            first / together, failing, ">", color="white", mec="black", mew=0.8, ms=0.75 * size, ls="none",
            clip_on=False, zorder=5,
        )  # fmt: skip
        marks.set_in_layout(False)  # what is not clipped takes room otherwise
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick * together:.0f}")
    axes.set_xlim(-0.5, p_RS.shape[1] - 0.5)
    axes.set(xlabel="position in the target, tokens" if grid.samples == 1 else "target tokens, samples side by side",
             ylabel="rank of the adapter")  # fmt: skip
    bar = figure.colorbar(image, ax=axes, pad=0.01, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.set_label("final p" + (f" (least of {together})" if together > 1 else ""), fontsize=size)
    bar.ax.tick_params(labelsize=size)
    axes.set_title(_grid_title(grid, bool(len(failing)) and grid.samples == 1))


def _grid_title(grid: Grid, marked: bool) -> str:
    named = "" if pd.isna(grid.text) else f" of text {grid.text:g}"
    seed = "" if pd.isna(grid.seed) else f", seed {grid.seed:g}"
    marks = "; triangles: first failure" if marked else ""
    return f"Stubborn tokens (dark){named}: {grid.length} tokens{seed}{marks}"


def stubborn_map() -> Colormap:
    """Dark orange to light orange up to p = 0.5, pale purple to white above: lightness rises throughout and jumps at 0.5."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    halves = [
        LinearSegmentedColormap.from_list("half", ends)(np.linspace(0, 1, 128))
        for ends in (DARK, LIGHT)
    ]
    return ListedColormap(np.concatenate(halves).tolist())


def _thinned(p_RS: Any) -> tuple[Any, int]:
    """p with the least of neighbours where there are more tokens than can be seen, and how many together."""
    together = math.ceil(p_RS.shape[1] / WIDEST)
    padded = np.pad(p_RS, ((0, 0), (0, -p_RS.shape[1] % together)), mode="edge")
    return padded.reshape(len(p_RS), -1, together).min(axis=2), together


def failure_panel(axes: Axes, group: Phases) -> None:
    """Earliest stubborn position against first failure, coloured by rank; none can lie below the diagonal."""
    table = group.sequences.dropna(subset=["earliest_stubborn", "first_failure"])
    found = group.agreement.both
    if table.empty:
        empty_panel(axes, "no sequence has a stubborn token and a failure")
        return
    points = table.groupby(["rank", "earliest_stubborn", "first_failure"], as_index=False).size()
    ranks = np.unique(points["rank"].to_numpy())
    colours = dict(zip(ranks.tolist(), sequential_colours(len(ranks)), strict=True))
    size = 12 + 14 * np.log2(points["size"].to_numpy(float))
    axes.axline((0, 0), slope=1, color=GREY, lw=1, ls="--", zorder=1)
    axes.scatter(
        points["earliest_stubborn"] + 1, points["first_failure"] + 1, s=size,
        c=[colours[r] for r in points["rank"].tolist()], alpha=0.75, edgecolors="black", linewidths=0.4, zorder=2,
        rasterized=len(points) > MANY_POINTS,
    )  # fmt: skip
    shown = ranks[
        np.unique(np.linspace(0, len(ranks) - 1, min(LINES, len(ranks))).round().astype(int))
    ]
    for rank in shown.tolist():
        axes.plot([], [], "o", color=colours[rank], mec="black", mew=0.4, ms=5, label=f"{rank:g}")
    end = 1.25 * float(table[["earliest_stubborn", "first_failure"]].max().max() + 1)
    axes.set(xscale="log", yscale="log", xlim=(0.8, end), ylim=(0.8, end))
    for axis in (axes.xaxis, axes.yaxis):
        ticks = [
            tick
            for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
            if tick <= end
        ]
        axis.set_ticks(ticks, labels=[tick_label(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set(
        xlabel="earliest stubborn token (the first is 1)",
        ylabel="first failure (larger points: more runs)",
    )
    axes.legend(
        title="rank",
        fontsize=7,
        title_fontsize=8,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )
    told = "" if math.isnan(found.rho) else f"rho {found.rho:.2f}"
    if not math.isnan(found.low):
        told += (
            f" (95 % {found.low:.2f} to {found.high:.2f}; by chance {group.agreement.chance:.2f})"
        )
    same = f"{group.agreement.same} of {found.n} fail at their first stubborn token"
    axes.set_title("\n".join(word for word in (same, told) if word))


def position_panel(axes: Axes, group: Phases) -> None:
    """Where the first failures of one text lie, over all ranks, lengths and seeds."""
    texts = group.gathering.texts
    table = group.sequences.dropna(subset=["first_failure"])
    if texts.empty:
        empty_panel(axes, "too few first failures of one text")
        return
    top = texts.head(1).to_dict("records")[0]
    mine = table[
        (table["data_seed"].isna() | (table["data_seed"] == top["data_seed"]))
        & (table["sample"] == top["sample"])
    ]
    place = mine["first_failure"].to_numpy(int)
    width = max(1, math.ceil((place.max() + 1) / BARS))
    counts = np.bincount(place // width)
    colours = [ORANGE if k == top["position"] // width else GREY for k in range(len(counts))]
    axes.bar(np.arange(len(counts)) * width + (width - 1) / 2, counts, 0.85 * width, color=colours)
    sample = f", sample {top['sample']}" if group.sequences["sample"].nunique() > 1 else ""
    axes.set(
        xlabel="position of the first failure, tokens"
        + (f" (bars of {width})" if width > 1 else ""),
        ylabel="runs",
    )
    axes.set_title(
        f"{top['count']} of {top['failures']} first failures of text {top['data_seed']:g}{sample} are at\n"
        f"position {top['position']} ({100 * top['share']:.0f} %; by chance {100 * top['chance']:.0f} %)"
    )


def relative_panel(axes: Axes, group: Phases) -> None:
    """Where first failures lie as a share of the length, over all texts."""
    table = group.sequences.dropna(subset=["first_failure"])
    if table.empty:
        empty_panel(axes, "no first failure: everything is recalled")
        return
    share = 100 * table["first_failure"].to_numpy(float) / table["length"].to_numpy(float)
    counts, edges = np.histogram(share, bins=20, range=(0, 100))
    axes.bar(edges[:-1] + 2.5, 100 * counts / len(share), 4.3, color=GREY)
    axes.set(
        xlabel="first failure, % of the length", ylabel="% of the failing sequences", xlim=(0, 100)
    )
    half = 100 * float((share < 10).mean())
    axes.set_title(
        f"{half:.0f} % of {len(share)} first failures lie\nin the first tenth of the text"
    )


@figure("transition-grid", "stubborn tokens of one text by rank, at several lengths")
def grid_figure(group: Phases) -> Figure | None:
    """The stubborn grids of one text at several lengths."""
    if not group.grids:
        return None
    figure = column_figure(PAGE, 2.1 * len(group.grids) + 0.2)
    panels = np.atleast_1d(np.asarray(figure.subplots(len(group.grids), 1)))
    for axes, grid in zip(
        panels.tolist(), sorted(group.grids, key=lambda grid: grid.length), strict=True
    ):
        grid_panel(axes, grid, size=6.5)
        style_for_column(axes)
    return figure


@figure(
    "transition-survival",
    "share of tokens not yet above p = 0.5 for good, by training step and rank",
)
def survival_figure(group: Phases) -> Figure:
    """The wait by rank at several lengths."""
    lengths = np.unique(group.crossings["target_tokens"].to_numpy())
    shown = lengths[
        np.unique(np.linspace(0, len(lengths) - 1, min(PANELS, len(lengths))).round().astype(int))
    ]
    figure = column_figure(PAGE if len(shown) > 1 else COLUMN, 2.6 * math.ceil(len(shown) / 2))
    panels = np.asarray(
        figure.subplots(math.ceil(len(shown) / 2), min(2, len(shown)), squeeze=False)
    ).ravel()
    for axes in panels[len(shown) :].tolist():
        axes.set_visible(False)
    for axes, length in zip(panels.tolist(), shown.tolist(), strict=False):
        _survival(axes, group.crossings[group.crossings["target_tokens"] == length])
        axes.set_title(f"{length} tokens")
        style_for_column(axes)
        _shrink(axes)
    return figure


@figure("transition-gathering", "where in the text first failures lie")
def gathering_figure(group: Phases) -> Figure:
    figure = column_figure(PAGE, 2.6)
    for axes, panel in zip(figure.subplots(1, 2), (position_panel, relative_panel), strict=True):
        panel(axes, group)
        style_for_column(axes)
    return figure


@figure("transition-recall", "share of tokens recalled by their final p")
def recall_figure(group: Phases) -> Figure:
    """Recall against p, by itself."""
    return _column(recall_panel, group)


@figure("transition-failures", "first failure and earliest stubborn token of each sequence")
def failure_figure(group: Phases) -> Figure:
    """The first failure against the earliest stubborn token, by itself."""
    return _column(failure_panel, group)


@figure("transition-loss", "recall of each cell by its final loss")
def loss_figure(group: Phases) -> Figure:
    """Recall against the final loss, by itself."""
    return _column(loss_panel, group)
