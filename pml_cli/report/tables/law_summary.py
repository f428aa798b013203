"""What `pml fit` prints without `--all`: the answer first, on one screen."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from pml_cli.format import counted, number, span
from pml_cli.law.findings import NOT_IDENTIFIED, NOTES, OK, Finding
from pml_cli.law.fit_groups import GroupFit
from pml_cli.law.model_selection import EDGE
from pml_cli.report.base_knowledge import much_known_line
from pml_cli.report.law_text import held_out_name, sentence
from pml_cli.report.tables.law import (
    EVEN_CHANCE,
    EXPONENTS,
    KEY_WIDTH,
    WIDTH,
    failure_reasons,
    quality_line,
    size_text,
)
from pml_cli.report.tables.layout import plain_table

# Lines of one group, with the one that says where the report is.
MOST_LINES = 15

# What lines begin with whose text stands in a column of its own
KEYS = ("fit ", "unseen ", "paper ", "recall ", "status ")

# Conclusions that are warnings: what they speak against is what people do next.
GRAVE = ("extrapolation_fails",)
# Conclusions that `--all` alone prints
EXPLAINED = ("effect_of_doubling",)

SUMMARY_COLUMNS = ("group", "law", "cells", "alpha", "beta", "fit %", "unseen %")


class _Line(NamedTuple):
    """A paragraph and its style."""

    text: str
    style: str = ""

    def wrapped(self) -> list[str]:
        """At WIDTH columns; what follows a key goes on below its first word."""
        indent = " " * KEY_WIDTH if self.text.startswith(KEYS) else ""
        return textwrap.wrap(
            self.text,
            WIDTH,
            subsequent_indent=indent,
            # Commands and paths are copied: they stay whole.
            break_long_words=False,
            break_on_hyphens=False,
        )


def summary(group: GroupFit, next_command: str) -> RenderableType:
    """One group on MOST_LINES lines but one: law, certainty, unseen cells, warnings, what next.

    Args:
        group: with its laws.
        next_command: what to run where a law is known.
    """
    head = _head(group)
    tail = _next_lines(group, next_command)
    room = MOST_LINES - 1 - _height([*head, *tail])
    shown = _fitting(_warnings(group), room)
    return Group(*_rendered([*head, *shown, *tail]))


def summary_table(groups: Sequence[GroupFit], next_command: str) -> RenderableType:
    """Several groups, a line each; below it what speaks against them, each remark once.

    Args:
        groups: with their laws, all of one size.
        next_command: what to run next, where any group has a law.
    """
    table = plain_table(*SUMMARY_COLUMNS, text=("group", "law"), folded=("group",))
    for group in groups:
        table.add_row(*_table_cells(group))

    axis = groups[0].axis
    note = (
        "fit: MAPE over unsaturated cells; unseen: of the "
        f"{held_out_name(EDGE, axis)}, left out of fit and choice. 95 % intervals: --all, law.json"
    )
    lines = [_Line(note, "dim"), *_shared_remarks(groups)]
    if any(group.analysis.chosen for group in groups):
        lines.append(_Line(f"next: {next_command}"))
    return Group(table, *_rendered(lines))


def _head(group: GroupFit) -> list[_Line]:
    """The law, its exponents with intervals, its errors, and where recall begins."""
    analysis = group.analysis
    saturated = int((group.cells["reason"] == "saturated").sum())
    counts = f"{counted(len(group.cells), 'cell')}, {saturated} saturated"
    lines = [_Line(f"{group.name}: {counts}", "bold")]
    if analysis.paper.status == NOT_IDENTIFIED:
        reason = sentence(analysis.paper.finding, group.axis)
        lines.append(_Line(f"status  {analysis.paper.status}: {reason}", "yellow"))
        return lines + _recall_line(group)

    fit = analysis.law
    if fit is None or analysis.chosen is None:
        reasons = failure_reasons(analysis, group.axis)
        lines.append(_Line(f"no law on all cells: {reasons}", "yellow"))
    else:
        lines += [
            _Line(f"chosen law: {analysis.chosen.name}", "bold"),
            _Line(fit.form.notation(group.axis.symbol)),
            _Line(_values_text(group)),
            _Line(quality_line(fit)),
            _Line(_unseen_text(group)),
        ]
    return [*lines, _Line(_paper_text(group)), *_recall_line(group)]


def _values_text(group: GroupFit) -> str:
    """The exponents with their intervals, then the other parameters."""
    law = group.analysis.law
    assert law is not None
    unknown = (math.nan, math.nan)
    texts = []
    for name in EXPONENTS:
        interval = span(*group.analysis.intervals.get(name, unknown), ".2f")
        # Said once, for both.
        share = "95 %: " if name == EXPONENTS[0] else ""
        texts.append(f"{name} {number(law.parameters[name], '.3f')} ({share}{interval})")
    others = [name for name in law.parameters if name not in (*EXPONENTS, "spread")]
    texts += [f"{name} {number(law.parameters[name], '.3g')}" for name in others]
    return ", ".join(texts)


def _unseen_text(group: GroupFit) -> str:
    """The error of the chosen law on the largest ranks and longest lengths."""
    check = group.analysis.unseen
    assert check is not None
    if not math.isfinite(check.mape):
        return f"unseen  no held-out check: {sentence(check.finding, group.axis)}"
    cells = counted(check.n_test, "cell")
    which = held_out_name(EDGE, group.axis)
    return f"unseen  MAPE {check.mape:.2f} % on {cells} left out ({which})"


def _paper_text(group: GroupFit) -> str:
    """The paper's law in a line."""
    row = group.analysis.row("paper")
    assert row is not None
    values = ", ".join(
        f"{name} {number(row.fit.parameters.get(name), '.3f')}" for name in (*EXPONENTS, "b")
    )
    check = row.checks[EDGE]
    unseen = f"; unseen {check.mape:.2f} %" if math.isfinite(check.mape) else ""
    notation = row.fit.form.notation(group.axis.symbol).removeprefix("dL = ")
    return f"paper   {values} ({notation}){unseen}"


