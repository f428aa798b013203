"""The files of `pml lasting`: lasting.csv, lasting.json, and figures.

lasting.json, format 1: `settings`, `conditions` (name: meaning), `groups` (`mean_table`),
`comparison` (`sft_comparison`), and `runs`, an entry for each run as it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pml_cli.config.reports import Lasting
from pml_cli.evaluation.conditions import CONDITIONS
from pml_cli.evaluation.lasting_runs import FORMAT
from pml_cli.io import table_records, write_csv, write_json
from pml_cli.report import folder_index
from pml_cli.report.figures.registry import write_figure
from pml_cli.results.groups import file_stems


def report_content(
    entries: Sequence[dict[str, Any]],
    settings: Lasting,
    means: pd.DataFrame,
    comparison: pd.DataFrame,
) -> dict[str, Any]:
    """lasting.json.

    Args:
        entries: of each run as it was measured.
        means: `deployment.mean_table`.
        comparison: `deployment.sft_comparison`.
    """
    # `runs` alone is read back; the rest is for the reader of the file.
    return {
        "format": FORMAT,
        "settings": {
            "text": settings.text,
            "tokens": settings.tokens,
            "decode": settings.decode,
        },
        "conditions": {condition.name: condition.meaning for condition in CONDITIONS},
        "groups": table_records(means),
        "comparison": table_records(comparison),
        "runs": list(entries),
    }


def write(
    out: Path,
    content: dict[str, Any],
    other_entries: Sequence[dict[str, Any]],
    table: pd.DataFrame,
    *,
    figures: bool,
) -> list[str]:
    """Write the files of the report.

    Args:
        content: from `report_content`.
        other_entries: earlier measurements of runs that this report does not cover; they stay in
            lasting.json.
        table: `deployment.measurement_table`.
        figures: whether to draw.

    Returns:
        The names of the files.
    """
    all_entries = [*content["runs"], *other_entries]
    write_json(out / "lasting.json", {**content, "runs": all_entries})
    write_csv(out / "lasting.csv", table)

    names = ["lasting.csv", "lasting.json"]
    if figures:
        names += write_figures(out, table)
    return [*names, *folder_index.write(out)]


def write_figures(out: Path, table: pd.DataFrame) -> list[str]:
    """The figure of each model, kind of data and adapter.

    Args:
        table: `deployment.measurement_table`.

    Returns:
        The names of the files.
    """
    from pml_cli.report.figures.lasting import lasting_figure

    groups = list(table.groupby(["model", "data", "adapter"]))
    names: list[str] = []
    stems = file_stems("lasting", [key for key, _ in groups])
    for stem, (_, group) in zip(stems, groups, strict=True):
        names += write_figure(out / stem, lasting_figure(group))
    return names
