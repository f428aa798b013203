"""Recall against forgetting, where `pml forgetting` or `pml memorize` has measured it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from pml_cli.analysis.forgetting import mean_table, measurement_table
from pml_cli.data.generic_text import KINDS
from pml_cli.errors import UserError
from pml_cli.evaluation.finished_runs import ForgettingEntry
from pml_cli.evaluation.forgetting_runs import FILE_NAME
from pml_cli.format import counted
from pml_cli.io import table_records
from pml_cli.report.page.section import Section, Sources
from pml_cli.validation import Count, Index, Lines, Number, Share, Size, Text, read_json

# Of a folder of runs, and of folders of them: where `pml forgetting` and `pml memorize` write.
PLACES = (FILE_NAME, f"*/{FILE_NAME}", f"*/*/{FILE_NAME}")

# What the cells of one chart may differ in; the model is told apart by the colour.
SETUP = ("model", "data", "adapter", "layer", "setting", "steps", "seqlen")

# What the page has of a cell; `keep` is the mean weight of its penalty.
POINT = [*SETUP, "method", "rank", "keep", "harm", "recall"]


class RunFields(ForgettingEntry):
    """What is read of a run in forgetting.json: what it is, recalls and harms."""

    model: Text
    data: Text
    data_seed: Index
    adapter: Text
    layer: Count | list[Count]
    setting: Lines | None
    rank: Size
    seqlen: Size
    samples: Size
    seed: Index
    lr: Number
    steps: Size
    exact_match: Share | None
    method: Text
    penalty: Text
    keep: Number | None
    asked_keep: Number
    asked_harm: Number


class ReportFields(TypedDict):
    """What is read of forgetting.json: what both commands write.

    The means of `pml forgetting` are made anew: `pml memorize` writes none, and removes them where
    it adds a run.
    """

    runs: list[RunFields]


def section(sources: Sources) -> Section:
    """A point a cell, a colour a model and method; or how to measure it."""
    notes: list[str] = []
    files = {file for path in sources.paths for place in PLACES for file in path.glob(place)}
    runs_of = {file: _runs(file, notes) for file in sorted(files)}
    points = [point for runs in runs_of.values() for point in _points(runs)]
    partly = [note for file, runs in runs_of.items() for note in _partly_measured(file, runs)]
    return Section(
        name="forgetting",
        title="Recall against forgetting",
        context={
            "command": f"pml forgetting {sources.quoted_paths}",
            "measured": bool(points),
            "notes": notes,
            "partly": partly,
            "differing": _differing(points),
        },
        data=points or None,
    )


def _differing(points: list[dict[str, Any]]) -> list[str]:
    """In what the cells differ that lie in one chart, but for the loss and the rank."""
    return [name for name in SETUP if len({str(point[name]) for point in points}) > 1]


def _runs(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The runs of one forgetting.json; of a damaged one a note."""
    try:
        content = read_json(file, ReportFields, "run pml forgetting again")
    except UserError as error:
        notes.append(str(error))
        return []
    runs: list[dict[str, Any]] = content["runs"]
    return runs


def _points(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells whose recall and harm are known, each the mean over its texts and seeds."""
    measured = [run for run in runs if None not in (run["exact_match"], run["harm"])]
    if not measured:
        return []
    return table_records(mean_table(measurement_table(measured))[POINT])


def _partly_measured(file: Path, runs: list[dict[str, Any]]) -> Iterator[str]:
    """A line where runs have no harm, because some of KINDS were not measured."""
    without = [run for run in runs if run["harm"] is None]
    if not without:
        return
    lacking = [kind for kind in KINDS if any(kind not in run["kinds"] for run in without)]
    if lacking:
        yield (
            f"{file}: {counted(without, 'run')} not measured on {', '.join(lacking)}; "
            f"harm is the mean over {', '.join(KINDS)}"
        )
