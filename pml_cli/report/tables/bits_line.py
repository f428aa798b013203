"""Parameters against bits: what `pml fit` prints of the line, and `pml predict` of a new model."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from pml_cli.format import counted, number, span
from pml_cli.law.bits_line import CLOSE, BitsLine
from pml_cli.report.tables.layout import plain_table

# What N of a line is.
SIZES = {"parameters": "trainable", "effective": "effective"}

# Below this p, groups do not share what is tested.
SIGNIFICANT = 0.05


def line_table(line: BitsLine) -> RenderableType:
    """The line, each group against it, and whether they share it."""
    head = (
        f"{SIZES[line.size]} parameters at which half is recalled exactly, against bits of the "
        f"target ({line.loss}):"
    )
    table = plain_table("group", "over the line", "95 % interval", "exponent", text=("group",))
    for group in line.groups:
        table.add_row(
            group.name,
            number(group.ratio, ".2f"),
            span(group.low, group.high, ".2f"),
            number(group.exponent, ".2f"),
        )

    lines = [head, formula(line), ""]
    return Group(*map(Text, lines), table, *map(Text, _verdict(line)))


def formula(line: BitsLine) -> str:
    """The line in numbers."""
    return (
        f"N = {line.c:.3g} bits^{line.s:.2f} (exponent {span(line.s_low, line.s_high, '.2f')} over "
        f"{counted(line.texts, 'text')}), {line.least_bits:,.0f} to {line.most_bits:,.0f} bits"
    )


def _verdict(line: BitsLine) -> list[str]:
    """Whether one line serves all groups."""
    close = f"{line.close} of {counted(line.groups, 'group')} within {100 * CLOSE:.0f} %"
    tests = ", ".join(
        f"{what}: {_test_text(p)}"
        for what, p in (
            ("one height", line.same_level_p),
            ("one exponent", line.same_exponent_p),
        )
    )
    lines = [f"{close}; F over texts, {tests}"]
    if line.texts < 2:
        lines.append("one text: a line through its points, which nothing tests")
    if line.outside:
        what = counted(line.outside, "threshold")
        lines.append(f"{what} below or above all ranks tried: left out")
    return lines


def _test_text(p: float) -> str:
    """What a test says; of too few texts it says nothing."""
    if math.isnan(p):
        return "not tested"
    return f"{'refuted' if p < SIGNIFICANT else 'not refuted'} (p = {p:.2g})"


def new_model_lines(line: BitsLine, answer: dict[str, Any]) -> list[str]:
    """What the line says of a model or placement that is not among its groups.

    Args:
        answer: as from `new_model_answer` of `pml predict`.
    """
    lines = [
        f"a new model or placement, by the line of {counted(line.groups, 'group')} ({line.loss})",
        formula(line),
    ]
    for row in answer["rows"]:
        band = span(row["rank"]["low"], row["rank"]["high"], "g", missing="no band")
        beyond = f"; {row['outside']}" if row["outside"] else ""
        lines.append(
            f"length {row['length']:g}, {row['bits']:,.0f} bits: rank "
            f"{number(row['rank']['value'], 'g')} ({band}) for even chance of exact recall{beyond}"
        )
    lines.append("extrapolation between models: the band is the spread of those fitted")
    if line.texts < 2:
        lines.append("one text: no band, as nothing tells how texts differ")
    return lines
