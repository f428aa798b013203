"""The answer of `pml memorize`: six lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from pml_cli.report.memorize_report import MemorizeReport
from pml_cli.report.memorize_text import (
    facts_text,
    failed_lines,
    forgetting_text,
    rank_text,
    sampling_lines,
    time_text,
    variants_text,
)
from pml_cli.report.tables.layout import key_value_table


def answer_lines(report: MemorizeReport, names: Sequence[str]) -> list[RenderableType]:
    """The answer on the terminal, and below it what was not reached and what to change.

    Args:
        report: the answer.
        names: of the files in its folder.
    """
    # The same figure for print.
    shown_names = [name for name in names if not name.endswith((".svg", ".pdf"))]
    rows = [
        ("rank", rank_text(report)),
        ("text" if report.facts is None else "facts", facts_text(report)),
        ("forgetting", forgetting_text(report)),
        ("paraphrases", variants_text(report)),
        ("time", time_text(report)),
        ("folder", f"{report.out}: {', '.join(['adapter/', *shown_names])}"),
    ]
    lines: list[RenderableType] = [key_value_table(rows)]
    lines += [Text(line, style="yellow") for line in failed_lines(report.proof)]
    lines += [Text(line, style="yellow") for line in sampling_lines(report.proof)]
    lines += [Text(line, style="yellow") for line in report.advice]
    return lines
