"""Type a length, read the rank that recalls it whole: tabulated from the law of exact recall."""

from __future__ import annotations

from typing import Any

import numpy as np

from pml_cli.law.fitted_law import FittedLaw
from pml_cli.law.inverse import Question, answer, parse_target
from pml_cli.report.page.section import Section, Sources
from pml_cli.stats import Array

# Lengths in the table, from a half of the shortest to four times the longest of the cells.
POINTS = 120
BELOW = 0.5
BEYOND = 4.0


def section(sources: Sources) -> Section | None:
    """The least rank by length, for each group with a law of exact recall."""
    lengths = {group.name: np.unique(group.observed.length) for group in sources.groups}
    tables = [
        _table(law, lengths[law.name]) for law in sources.laws.values() if law.axis.name == "rank"
    ]
    data = [table for table in tables if table is not None]
    if not data:
        return None
    return Section(
        name="predictor",
        title="Which rank does a text take?",
        context={
            "groups": [table["name"] for table in data],
            "paths": sources.quoted_paths,
            "length": data[0]["trained"][1],
            "of_one_text": [table["name"] for table in data if table["texts"] == 1],
        },
        data=data,
    )


def _table(law: FittedLaw, trained: Array) -> dict[str, Any] | None:
    """The answers of one group; None where its law gives none.

    Args:
        trained: lengths of the cells, which are in the table as they are.
    """
    low, high = law.lengths
    between = np.ceil(np.geomspace(max(1, BELOW * low), BEYOND * high, POINTS))
    lengths = np.union1d(between, trained)
    question = Question(lengths=lengths.tolist())
    answered = answer(law, parse_target("verbatim"), question)
    if "reason" in answered or not answered["rows"]:
        return None

    by_chance: dict[float, dict[float, dict[str, Any]]] = {}
    for row in answered["rows"]:
        by_chance.setdefault(row["chance"], {})[row["length"]] = row
    chances = [_ranks(chance, rows) for chance, rows in sorted(by_chance.items())]
    return {
        "name": law.name,
        "length": sorted(by_chance[chances[0]["chance"]]),
        "chances": chances,
        "trained": [low, high],
        "texts": answered["texts"],
    }


def _ranks(chance: float, rows: dict[float, dict[str, Any]]) -> dict[str, Any]:
    """The least ranks for one chance of recall, by length."""
    ordered = [rows[length] for length in sorted(rows)]
    ranks = [row["rank"] for row in ordered]
    return {
        "chance": chance,
        "value": [rank["value"] for rank in ranks],
        "low": [rank["low"] for rank in ranks],
        "high": [rank["high"] for rank in ranks],
        "outside": [row["outside"] for row in ordered],
    }
