"""The answer of `pml memorize`: six lines."""

from __future__ import annotations

from rich.console import RenderableType

from pml_cli.report.memorize_folder import MemorizeReport


def answer_lines(report: MemorizeReport) -> list[RenderableType]:
    """The answer on the terminal: rank, facts, forgetting, paraphrases, time, folder."""
    raise NotImplementedError
