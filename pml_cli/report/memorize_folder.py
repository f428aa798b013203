"""The files of `pml memorize`: memorize.json, facts.csv, the figure, the adapter's README.md.

memorize.json, format 1: `command`, `settings`, `limits`, `answer`, `run` (the chosen one), `cells`
(every one that was tried), `forgetting` and `proof` of the chosen run, `advice`, `seconds`, `out`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd

from pml_cli.evaluation.proof import Proof
from pml_cli.io import jsonable, write_csv, write_json, write_text
from pml_cli.report import folder_index
from pml_cli.report.figures.registry import write_figure
from pml_cli.report.memorize_report import MemorizeReport
from pml_cli.report.memorize_text import SECTION, readme_section
from pml_cli.results.folder import ADAPTER

# Of memorize.json.
FORMAT = 1

README_FILE = "README.md"

# What the section about the answer stands before in README.md.
NEXT_SECTION = "## How it was made"


def report_content(report: MemorizeReport) -> dict[str, Any]:
    """memorize.json."""
    cells = []
    for cell in report.cells:
        fields = dataclasses.asdict(cell.trial)
        cells.append({**fields, "run": cell.run, "seconds": cell.seconds})

    content: dict[str, Any] = {
        "format": FORMAT,
        "command": report.command,
        "limits": report.limits,
        "answer": report.answer,
        "run": report.run,
        "forgetting": report.forgetting,
        "proof": None if report.proof is None else report.proof.fields(),
        "advice": report.advice,
        "cells": cells,
        "seconds": report.seconds,
        "out": report.out,
        "settings": report.settings,
    }
    plain: dict[str, Any] = jsonable(content)
    return plain


def unanswered(command: str, reason: str) -> dict[str, Any]:
    """What `--json` prints where there is no adapter to hand over; nothing of it is written.

    Args:
        command: that was given.
        reason: why there is none.
    """
    return {"format": FORMAT, "command": command, "answer": None, "reason": reason}


def write(report: MemorizeReport, *, figures: bool = True) -> list[str]:
    """Write the files; the adapter's README.md where the adapter lies in `report.out`.

    Args:
        report: the answer.
        figures: whether to draw.

    Returns:
        The names of the files in `report.out`.
    """
    names = ["memorize.json"]
    if report.proof is not None:
        write_csv(report.out / "facts.csv", facts_table(report.proof))
        names.append("facts.csv")

    if figures:
        from pml_cli.report.figures.memorize import memorize_figure

        names += write_figure(report.out / "memorize", memorize_figure(report))

    readme = report.out / ADAPTER / README_FILE
    if readme.is_file():
        write_text(readme, _with_section(readme.read_text("utf-8"), report))
    # Last: where it is, the others are.
    write_json(report.out / "memorize.json", report_content(report))
    return [*names, *folder_index.write(report.out)]


def facts_table(proof: Proof) -> pd.DataFrame:
    """facts.csv: a row a fact, `first_wrong` its first wrong token, counted from 0."""
    rows = []
    for fact in proof.facts:
        rows.append(
            {
                "question": fact.question,
                "answer": fact.answer,
                "whole": fact.whole,
                "written": fact.written,
                "first_wrong": fact.position,
                "expected": fact.expected,
                "got": fact.got,
                "least_margin": fact.least_margin,
                "p": 10**fact.log10_p,
                "log10_p": fact.log10_p,
                "variants": fact.variants,
                "variants_exact": fact.variants_exact,
            }
        )
    table = pd.DataFrame(rows)
    # Whole numbers, also where some are missing.
    table["first_wrong"] = table["first_wrong"].astype("Int64")
    return table


def _with_section(readme: str, report: MemorizeReport) -> str:
    """README.md of an adapter with what it knows and what it harms."""
    head, marker, rest = readme.rpartition(NEXT_SECTION)
    # Of a README.md that is none of ours, at the end.
    if not marker:
        head, rest = f"{readme.rstrip()}\n\n", ""
    # Of an earlier call.
    head = head.partition(f"\n{SECTION}\n")[0].rstrip()
    after = f"\n\n{marker}{rest}" if marker else "\n"
    return f"{head}\n\n{readme_section(report)}{after}"
