"""Recall against forgetting, where `pml forgetting` has measured it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from typing_extensions import TypedDict

from pml_cli.errors import UserError
from pml_cli.io import table_records
from pml_cli.report.page.section import Section, Sources
from pml_cli.validation import Number, read_json

# Of a folder of runs, and of folders of them: where `pml forgetting` and `pml memorize` write.
PLACES = ("forgetting.json", "*/forgetting.json", "*/*/forgetting.json")


# What the cells of one chart may differ in; the model is told apart by the colour.
SETUP = ("model", "data", "adapter", "layer", "setting", "steps", "seqlen")


class GroupFields(TypedDict, total=False):
    """What is read of a cell's means in forgetting.json."""

    model: str | None
    data: str | None
    adapter: str | None
    layer: Number | str | None
    setting: str | None
    steps: Number | None
    loss: str
    rank: Number | None
    seqlen: Number | str | None
    harm: Number | None
    recall: Number | None
    method: str
    keep: Number | None


class ReportFields(TypedDict):
    """What is read of forgetting.json."""

    groups: list[GroupFields]


def section(sources: Sources) -> Section:
    """A point a cell, a colour a model and method; or how to measure it."""
    notes: list[str] = []
    files = {file for path in sources.paths for place in PLACES for file in path.glob(place)}
    points = [point for file in sorted(files) for point in _points(file, notes)]
    command = f"pml forgetting {sources.quoted_paths}"
    return Section(
        name="forgetting",
        title="Recall against forgetting",
        context={
            "command": command,
            "measured": bool(points),
            "notes": notes,
            "differing": _differing(points),
        },
        data=points or None,
    )


def _differing(points: list[dict[str, Any]]) -> list[str]:
    """In what the cells differ that lie in one chart, but for the loss and the rank."""
    return [name for name in SETUP if len({str(point[name]) for point in points}) > 1]


def _points(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The cells of one report; of a damaged one a note."""
    try:
        content = read_json(file, ReportFields, "run pml forgetting again")
    except UserError as error:
        notes.append(str(error))
        return []
    groups = pd.DataFrame(content["groups"]).reindex(columns=list(GroupFields.__annotations__))
    measured = groups.dropna(subset=["harm", "recall"])
    return table_records(measured)
