"""Tables of `pml fit`: the paper's law, the chosen law, all laws, and groups side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pml_cli.format import counted, number, span
from pml_cli.law.analysis import Analysis, LawRow
from pml_cli.law.findings import NOT_IDENTIFIED, OK
from pml_cli.law.fit_groups import GroupFit
from pml_cli.law.group_comparison import Comparison, Tie
from pml_cli.law.mle import LikelihoodFit
from pml_cli.law.model_selection import EDGE, LENGTHS, RANKS, TEXT, edge_of
from pml_cli.law.observations import RANK, Observations, SizeAxis
from pml_cli.law.recall_law import RecallFit
from pml_cli.report.law_text import axis_words, held_out_name, interval_method, meaning, sentence
from pml_cli.report.tables.layout import plain_table
from pml_cli.stats import MIN_CLUSTERS

# Characters in a line, on a terminal and in a message
WIDTH = 80

# Width of the column of keys such as `fit` and `unseen`.
KEY_WIDTH = 8

# Texts listed with their deviation from the law.
MOST_TEXTS = 8

EXPONENTS = ("alpha", "beta")
EVEN_CHANCE = 0.5
LAW_COLUMNS = (
    "law",
    "cells",
    "alpha",
    "beta",
    "b",
    "k",
    "dAICc",
    "fit %",
    "unseen %",
    "all %",
    "band %",
)


def law_table(group: GroupFit) -> RenderableType:
    """The paper's law: cells kept, parameters with 95 % intervals, quality, status."""
    fit = group.analysis.paper
    axis = group.axis
    cells = len(group.cells)
    excluded = cells - fit.n_used - fit.n_saturated
    counts = (
        f"{fit.n_used} of {cells} cells kept ({fit.n_saturated} saturated, {excluded} excluded)"
    )
    # Names and settings may hold brackets, which rich would take for markup in a plain string.
    head = (
        Text(group.name, style="bold"),
        Text(f"{fit.form.notation(axis.symbol)}      {counts}"),
    )

    reason = sentence(fit.finding, axis)
    status = f"status  {fit.status}: {reason}" if reason else f"status  {fit.status}"
    if fit.status == NOT_IDENTIFIED:
        return Group(*head, Text(status, style="yellow"))
    note = (
        "intervals take the cells as independent; "
        "texts or seeds shared by cells make them too narrow"
    )
    return Group(
        *head,
        _parameter_table(fit.parameters, fit.intervals, axis),
        Text(note, style="dim"),
        Text(f"fit     R2 {fit.r2:.4f}, MAPE {fit.mape:.2f} % of the measured gain"),
        Text(f"unseen  {_paper_check_text(group)}"),
        Text(status, style="yellow" if reason else "green"),
    )


def _parameter_table(
    parameters: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    axis: SizeAxis,
) -> Table:
    """A line for each parameter of one law: value, 95 % interval, meaning."""
    table = plain_table("", "value", "95 % interval", "meaning", text=("", "meaning"))
    unknown = (math.nan, math.nan)
    for name, value in parameters.items():
        interval = span(*intervals.get(name, unknown))
        table.add_row(name, number(value), interval, meaning(name, axis))
    return table


def _paper_check_text(group: GroupFit) -> str:
    """The held-out check of the paper's law."""
    paper = group.analysis.row("paper")
    assert paper is not None
    check = paper.checks[EDGE]
    if math.isnan(check.mape):
        return f"no held-out check: {sentence(check.finding, group.axis)}"

    ranks, lengths = edge_of(group.observed)
    held_out = []
    for name, values in ((group.axis.grid.name, ranks), ("length", lengths)):
        if values:
            and_up = " and up" if len(values) > 1 else ""
            held_out.append(f"{name} {values[0]:,.0f}{and_up}")
    cells = counted(check.n_test, "cell")
    return f"MAPE {check.mape:.2f} % on {cells} left out ({', '.join(held_out)})"


def chosen_table(analysis: Analysis, cells: Observations, axis: SizeAxis = RANK) -> RenderableType:
    """The chosen law: parameters with intervals, quality, error on cells it has not seen, range.

    Args:
        analysis: all laws on the cells.
        cells: those that the law was fitted to.
        axis: what their ranks are.
    """
    fit = analysis.law
    chosen = analysis.chosen
    if fit is None or chosen is None:
        return Text(f"no law on all cells: {failure_reasons(analysis, axis)}", style="yellow")

    # The paper's estimator drops saturated cells, likelihood does not.
    saturated = "none saturated"
    if fit.n_saturated:
        saturated = f"{fit.n_saturated} saturated, used as lower limits"
    status = f"status  {fit.status}"
    if fit.finding:
        status += f" ({sentence(fit.finding, axis)})"
    lines = [
        quality_line(fit),
        *_held_out_lines(analysis, axis),
        *_range_lines(cells, axis),
        *_constant_capacity_lines(analysis),
        *_text_lines(analysis),
    ]
    return Group(
        Text(f"chosen law: {chosen.name}", style="bold"),
        Text(fit.form.notation(axis.symbol)),
        Text(f"all {fit.n} cells ({saturated})"),
        _parameter_table(fit.parameters, analysis.intervals, axis),
        Text(textwrap.fill(interval_method(analysis), WIDTH), style="dim"),
        *_texts(lines),
        Text(status, style="green"),
    )


