"""The files of `pml capacity`: capacity.json, capacity.csv, the figure.

capacity.json, format 1: `runs` (every adapter that has grown, with the id of the run that holds
most), `sizes` (means over texts by size), `lines` (N = c bits^s), `resolution`, `passes`, `out`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pml_cli.analysis.capacity import capacity_table, parameter_lines
from pml_cli.config.capacity import CapacityRequest
from pml_cli.io import jsonable, table_records, write_csv, write_json
from pml_cli.report import folder_index
from pml_cli.report.figures.registry import write_figure

# Of capacity.json.
FORMAT = 1


def report_content(held: pd.DataFrame, asked: CapacityRequest) -> dict[str, Any]:
    """capacity.json.

    Args:
        held: a row an adapter that has grown.
        asked: what was asked for.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "runs": table_records(held),
        "sizes": table_records(capacity_table(held)),
        "lines": table_records(parameter_lines(held)),
        "resolution": asked.resolution,
        "passes": asked.passes,
        "out": asked.request.out,
    }
    plain: dict[str, Any] = jsonable(content)
    return plain


def write(out: Path, content: dict[str, Any], held: pd.DataFrame) -> list[str]:
    """Write the files.

    Args:
        out: the results folder.
        content: of capacity.json.
        held: a row an adapter that has grown.

    Returns:
        The names of the files.
    """
    from pml_cli.report.figures.capacity import capacity_figure

    write_csv(out / "capacity.csv", held)
    names = write_figure(out / "capacity", capacity_figure(held))
    # Last: where it is, the others are.
    write_json(out / "capacity.json", content)
    return ["capacity.json", "capacity.csv", *names, *folder_index.write(out)]
