"""The chosen law and all laws side by side, readable at 80 columns and in a pipe."""

from __future__ import annotations

import math
import textwrap

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pml_cli.format import counted, number, span
from pml_cli.law.analysis import Analysis, LawRow
from pml_cli.law.findings import NOT_IDENTIFIED, OK
from pml_cli.law.fit_groups import GroupFit
from pml_cli.law.group_comparison import Comparison
from pml_cli.law.model_selection import EDGE, RANKS, TEXT, edge_of
from pml_cli.law.observations import RANK, Observations, SizeAxis
from pml_cli.law.power_law import PARAMETERS
from pml_cli.law.recall_law import RecallFit
from pml_cli.report.law_text import axis_words, held_out_name, meaning, sentence
from pml_cli.report.tables.layout import plain_table


def law_table(group: GroupFit) -> RenderableType:
    """The paper's law: cells kept, parameters with 95 % intervals, quality, status."""
    fit, axis = group.analysis.paper, group.axis
    cells = len(group.cells)
    excluded = cells - fit.n_used - fit.n_saturated
    counts = (
        f"{fit.n_used} of {cells} cells kept ({fit.n_saturated} saturated, {excluded} excluded)"
    )
    head = [
        Text(group.name, style="bold"),
        Text(f"{fit.form.notation(axis.symbol)}      {counts}"),
    ]
    reason = sentence(fit.finding, axis)
    if fit.status == NOT_IDENTIFIED:
        return Group(*head, Text(f"status  {fit.status}: {reason}", style="yellow"))
    table = plain_table("", "value", "95 % interval", "meaning", text=("", "meaning"))
    for parameter in PARAMETERS:
        table.add_row(
            parameter,
            number(fit.parameters[parameter]),
            span(*fit.intervals[parameter]),
            meaning(parameter, axis),
        )
    status = Text(
        f"status  {fit.status}" + (f": {reason}" if reason else ""),
        style="yellow" if reason else "green",
    )
    quality = f"fit     R2 {fit.r2:.4f}, MAPE {fit.mape:.2f} % of the measured gain"
    note = Text(
        "intervals take the cells as independent; texts or seeds shared by cells make them too narrow",
        style="dim",
    )
    return Group(
        *head, table, note, Text(quality), Text(f"unseen  {_held_out_line(group)}"), status
    )


def _held_out_line(group: GroupFit) -> str:
    """The held-out check of the paper's law."""
    check = group.analysis.rows[0].checks[EDGE]
    if math.isnan(check.mape):
        return f"no held-out check: {sentence(check.finding, group.axis)}"
    ranks, lengths = edge_of(group.observed)
    parts = [
        f"{name} {values[0]:,.0f}" + (" and up" if len(values) > 1 else "")
        for name, values in ((group.axis.name, ranks), ("length", lengths))
        if values
    ]
    cells = counted(check.n_test, "cell")
    return f"MAPE {check.mape:.2f} % on {cells} left out ({', '.join(parts)})"