def failure_reasons(analysis: Analysis, axis: SizeAxis) -> str:
    """Why no law on all cells was identified, each reason once."""
    reasons = [
        sentence(row.fit.finding, axis)
        for row in analysis.rows
        if row.fit.status != OK and row.fit.uses_saturated
    ]
    return "; ".join(dict.fromkeys(reasons))


def quality_line(fit: LikelihoodFit) -> str:
    """How well the law fits its own cells."""
    return (
        f"fit     R2 {fit.r2:.4f}, MAPE {fit.mape:.2f} % of the measured gain; "
        f"with saturated cells {fit.mape_all:.2f} %"
    )


def _held_out_lines(analysis: Analysis, axis: SizeAxis) -> list[str]:
    """The check on the largest ranks and longest lengths, and those of the chosen form alone."""
    edge = analysis.unseen
    assert edge is not None and analysis.chosen is not None
    if not math.isfinite(edge.mape):
        return [f"unseen  no held-out check: {sentence(edge.finding, axis)}"]

    coverage = number(100 * edge.coverage, ".0f")
    lines = _wrapped(
        f"unseen  MAPE {edge.mape:.2f} % on {counted(edge.n_test, 'unsaturated cell')} "
        f"({held_out_name(EDGE, axis)}), {coverage} % of them inside the 95 % band; "
        f"{edge.mape_all:.2f} % on all {edge.n_all} left out; by {', '.join(edge.laws)}, "
        "chosen without them"
    )
    names = {
        EDGE: "the same cells",
        RANKS: f"{axis_words(axis)['sizes']} alone",
        LENGTHS: "lengths alone",
        TEXT: "each text in turn",
    }
    errors = [
        f"{names[what]} {check.mape:.2f} %"
        for what, check in analysis.chosen.checks.items()
        if math.isfinite(check.mape)
    ]
    # Under the text of the line above
    if errors:
        lines += _wrapped(f"form    {analysis.chosen.name} as chosen by all: {', '.join(errors)}")
    return lines


def _range_lines(cells: Observations, axis: SizeAxis) -> list[str]:
    return _wrapped(
        f"range   {axis.label} {cells.rank.min():,.0f} to {cells.rank.max():,.0f}, "
        f"length {cells.length.min():g} to {cells.length.max():g}; "
        "beyond it the law is extrapolated"
    )


def _constant_capacity_lines(analysis: Analysis) -> list[str]:
    """Whether beta is 1, by the same distribution as its interval."""
    quality = analysis.quality
    if quality is None or "beta" not in quality.exponents:
        return []
    below = float(quality.exponents["beta"].share_below(np.array([1.0]))[0])
    low, high = quality.interval("beta")
    verdict = "not rejected" if low <= 1 <= high else "rejected"
    side = (
        f"below it with {_chance(below)}" if below >= 0.5 else f"above it with {_chance(1 - below)}"
    )
    return [f"beta=1  (constant capacity) {verdict}: beta lies {side}"]


def _chance(share: float) -> str:
    """A probability in per cent, never given as certain."""
    return "over 99.9 %" if share > 0.999 else f"{100 * share:.1f} %"


def _text_lines(analysis: Analysis) -> list[str]:
    """How far the gains of each text lie from the law, where there are several."""
    quality = analysis.quality
    if quality is None or len(quality.texts) < 2:
        return []
    deviations = [
        f"{text.text} {100 * text.deviation:+.1f} %" for text in quality.texts[:MOST_TEXTS]
    ]
    more = (
        "" if len(quality.texts) <= MOST_TEXTS else f", and {len(quality.texts) - MOST_TEXTS} more"
    )
    return _wrapped(f"texts   gain against the law: {', '.join(deviations)}{more}")


def laws_table(analysis: Analysis, axis: SizeAxis = RANK) -> RenderableType:
    """All laws side by side; below, in a line each, those that are not OK.

    Args:
        analysis: the laws.
        axis: the size that they are about.
    """
    # A gap of two would not leave room for eleven columns.
    table = plain_table(*LAW_COLUMNS, text=("law",), folded=(), gap=1)
    failures = []
    for row in analysis.rows:
        if row.fit.status != OK:
            reason = sentence(row.fit.finding, axis)
            failures.append(f"{row.name}: {row.fit.status}, {reason}")
        elif row is analysis.chosen:
            table.add_row(f"* {row.name}", *_law_cells(row), style="bold")
        else:
            table.add_row(row.name, *_law_cells(row))

    note = textwrap.fill(
        "*: chosen. fit: MAPE over unsaturated cells. unseen: MAPE over unsaturated cells of the "
        f"{held_out_name(EDGE, axis)}, left out of the fit, not of the choice of a form; all: over "
        "all cells left out. "
        "band: share of the unseen inside the 95 % band. dAICc: above the least; AICc of paper "
        "and robust is not comparable: they use fewer cells.",
        WIDTH,
    )
    return Group(
        Text("all laws", style="bold"),
        table,
        Text(note, style="dim"),
        *_texts(failures),
    )


