"""The report folder of a fit: law.json, cells.csv, law.tex and figures (PNG, SVG and PDF each).

`law`, the page of a group, stands beside the tables; with several groups it is `law-<slug>`. The
other figures are in figures/, with several groups in figures/<slug>/ (`figures/registry.py`). A
figure that the cells do not carry is left out, and one of that name from an earlier fit removed.

law.tex has a table a group, to be \\input (`latex.py`), and index.md says what each file shows
(`folder_index.py`). The schema of law.json: `law/law_json.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pml_cli import io
from pml_cli.config.reports import Fit, LawSettings
from pml_cli.errors import UserError
from pml_cli.law import law_json
from pml_cli.law.fit_groups import GroupFit
from pml_cli.law.observations import SIZE_AXES
from pml_cli.report import folder_index, latex
from pml_cli.report.figures.law_view import View
from pml_cli.report.law_text import sentence
from pml_cli.results.groups import file_stems

if TYPE_CHECKING:
    from pml_cli.law.bits_line import BitsLine
    from pml_cli.law.group_comparison import Comparison

# What a fit sees of a cell
MEASURED = ("rank", "target_tokens", "base_loss", "final_loss", "delta_loss")

# Columns of cells.csv, before the predictions of each law; and the size that the laws are about.
FIRST_COLUMNS = (
    "group",
    "id",
    "rank",
    "target_tokens",
    "data_seed",
    "seed",
    "base_loss",
    "final_loss",
    "delta_loss",
    "predicted",
    "residual",
    "kept",
    "reason",
    "token_accuracy",
    "exact_match",
    "folder",
)


def write(
    out: Path,
    groups: list[GroupFit],
    settings: Fit,
    comparisons: Sequence[Comparison] = (),
    lines: Sequence[tuple[BitsLine, pd.DataFrame]] = (),
) -> list[str]:
    """Every file of the report folder, each complete or absent; returns their names.

    Raises:
        UserError: the folder cannot be written.
    """
    table = cell_table(groups)
    content = law_content(groups, settings, comparisons, [line for line, _ in lines])
    # Everything is computed before the first file is written.
    try:
        # First: by it the folder is known as pml's, should the rest be cut off.
        io.write_text(out / law_json.FILE_NAME, law_json.to_text(content))
        io.write_csv(out / "cells.csv", table)
        io.write_text(out / "law.tex", _tex(groups))
        figures = _draw(out, groups, comparisons) if settings.figures else []
        figures += _draw_lines(out, lines) if settings.figures else []
        index = folder_index.write(out)
    except OSError as error:
        raise UserError(f"out={out}: cannot write the report ({error.strerror})") from error
    return [law_json.FILE_NAME, "cells.csv", "law.tex", *figures, *index]


def law_content(
    groups: list[GroupFit],
    settings: LawSettings,
    comparisons: Sequence[Comparison] = (),
    lines: Sequence[BitsLine] = (),
) -> law_json.LawFile:
    """The content of law.json."""
    table = cell_table(groups)
    return law_json.law_file(
        groups,
        comparisons,
        sentence,
        lines=lines,
        inputs={"cells": len(table), "sha256": _hash(table)},
        saturated_below=settings.saturated_below,
        axis=SIZE_AXES[settings.x],
    )


def cell_table(groups: Sequence[GroupFit]) -> pd.DataFrame:
    """The content of cells.csv: every cell of every group, with the predictions of each law."""
    cells = pd.concat([group.cells.assign(group=group.slug) for group in groups])
    first = list(FIRST_COLUMNS)
    # The formula of a law about another size than the rank names its column.
    for column in dict.fromkeys(group.axis.column for group in groups):
        if column not in first:
            first.insert(first.index("rank") + 1, column)
    # Those of the paper's law have no suffix and stand among the first columns.
    by_law = [name for name in cells if str(name).startswith(("predicted_", "residual_"))]
    table: pd.DataFrame = cells[[*first, *by_law]]
    return table


def _tex(groups: list[GroupFit]) -> str:
    # One group needs no name in its label.
    several = len(groups) > 1
    tables = [
        latex.table(
            group.name,
            group.slug if several else "",
            group.analysis,
            group.observed,
            group.axis,
        )
        for group in groups
    ]
    return latex.document(tables)


def _draw(out: Path, groups: list[GroupFit], comparisons: Sequence[Comparison]) -> list[str]:
    """Draw every figure of the report; returns the names of its files (`write_group_figures`)."""
    from pml_cli.report.figures.registry import of_report, write_figure, write_group_figures

    views: dict[str, Any] = {
        group.slug: View(
            name=group.name,
            cells=group.cells,
            observed=group.observed,
            analysis=group.analysis,
            axis=group.axis,
        )
        for group in groups
    }
    names = write_group_figures(out, "law", views)

    forest = of_report("comparison")["comparison"]
    identified = [comparison for comparison in comparisons if comparison.groups]
    for number, comparison in enumerate(identified, 1):
        names += write_figure(out / f"comparison-{number}", forest.draw(comparison))
    return names


def _draw_lines(out: Path, lines: Sequence[tuple[BitsLine, pd.DataFrame]]) -> list[str]:
    """Parameters against bits, a figure for each loss; the names of the files."""
    from pml_cli.report.figures.bits_line import bits_figure
    from pml_cli.report.figures.registry import write_figure

    names = []
    stems = file_stems("bits", [[line.loss] for line, _ in lines])
    for stem, (line, points) in zip(stems, lines, strict=True):
        names += write_figure(out / stem, bits_figure(line, points))
    return names


def _hash(table: pd.DataFrame) -> str:
    """SHA-256 of what the fit saw, independent of the order and location of the folders."""
    columns = ["group", "id", *MEASURED]
    rows = table[[*columns, "kept", "reason"]].sort_values(columns)
    return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()