def _recall_line(group: GroupFit) -> list[_Line]:
    """The size at which half of the targets are recalled, of three lengths."""
    recall = group.recall
    if recall.status != OK:
        return []
    lengths = np.unique(group.observed_recall.length)
    trained = group.observed_recall.rank
    inside: list[str] = []
    beyond: list[str] = []
    for length in np.unique(lengths[[0, len(lengths) // 2, -1]]):
        size = float(recall.ranks(length, EVEN_CHANCE)[0])
        # Said once, for all lengths.
        unit = "" if inside or beyond else " tokens"
        is_inside = trained.min() <= size <= trained.max()
        (inside if is_inside else beyond).append(f"{size_text(size)} ({length:g}{unit})")
    sizes = [", ".join(inside)] if inside else []
    if beyond:
        sizes.append(f"extrapolated {', '.join(beyond)}")
    return [_Line(f"recall  half of the targets from {group.axis.label} {'; '.join(sizes)}")]


def _warnings(group: GroupFit) -> list[_Line]:
    """What speaks against the laws, the gravest first; notes are for `--all`."""
    known = much_known_line(group.cells)
    lines = [_Line(known)] if known else []
    grave = [remark for remark in group.conclusions if remark.code in GRAVE]
    of_laws = [remark for remark in group.warnings if remark.code not in NOTES]
    for remark in [*grave, *of_laws]:
        lines.append(_Line(f"warning: {sentence(remark, group.axis)}", "yellow"))
    return lines


def _fitting(lines: list[_Line], room: int) -> list[_Line]:
    """The lines that there is room for, the first in any case, and how many more there are."""
    if _height(lines) <= room:
        return lines
    shown = lines[:1]
    for line in lines[1:]:
        # One line says how many are left.
        if _height([*shown, line]) < room:
            shown.append(line)
    more = counted(len(lines) - len(shown), "more remark")
    return [*shown, _Line(f"{more}: --all", "yellow")]


def _next_lines(group: GroupFit, next_command: str) -> list[_Line]:
    """What to run next."""
    lines = [
        _Line(sentence(conclusion, group.axis))
        for conclusion in group.conclusions
        if conclusion.code not in (*GRAVE, *EXPLAINED)
    ]
    if not lines and group.analysis.chosen:
        lines.append(_Line(f"next: {next_command}"))
    return lines


def _table_cells(group: GroupFit) -> list[str | Text]:
    """One group, in the order of SUMMARY_COLUMNS."""
    analysis = group.analysis
    row = analysis.chosen or analysis.row("paper")
    assert row is not None
    law = row.name if row.fit.status != NOT_IDENTIFIED else "none"
    unseen = analysis.unseen or row.checks[EDGE]
    return [
        # In which rich takes no brackets for markup
        Text(group.name),
        law,
        str(len(group.cells)),
        number(row.fit.parameters.get("alpha"), ".3f"),
        number(row.fit.parameters.get("beta"), ".3f"),
        number(row.fit.mape, ".2f"),
        number(unseen.mape, ".2f"),
    ]


def _shared_remarks(groups: Sequence[GroupFit]) -> list[_Line]:
    """Why groups have no law, and their warnings: each kind once, with the words of one group."""
    remarks_of: dict[str, list[tuple[GroupFit, Finding]]] = {}
    for group in groups:
        remarks = [remark for remark in group.warnings if remark.code not in NOTES]
        reason = group.analysis.paper.finding
        if group.analysis.paper.status == NOT_IDENTIFIED and reason is not None:
            remarks = [reason, *remarks]
        for remark in remarks:
            remarks_of.setdefault(remark.code, []).append((group, remark))

    lines = []
    for remarked in remarks_of.values():
        first, remark = remarked[0]
        said = sentence(remark, first.axis)
        others = {group.slug for group, _ in remarked} - {first.slug}
        where = first.name
        if others:
            same = all(sentence(other, group.axis) == said for group, other in remarked)
            more = counted(len(others), "other group")
            where += f" (and {more})" if same else f" ({more}: similar)"
        lines.append(_Line(f"warning: {where}: {said}", "yellow"))
    return lines


def _height(lines: Sequence[_Line]) -> int:
    return sum(len(line.wrapped()) for line in lines)


def _rendered(lines: Sequence[_Line]) -> list[Text]:
    """Lines in which rich does not take brackets for markup."""
    return [Text("\n".join(line.wrapped()), style=line.style) for line in lines]