def _law_cells(row: LawRow) -> list[str]:
    """One law, in the order of LAW_COLUMNS without its name."""
    parameters = row.fit.parameters
    edge = row.checks[EDGE]
    return [
        str(row.fit.n_used),
        number(parameters.get("alpha"), ".3f"),
        number(parameters.get("beta"), ".3f"),
        number(parameters.get("b"), ".2f"),
        number(parameters.get("k"), ".1f"),
        number(row.aicc_difference, ".1f"),
        number(row.fit.mape, ".2f"),
        number(edge.mape, ".2f"),
        number(edge.mape_all, ".2f"),
        number(100 * edge.coverage, ".0f"),
    ]


def recall_lines(recall: RecallFit, cells: Observations, axis: SizeAxis) -> list[str]:
    """The rank at even chance of exact recall, at the shortest, middle and longest length.

    Args:
        recall: the law of exact recall.
        cells: those that it was fitted to.
        axis: what their ranks are.
    """
    if recall.status != OK:
        return [f"recall    no law of exact recall: {sentence(recall.finding, axis)}"]

    lengths = np.unique(cells.length)
    # All lengths would not fit into a line or two.
    middle = len(lengths) // 2
    shown_lengths = np.unique(lengths[[0, middle, -1]])
    texts = []
    for length in shown_lengths:
        rank, *draws = recall.ranks(length, EVEN_CHANCE)
        text = f"{length:g} tokens {size_text(rank)}"
        if draws:
            low, high = np.quantile(draws, [0.025, 0.975])
            text += f" ({size_text(low)} to {size_text(high)})"
        texts.append(text)
    few = ""
    if recall.texts < MIN_CLUSTERS:
        few = f"; of {counted(recall.texts, 'text')}, so not how texts differ"
    return [
        f"recall    {axis.label} at which half of the targets are recalled exactly: "
        f"{', '.join(texts)}{few}"
    ]


# Beyond it stands what a band without an upper end gives.
LARGEST_SHOWN = 1e100


def size_text(value: float) -> str:
    """Three digits of a rank; a count of parameters written out; what no number holds, in words."""
    if value > LARGEST_SHOWN:
        return "any number"
    return f"{value:,.0f}" if 1000 <= value < 1e9 else f"{value:.3g}"


def comparison_table(comparison: Comparison, axis: SizeAxis = RANK) -> RenderableType:
    """Groups side by side, and whether they share their exponents.

    Args:
        comparison: of groups fitted with one form.
        axis: the size that their laws are about.
    """
    # The settings in which the groups differ, and those in which they agree
    title = f"by {', '.join(comparison.by)}"
    if comparison.common:
        title += f" ({comparison.common})"
    head = Text(title, style="bold")
    if comparison.form is None:
        reason = sentence(comparison.finding, axis)
        return Group(head, Text(f"not compared: {reason}", style="yellow"))

    table = plain_table("group", "cells", "alpha", "95 %", "beta", "95 %", text=("group",))
    for group in comparison.groups:
        cells = [group.name, str(group.fit.n)]
        for name in EXPONENTS:
            cells.append(number(group.fit.parameters[name], ".3f"))
            cells.append(span(*group.interval(name), ".2f"))
        table.add_row(*cells)

    lines = [_tie_line(tie) for tie in comparison.ties]
    for group in comparison.groups:
        if group.rejects:
            lines.append(
                f"warning: {group.name} rejects the common law ({group.cost:.0f} AICc above its "
                "best): its exponents mean little here"
            )
    note = (
        f"one law for all: {comparison.form.notation(axis.symbol)}. "
        "p: likelihood ratio, cells independent; by clusters: Cochran's Q"
    )
    return Group(head, table, *_texts(lines), Text(note, style="dim"))


def _tie_line(tie: Tie) -> str:
    """Whether groups may share one exponent, or both."""
    verdict = "differ" if tie.differ else "may be shared"
    p_values = f"p = {tie.p:.2g}"
    if math.isfinite(tie.p_clustered):
        p_values += f", {tie.p_clustered:.2g} by clusters"
    shared = " and ".join(f"{name} {value:.3f}" for name, value in tie.shared.items())
    return f"{tie.what:15} {verdict}: {p_values}; shared {shared}"


def _texts(lines: Iterable[str]) -> list[Text]:
    """Lines in which rich does not take brackets for markup."""
    return [Text(line) for line in lines]


def _wrapped(line: str) -> list[str]:
    """A line that begins with a key, at WIDTH columns, its continuation under what it says."""
    return textwrap.wrap(line, WIDTH, subsequent_indent=" " * KEY_WIDTH)
