"""The figure of `pml memorize`: what each rank knows, and what it harms."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING

from pml_cli.format import counted
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    GREY,
    MARKERS,
    ORANGE,
    PURPLE,
    empty_panel,
    legend_below,
    log_axis,
    page_title,
)
from pml_cli.report.memorize_report import MemorizeReport, TriedCell
from pml_cli.report.memorize_text import band_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ratio of the ranks at which two seeds of one rank are drawn.
DODGE = 1.04


@figure("memorize", "recall and forgetting against rank, and the limits")
def memorize_figure(report: MemorizeReport) -> Figure:
    """Left: what each cell knows, by rank. Right: what it harms. Limits are dashed.

    Args:
        report: the answer.
    """
    from matplotlib.figure import Figure

    page = Figure(figsize=(9.2, 4.2), layout="constrained")
    recall, harm = page.subplots(1, 2, sharex=True)
    _recall_panel(recall, report)
    _harm_panel(harm, report)

    page_title(page, _title(report), fontsize=11)
    legend_below(page, recall, columns=5, fontsize=9)
    return page


def _title(report: MemorizeReport) -> str:
    answer = report.answer
    outcome = f"rank {answer.rank} is the least within the limits ({band_text(report)})"
    if not answer.reached:
        outcome = f"no rank within the limits; the best is {answer.rank}"
    unit = "one text" if report.facts is None else counted(report.facts, "fact")
    return f"{unit}: {outcome}"


def _recall_panel(axes: Axes, report: MemorizeReport) -> None:
    """Share of the facts that are whole, against rank."""
    _mark_answer(axes, report)
    limit = 100 * report.limits.exact
    axes.axhline(limit, color=GREY, lw=1, ls="--", label="limit", zorder=1)
    for seed in _seeds(report):
        cells = [cell for cell in report.cells if cell.trial.seed == seed]
        _scatter(axes, report, cells, [100 * cell.trial.recalled for cell in cells])

    axes.set_ylabel(f"{report.recalled}, %")
    # From 0, for a share, with room for markers at both ends.
    axes.set_ylim(-8, 108)
    _rank_axis(axes, report)


def _harm_panel(axes: Axes, report: MemorizeReport) -> None:
    """Harm on other text, against rank."""
    measured = [cell for cell in report.cells if cell.trial.harm is not None]
    if not measured:
        empty_panel(axes, "forgetting was not measured")
        return

    _mark_answer(axes, report)
    limit = report.limits.max_forgetting
    if limit is not None:
        axes.axhline(limit, color=GREY, lw=1, ls="--", zorder=1)
    for seed in _seeds(report):
        cells = [cell for cell in measured if cell.trial.seed == seed]
        _scatter(axes, report, cells, [cell.trial.harm or 0.0 for cell in cells])

    highest = max([cell.trial.harm or 0.0 for cell in measured] + [limit or 0.0])
    lowest = min([cell.trial.harm or 0.0 for cell in measured] + [0.0])
    margin = 0.08 * max(highest - lowest, 1e-3)
    axes.set_ylim(lowest - margin, highest + margin)
    axes.set_ylabel("forgetting, nats per token of other text")
    _rank_axis(axes, report)


def _seeds(report: MemorizeReport) -> list[int]:
    return sorted({cell.trial.seed for cell in report.cells})


def _scatter(
    axes: Axes, report: MemorizeReport, cells: list[TriedCell], values: list[float]
) -> None:
    """The cells of one seed: full where they keep the limits, else hollow."""
    if not cells:
        return
    seeds = _seeds(report)
    index = seeds.index(cells[0].trial.seed)
    marker = MARKERS[index % len(MARKERS)]
    # Side by side, where seeds agree.
    shift = DODGE ** (index - (len(seeds) - 1) / 2)
    ranks = [cell.trial.rank * shift for cell in cells]
    for keeps, label in ((True, "within the limits"), (False, "outside")):
        shown = [report.limits.passes(cell.trial) == keeps for cell in cells]
        if not any(shown):
            continue
        colour = PURPLE if keeps else ORANGE
        axes.scatter(
            list(compress(ranks, shown)),
            list(compress(values, shown)),
            s=46,
            marker=marker,
            facecolors=colour if keeps else "none",
            edgecolors=colour,
            linewidths=1.4,
            label=f"seed {cells[0].trial.seed}, {label}",
            zorder=3,
            clip_on=False,
        )


def _mark_answer(axes: Axes, report: MemorizeReport) -> None:
    """The chosen rank as a line, and the band of the least rank shaded."""
    answer = report.answer
    if answer.high is not None and answer.low < answer.high:
        axes.axvspan(answer.low, answer.high, color="0.93", lw=0, zorder=0)
    axes.axvline(answer.rank, color=GREY, lw=1, label=f"rank {answer.rank}", zorder=1)


def _rank_axis(axes: Axes, report: MemorizeReport) -> None:
    log_axis(axes, [cell.trial.rank for cell in report.cells])
    axes.set_xlabel("rank")
    axes.grid(axis="y", color="0.9", lw=0.6)
    axes.margins(x=0.06)
