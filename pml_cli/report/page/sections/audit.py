"""What the page stands on: cells that no law uses and why, settings, versions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from pml_cli import __version__
from pml_cli.errors import UserError
from pml_cli.format import counted
from pml_cli.report.page.section import Section, Sources
from pml_cli.results.folder import RunFolder
from pml_cli.validation import load_json, shown

# Failed runs that are named; the others are counted.
MOST_FAILURES = 50

# Of env.json, beside its versions.
ENVIRONMENT = ("platform", "device", "dtype", "commit")

# Entries that are shown, and different values of one that are named.
MOST_ENTRIES = 40
MOST_VALUES = 5

COLUMNS = ("id", "rank", "target_tokens", "base_loss", "final_loss", "delta_loss")
RECALL = ("token_accuracy", "exact_match")


def section(sources: Sources) -> Section:
    """Counts of each reason, and a table of all cells that can be searched."""
    cells = sources.cells
    failures = list(sources.failures.items())
    return Section(
        name="audit",
        title="What this stands on",
        context={
            "reasons": list(sources.left_out.items()),
            "cells": len(cells),
            "kept": int(cells["kept"].sum()),
            "failures": failures[:MOST_FAILURES],
            "more_failures": max(0, len(failures) - MOST_FAILURES),
            "settings": [
                (group.name, _settings(group.key), len(group.cells)) for group in sources.groups
            ],
            "versions": _versions(sources.runs["folder"]),
            "paths": [str(path) for path in sources.paths],
            "pml": __version__,
        },
        data=_table(cells),
    )


def _settings(key: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in key.items() if not pd.isna(value) and value != ""]


def _versions(folders: pd.Series) -> list[tuple[str, list[str]]]:
    """Values that occur for each entry of env.json, with their numbers of runs."""
    counts_of: dict[str, Counter[str]] = {}
    for path in map(Path, folders):
        for name, value in _environment(RunFolder(path.parent, path.name)).items():
            counts_of.setdefault(shown(name), Counter())[shown(value)] += 1
    return [
        (name, [f"{value} ({counted(n, 'run')})" for value, n in counts.most_common(MOST_VALUES)])
        for name, counts in counts_of.items()
    ]


def _environment(folder: RunFolder) -> dict[str, Any]:
    """Versions and machine of a run; nothing where env.json cannot be read."""
    try:
        content = load_json(folder.env, "")
    # Other reports say what cannot be read.
    except UserError:
        return {}
    if not isinstance(content, dict):
        return {}
    versions = content.get("versions")
    known = dict(versions) if isinstance(versions, dict) else {}
    return known | {name: content[name] for name in ENVIRONMENT if content.get(name)}


def _table(cells: pd.DataFrame) -> dict[str, Any]:
    columns = [*COLUMNS, *RECALL, "reason"]
    table = cells.reindex(columns=columns)
    return {name: table[name].tolist() for name in columns}
