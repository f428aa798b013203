"""The chosen law and all laws side by side, readable at 80 columns and in a pipe."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pml_cli.format import number, span
from pml_cli.law.analysis import Analysis, Entry
from pml_cli.law.group_comparison import Comparison
from pml_cli.law.mle import SaturatingFit
from pml_cli.law.model_selection import EDGE, RANKS, TEXT, Plain
from pml_cli.law.observations import Observations, of_size
from pml_cli.law.power_law import NOT_IDENTIFIED, OK, PARAMETERS, HeldOut, LawFit
from pml_cli.law.recall_law import RecallFit
from pml_cli.report.tables.layout import plain_table
from pml_cli.stats import LN2

MEANING = {
    "C": "scale (nats/token)",
    "alpha": "power of rank",
    "beta": "power of length",
    "b": "offset (nats/token)",
    "k": "sharpness of the bend",
    "floor": "least loss (nats/token)",
    "level": "loss that memory starts from (nats/token)",
    "spread": "of a cell around the law, as a share",
}
LAWS = {"none": "x", "hard": "min(1, x)", "exp": "1 - exp(-x)", "hill": "x / (1 + x^k)^(1/k)"}


def law_table(name: str, fit: LawFit, held: HeldOut, cells: int, x: str = "rank") -> RenderableType:
    """One fitted law: cells kept of `cells`, parameters with 95 % intervals, quality, status.

    Args:
        name: what was fitted, as the heading.
        fit, held: from `law.fit_paper` and `law.held_out`.
        cells: all cells of this group, before any was excluded.
        x: the size that the law is about: rank or parameters.
    """
    excluded = cells - fit.n - fit.n_saturated
    counts = f"{fit.n} of {cells} cells kept ({fit.n_saturated} saturated, {excluded} excluded)"
    head = [
        Text(name, style="bold"),
        Text(f"{of_size('dL = C r^alpha l^-beta + b', x)}      {counts}"),
    ]
    reason = of_size(fit.reason, x)
    if fit.status == NOT_IDENTIFIED:
        return Group(*head, Text(f"status  {fit.status}: {reason}", style="yellow"))
    table = plain_table("", "value", "95 % interval", "meaning", text=("", "meaning"))
    for parameter in PARAMETERS:
        table.add_row(
            parameter,
            number(getattr(fit, parameter)),
            span(*fit.intervals[parameter]),
            of_size(MEANING[parameter], x),
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
        *head, table, note, Text(quality), Text(f"unseen  {held_out_words(held, x)}"), status
    )


def held_out_words(held: HeldOut, x: str = "rank") -> str:
    """The held-out check in one line."""
    if held.mape is None:
        return f"no held-out check: {of_size(held.reason, x)}"
    parts = [
        f"{axis} {values[0]:,.0f}" + (" and up" if len(values) > 1 else "")
        for axis, values in ((x, held.ranks), ("length", held.lengths))
        if values
    ]
    cells = f"{held.n_test} cell" + ("s" if held.n_test > 1 else "")
    return f"MAPE {held.mape:.2f} % on {cells} left out ({', '.join(parts)})"


def conclusions(
    fit: LawFit, held: HeldOut, cells: pd.DataFrame, analysis: Analysis, x: str = "rank"
) -> list[str]:
    """What a fit allows to conclude, and what to run next, in plain words.

    Args:
        fit, held: from `law.fit_paper` and `law.held_out` on the same cells.
        cells: those cells, with the columns rank, target_tokens, final_loss and kept.
        analysis: all laws on them; what is said is about the chosen one.
        x: the size that they are about: rank or parameters.
    """
    chosen, check = analysis.law, analysis.chosen.checks[EDGE] if analysis.chosen else None
    seen = (
        cells["kept"] if chosen is None else cells["final_loss"] > LN2
    )  # what holds information for the law told of
    again = f"`{_next_sweep(cells, seen)}` (other settings as before)"
    if chosen is None and fit.status == NOT_IDENTIFIED:
        cause = (
            "Every cell is saturated (final loss at or below saturated_below). "
            if len(cells) and not fit.n
            else ""
        )
        single = of_size(
            "These cells show single gains, not how the gain goes with rank and length.", x
        )
        return [f"{cause}{single} Next: {again}."]
    if chosen is None or check is None:
        return ["No law on all cells is to be trusted here: its exponents mean nothing beyond them.",
                f"Next: more cells, {again}."]  # fmt: skip
    alpha, beta = chosen.parameters["alpha"], chosen.parameters["beta"]
    what = "x, what is held of the target," if "level" in chosen.parameters else "the gain above b"
    found = [f"Far below the base loss, {what} is multiplied by {2**alpha:.2f} for twice the {x}, "
             f"by {2**-beta:.2f} for twice the length."]  # fmt: skip
    if math.isnan(check.mape):
        larger = of_size("larger ranks", x)
        return [
            *found,
            f"Nothing can be said about {larger} or longer texts from these cells. Next: {again}.",
        ]
    if check.mape > max(10.0, 3 * chosen.mape):
        found.append(
            f"Do not extrapolate: cells left out are off by {check.mape:.1f} %, against {chosen.mape:.1f} % inside."
        )
    ends = {
        name: analysis.intervals[name] for name in ("alpha", "beta") if name in analysis.intervals
    }
    wide = [name for name, (low, high) in ends.items() if high - low > chosen.parameters[name]]
    if wide:
        spans = " and ".join("{} ({:.2f} to {:.2f})".format(name, *ends[name]) for name in wide)
        found.append(f"Not sharp: {spans}. Next: more cells or repeats (data.seed=0,1,2), {again}.")
    return found


def _next_sweep(cells: pd.DataFrame, seen: pd.Series[bool]) -> str:
    """A sweep that holds the values measured and those that would tell most: on unsaturated ground, a factor of 2 apart.

    Args:
        seen: which of the cells are unsaturated.
    """
    if cells.empty:
        return "pml sweep rank=2,4,8,16 seqlen=64,128,256,512"
    ranks, lengths = (sorted({int(v) for v in cells[name]}) for name in ("rank", "target_tokens"))
    open_ = cells[seen]
    if len(open_) < len(cells) / 2 or len(set(lengths)) < 4:
        lengths = [*lengths, 2 * lengths[-1], 4 * lengths[-1]]  # longer texts saturate last
    if open_["rank"].nunique() <= 4:
        ranks = sorted(
            {
                *ranks,
                *(max(1, ranks[0] // k) for k in (2, 4)),
                *([2 * ranks[-1]] if len(open_) > len(cells) / 2 else []),
            }
        )
    return f"pml sweep rank={','.join(map(str, ranks))} seqlen={','.join(map(str, lengths))}"


def chosen_table(analysis: Analysis, cells: Observations, x: str = "rank") -> RenderableType:
    """The chosen law with its intervals, how well it fits, and how well it predicts cells it has not seen.

    Args:
        x: what the ranks of `cells` are: rank or parameters.
    """
    fit, chosen = analysis.law, analysis.chosen
    if fit is None or chosen is None:
        failed = [
            entry
            for entry in analysis.entries
            if entry.fit.status != OK and not isinstance(entry.fit, Plain)
        ]
        reasons = "; ".join(dict.fromkeys(of_size(e.fit.reason, x) for e in failed))
        return Text(f"no law on all cells: {reasons}", style="yellow")
    saturated = (
        f"{fit.n_saturated} saturated, used as lower limits"
        if fit.n_saturated
        else "none saturated"
    )
    head = [Text(f"chosen law: {chosen.name}", style="bold"), Text(of_size(formula(fit), x))]
    head.append(Text(f"all {fit.n} cells ({saturated})"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "value", "95 % interval", "meaning"):
        words = name in ("", "meaning")
        table.add_column(name, justify="left" if words else "right", no_wrap=not words)
    for name, value in fit.parameters.items():
        low, high = analysis.intervals.get(name, (math.nan, math.nan))
        table.add_row(name, number(value), span(low, high), of_size(MEANING[name], x))
    lines = [
        f"fit     R2 {fit.r2:.4f}, MAPE {fit.mape:.2f} % of the measured gain; with saturated cells {fit.mape_all:.2f} %",
        *_unseen_lines(chosen, x),
        *_wrapped(
            f"range   {x} {cells.rank.min():,.0f} to {cells.rank.max():,.0f}, length {cells.length.min():g} to "
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
        f"status  {fit.status}" + (f" ({fit.reason})" if fit.reason else ""), style="green"
    )
    return Group(*head, table, Text(_how(analysis), style="dim"), *map(Text, lines), status)


def formula(fit: SaturatingFit) -> str:
    """In the notation of the tables, on one line of 80 columns."""
    inner = "C r^alpha l^-beta" + (" + b" if fit.form.offset else "")
    if fit.form.link == "none":
        return f"dL = {inner}"
    top = "(L0 - floor)" if fit.form.floor else ("H" if fit.form.level else "L0")
    start = "L0 - H + " if fit.form.level else ""
    return f"dL = {start}{top} S(x), x = ({inner}) / {top}, S = {LAWS[fit.form.link]}"


def _unseen_lines(chosen: Entry, x: str) -> list[str]:
    edge = chosen.checks[EDGE]
    if not math.isfinite(edge.mape):
        return [f"unseen  no held-out check: {of_size(edge.reason, x)}"]
    cells = f"{edge.n_test} unsaturated cells" if edge.n_test > 1 else "1 unsaturated cell"
    inside = f"{_number(100 * edge.coverage, '.0f')} % of them inside the 95 % band"
    lines = _wrapped(
        f"unseen  MAPE {edge.mape:.2f} % on {cells} ({of_size(EDGE, x)}), {inside}; {edge.mape_all:.2f} % on all "
        f"{edge.n_all} left out"
    )
    sides = [
        (what, check)
        for what, check in chosen.checks.items()
        if what != EDGE and math.isfinite(check.mape)
    ]
    words = {RANKS: of_size("ranks alone", x), TEXT: "each text in turn"}
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


def laws_table(analysis: Analysis, x: str = "rank") -> RenderableType:
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
    for entry in analysis.entries:
        if entry.fit.status != OK:
            stopped.append(f"{entry.name}: {entry.fit.status}, {of_size(entry.fit.reason, x)}")
            continue
        table.add_row(
            *_row(entry, entry is analysis.chosen),
            style="bold" if entry is analysis.chosen else None,
        )
    note = (
        "*: chosen. fit: MAPE over unsaturated cells. unseen: MAPE over unsaturated cells",
        f"of the {of_size(EDGE, x)}, left out of the fit; all: over all",
        "cells left out. band: share of the unseen inside the 95 % band. dAICc: above",
        "the least; paper and robust saw other cells, so that theirs compares with none.",
    )
    return Group(
        Text("all laws", style="bold"),
        table,
        *(Text(line, style="dim") for line in note),
        *map(Text, stopped),
    )


def _row(entry: Entry, chosen: bool) -> list[str]:
    values, edge = entry.parameters, entry.checks[EDGE]
    numbers = [
        _number(values.get(name), form)
        for name, form in (("alpha", ".3f"), ("beta", ".3f"), ("b", ".2f"), ("k", ".1f"))
    ]
    errors = [_number(value, ".2f") for value in (entry.mape, edge.mape, edge.mape_all)]
    name = f"* {entry.name}" if chosen else entry.name
    return [
        name,
        str(entry.kept),
        *numbers,
        _number(entry.difference, ".1f"),
        *errors,
        _number(100 * edge.coverage, ".0f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def recall_lines(recall: RecallFit, cells: Observations, x: str) -> list[str]:
    """The least rank for exact recall at the lengths trained, in a line or two."""
    if recall.status != OK:
        return [f"recall    no law of exact recall: {of_size(recall.reason, x)}"]
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
    return [f"recall    {x} at which half of the targets are recalled whole: {', '.join(parts)}"]


def _size(value: float) -> str:
    """Three digits of a rank; a count of parameters written out."""
    return f"{value:,.0f}" if 1000 <= value < 1e9 else f"{value:.3g}"


def comparison_table(found: Comparison, x: str = "rank") -> RenderableType:
    """Groups side by side, and whether they share their exponents."""
    head = Text(
        f"by {', '.join(found.by)}" + (f" ({found.common})" if found.common else ""), style="bold"
    )
    if found.form is None:
        return Group(head, Text(f"not compared: {found.reason}", style="yellow"))
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
        lines.append(f"{tie.what:15} {tie.verdict}: p = {tie.p:.2g}{clustered}; shared {shared}")
    lines += [
        f"warning: {one.name} rejects the common law ({one.cost:.0f} AICc above its best): exponents mean little here"
        for one in found.groups
        if one.rejects
    ]
    tests = "p: likelihood ratio, cells independent; by clusters: Cochran's Q"
    note = f"one law for all: {of_size(found.form.formula, x)}. {tests}"
    return Group(head, table, *map(Text, lines), Text(note, style="dim"))
