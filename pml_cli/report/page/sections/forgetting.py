"""Recall against forgetting, where `pml forgetting` has measured it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from pml_cli.errors import UserError
from pml_cli.io import table_records
from pml_cli.report.page.section import Section, Sources
from pml_cli.validation import Number, read_json

FILE = Path("forgetting", "forgetting.json")


class GroupFields(TypedDict, total=False):
    """What is read of a cell's means in forgetting.json."""

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
    """A point a cell; or how to measure it."""
    notes: list[str] = []
    points = []
    for path in sources.paths:
        points += _points(path, notes)
    command = f"pml forgetting {sources.paths[0]}"
    return Section(
        name="forgetting",
        title="Recall against forgetting",
        context={"command": command, "measured": bool(points), "notes": notes},
        data=points or None,
    )


def _points(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    file = path / FILE
    if not file.is_file():
        return []
    try:
        content = read_json(file, TypeAdapter(ReportFields), "run pml forgetting again")
    except UserError as error:
        notes.append(str(error))
        return []
    groups = pd.DataFrame(content["groups"]).reindex(columns=list(GroupFields.__annotations__))
    measured = groups.dropna(subset=["harm", "recall"])
    return table_records(measured)