def chosen_table(analysis: Analysis, cells: Observations, axis: SizeAxis = RANK) -> RenderableType:
    """The chosen law with its intervals, how well it fits, and how well it predicts cells it has not seen.

    Args:
        axis: what the ranks of `cells` are.
    """
    fit, chosen = analysis.law, analysis.chosen
    if fit is None or chosen is None:
        failed = [
            row.fit for row in analysis.rows if row.fit.status != OK and row.fit.uses_saturated
        ]
        reasons = "; ".join(dict.fromkeys(sentence(fit.finding, axis) for fit in failed))
        return Text(f"no law on all cells: {reasons}", style="yellow")
    saturated = (
        f"{fit.n_saturated} saturated, used as lower limits"
        if fit.n_saturated
        else "none saturated"
    )
    head = [Text(f"chosen law: {chosen.name}", style="bold"), Text(fit.form.notation(axis.symbol))]
    head.append(Text(f"all {fit.n} cells ({saturated})"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "value", "95 % interval", "meaning"):
        words = name in ("", "meaning")
        table.add_column(name, justify="left" if words else "right", no_wrap=not words)
    for name, value in fit.parameters.items():
        low, high = analysis.intervals.get(name, (math.nan, math.nan))
        table.add_row(name, number(value), span(low, high), meaning(name, axis))
    lines = [
        f"fit     R2 {fit.r2:.4f}, MAPE {fit.mape:.2f} % of the measured gain; with saturated cells {fit.mape_all:.2f} %",
        *_unseen_lines(chosen, axis),
        *_wrapped(
            f"range   {axis.name} {cells.rank.min():,.0f} to {cells.rank.max():,.0f}, length {cells.length.min():g} to "
            f"{cells.length.max():g}; beyond it the law is extrapolated"
        ),
    ]
    test = analysis.constant_capacity
    if test is not None:
        verdict = "not rejected" if test.p >= 0.05 else "rejected"
        lines.append(
            f"beta=1  (constant capacity) {verdict}: p = {test.p:.2g}, cells taken as independent"
        )
    status = Text(
        f"status  {fit.status}" + (f" ({sentence(fit.finding, axis)})" if fit.finding else ""),
        style="green",
    )
    return Group(*head, table, Text(_how(analysis), style="dim"), *map(Text, lines), status)


def _unseen_lines(chosen: LawRow, axis: SizeAxis) -> list[str]:
    edge = chosen.checks[EDGE]
    if not math.isfinite(edge.mape):
        return [f"unseen  no held-out check: {sentence(edge.finding, axis)}"]
    cells = f"{edge.n_test} unsaturated cells" if edge.n_test > 1 else "1 unsaturated cell"
    inside = f"{_number(100 * edge.coverage, '.0f')} % of them inside the 95 % band"
    lines = _wrapped(
        f"unseen  MAPE {edge.mape:.2f} % on {cells} ({held_out_name(EDGE, axis)}), {inside}; {edge.mape_all:.2f} % on all "
        f"{edge.n_all} left out"
    )
    sides = [
        (what, check)
        for what, check in chosen.checks.items()
        if what != EDGE and math.isfinite(check.mape)
    ]
    words = {RANKS: f"{axis_words(axis)['sizes']} alone", TEXT: "each text in turn"}
    parts = [f"{words.get(what, 'lengths alone')} {check.mape:.2f} %" for what, check in sides]
    return [*lines, f"        {', '.join(parts)}"] if parts else lines


def _wrapped(line: str) -> list[str]:
    """A line of the table at 80 columns, its continuation under what it says."""
    return textwrap.wrap(line, 80, subsequent_indent=8 * " ")


def _how(analysis: Analysis) -> str:
    made = analysis.bootstrap
    if made is None or made.status != OK:
        return "intervals: profile likelihood, which takes the cells as independent"
    return f"intervals: bootstrap of {made.clusters} clusters (text x length), {len(made.draws):,} draws"


def laws_table(analysis: Analysis, axis: SizeAxis = RANK) -> RenderableType:
    """All laws side by side; below, in a line each, those that are not OK."""
    columns = (
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
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name == "law" else "right", no_wrap=True)
    stopped = []
    for entry in analysis.rows:
        if entry.fit.status != OK:
            stopped.append(f"{entry.name}: {entry.fit.status}, {sentence(entry.fit.finding, axis)}")
            continue
        table.add_row(
            *_row(entry, entry is analysis.chosen),
            style="bold" if entry is analysis.chosen else None,
        )
    note = (
        "*: chosen. fit: MAPE over unsaturated cells. unseen: MAPE over unsaturated cells",
        f"of the {held_out_name(EDGE, axis)}, left out of the fit; all: over all",
        "cells left out. band: share of the unseen inside the 95 % band. dAICc: above",
        "the least; paper and robust saw other cells, so that theirs compares with none.",
    )
    return Group(
        Text("all laws", style="bold"),
        table,
        *(Text(line, style="dim") for line in note),
        *map(Text, stopped),
    )


def _row(entry: LawRow, chosen: bool) -> list[str]:
    values, edge = entry.fit.parameters, entry.checks[EDGE]
    numbers = [
        _number(values.get(name), form)
        for name, form in (("alpha", ".3f"), ("beta", ".3f"), ("b", ".2f"), ("k", ".1f"))
    ]
    errors = [_number(value, ".2f") for value in (entry.fit.mape, edge.mape, edge.mape_all)]
    name = f"* {entry.name}" if chosen else entry.name
    return [
        name,
        str(entry.fit.n_used),
        *numbers,
        _number(entry.aicc_difference, ".1f"),
        *errors,
        _number(100 * edge.coverage, ".0f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def recall_lines(recall: RecallFit, cells: Observations, axis: SizeAxis) -> list[str]:
    """The least rank for exact recall at the lengths trained, in a line or two."""
    if recall.status != OK:
        return [f"recall    no law of exact recall: {sentence(recall.finding, axis)}"]
    lengths = np.unique(cells.length)
    chosen = np.unique(lengths[[0, len(lengths) // 2, -1]])
    parts = []
    for length in chosen:
        at, *draws = np.exp(recall.log_ranks(length, 0.5))
        words = f"{length:g} tokens {_size(at)}"
        if draws:
            low, high = np.quantile(draws, [0.025, 0.975])
            words += f" ({_size(low)} to {_size(high)})"
        parts.append(words)
    return [
        f"recall    {axis.name} at which half of the targets are recalled whole: {', '.join(parts)}"
    ]


def _size(value: float) -> str:
    """Three digits of a rank; a count of parameters written out."""
    return f"{value:,.0f}" if 1000 <= value < 1e9 else f"{value:.3g}"


def comparison_table(found: Comparison, axis: SizeAxis = RANK) -> RenderableType:
    """Groups side by side, and whether they share their exponents."""
    head = Text(
        f"by {', '.join(found.by)}" + (f" ({found.common})" if found.common else ""), style="bold"
    )
    if found.form is None:
        return Group(head, Text(f"not compared: {sentence(found.finding, axis)}", style="yellow"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("group", "cells", "alpha", "95 %", "beta", "95 %"):
        table.add_column(
            name, justify="left" if name == "group" else "right", no_wrap=name != "group"
        )
    for one in found.groups:
        row = [one.name, str(one.fit.n)]
        for name in ("alpha", "beta"):
            low, high = one.interval(name)
            row += [
                _number(one.fit.parameters[name], ".3f"),
                f"{low:.2f} to {high:.2f}" if math.isfinite(low + high) else "-",
            ]
        table.add_row(*row)
    lines = []
    for tie in found.ties:
        shared = " and ".join(f"{name} {value:.3f}" for name, value in tie.shared.items())
        clustered = f", {tie.p_clustered:.2g} by clusters" if math.isfinite(tie.p_clustered) else ""
        lines.append(
            f"{tie.what:15} {'differ' if tie.differ else 'may be shared'}: p = {tie.p:.2g}{clustered}; shared {shared}"
        )
    lines += [
        f"warning: {one.name} rejects the common law ({one.cost:.0f} AICc above its best): exponents mean little here"
        for one in found.groups
        if one.rejects
    ]
    tests = "p: likelihood ratio, cells independent; by clusters: Cochran's Q"
    note = f"one law for all: {found.form.notation(axis.symbol)}. {tests}"
    return Group(head, table, *map(Text, lines), Text(note, style="dim"))
