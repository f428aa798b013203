"""The files of `pml lasting`: lasting.csv, the tables of lasting.json, and a figure."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from pml_cli.report.figures.registry import write_figure


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
    for key, group in groups:
        stem = "lasting"
        if len(groups) > 1:
            stem = re.sub(r"[:/]", "-", "-".join(["lasting", *map(str, key)]))
        names += write_figure(out / stem, lasting_figure(group))
    return names
