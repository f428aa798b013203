"""The files of `pml forgetting`: forgetting.csv, forgetting.json, and figures.

forgetting.json, format 1: `settings`, `meanings` (name: meaning), `groups` (`mean_table`), and
`runs`, an entry for each run as it was measured (`forgetting_runs.entry_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pml_cli.analysis.forgetting import pareto_front
from pml_cli.config.reports import Forgetting
from pml_cli.evaluation.forgetting_runs import FILE_NAME, FORMAT
from pml_cli.io import table_records, write_csv, write_json
from pml_cli.report import folder_index
from pml_cli.report.figures.registry import write_figure
from pml_cli.results.groups import file_stems

# What the runs of one figure share.
FIGURE = ["model", "data", "adapter", "seqlen"]

MEANINGS = {
    "harm": "loss with the adapter - loss of the base model, nats per token of text it has not "
    "learned; of a run the mean over prose, docs, code and chat",
    "kl": "KL(base || adapted), nats per token",
    "changed": "share of tokens of which the model's first choice is another one",
    "recall": "share of samples of which every token is the model's first choice; of a cell the "
    "mean over texts, each with the same weight",
    "own": "text that the base model has written itself, at temperature 1",
    "front": "no other cell has as much recall with less harm, or more recall with as much",
}


def report_content(
    entries: Sequence[dict[str, Any]], settings: Forgetting, means: pd.DataFrame
) -> dict[str, Any]:
    """forgetting.json.

    Args:
        entries: of each run as it was measured.
        means: `forgetting.mean_table`.
    """
    fronts = [pareto_front(cells) for _, cells in means.groupby(FIGURE, sort=False)]
    # `runs` alone is read back; the rest is for the reader of the file.
    return {
        "format": FORMAT,
        "settings": {"kinds": settings.kinds, "text": settings.text},
        "meanings": MEANINGS,
        "groups": table_records(means),
        "front": table_records(pd.concat(fronts)),
        "runs": list(entries),
    }


def write(
    out: Path,
    content: dict[str, Any],
    other_entries: Sequence[dict[str, Any]],
    table: pd.DataFrame,
    means: pd.DataFrame,
    *,
    figures: bool,
) -> list[str]:
    """Write the files of the report.

    Args:
        content: from `report_content`.
        other_entries: earlier measurements of runs that this report does not cover; they stay in
            forgetting.json.
        table: `forgetting.measurement_table`.
        means: `forgetting.mean_table`.
        figures: whether to draw.

    Returns:
        The names of the files.
    """
    all_entries = [*content["runs"], *other_entries]
    write_json(out / FILE_NAME, {**content, "runs": all_entries})
    write_csv(out / "forgetting.csv", table)

    names = ["forgetting.csv", FILE_NAME]
    if figures:
        names += write_figures(out, table, means)
    return [*names, *folder_index.write(out)]


def write_figures(out: Path, table: pd.DataFrame, means: pd.DataFrame) -> list[str]:
    """A figure for each model, kind of data, adapter and length; returns the names of the files."""
    from pml_cli.report.figures.forgetting import forgetting_figure

    groups = list(means.groupby(FIGURE, sort=False))
    names: list[str] = []
    stems = file_stems("forgetting", [key for key, _ in groups])
    for stem, (key, group) in zip(stems, groups, strict=True):
        same = (table[FIGURE] == pd.Series(dict(zip(FIGURE, key, strict=True)))).all(axis=1)
        names += write_figure(out / stem, forgetting_figure(table[same], group))
    return names
