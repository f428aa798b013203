"""Heat maps over rank and length: what is recalled, what was gained, what loss is left."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pml_cli.law.fit_groups import GroupFit
from pml_cli.report.page.section import Section, Sources

# What a map may show: column, title, whether it lies within 0 and 1.
MEASURES = (
    ("token_accuracy", "share of tokens recalled", True),
    ("exact_match", "share of samples recalled whole", True),
    ("delta_loss", "gain, nats per token", False),
    ("final_loss", "loss after training, nats per token", False),
)


def section(sources: Sources) -> Section:
    """One map at a time, of one group."""
    return Section(
        name="recall",
        title="What is recalled, by rank and length",
        context={
            "groups": [group.name for group in sources.groups],
            "measures": [title for _, title, _ in MEASURES],
        },
        data={
            "measures": [
                {"column": column, "title": title, "share": share}
                for column, title, share in MEASURES
            ],
            "groups": [_group(group) for group in sources.groups],
        },
    )


def _group(group: GroupFit) -> dict[str, Any]:
    """Means over texts and seeds, a row a rank and a column a length."""
    columns = [column for column, _, _ in MEASURES]
    cells = group.cells.reindex(columns=["rank", "target_tokens", *columns])
    numbers = cells.apply(pd.to_numeric, errors="coerce").dropna(subset=["rank", "target_tokens"])
    grid = numbers.groupby(["rank", "target_tokens"])
    maps = {column: grid[column].mean().unstack() for column in columns}
    counts = grid.size().unstack()
    return {
        "name": group.name,
        "rank": counts.index.tolist(),
        "length": counts.columns.tolist(),
        "maps": {column: table.to_numpy().tolist() for column, table in maps.items()},
        "cells": counts.to_numpy().tolist(),
    }
