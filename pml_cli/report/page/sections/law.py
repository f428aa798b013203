"""The law of each group: gain against length, one line a rank with its band, and as a surface.

On paper, and where a browser has no WebGL, a contour map stands in place of the surface.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pandas as pd

from pml_cli.law.fit_groups import GroupFit
from pml_cli.law.fitted_law import FittedLaw
from pml_cli.law.inverse import with_band
from pml_cli.report.law_text import sentence
from pml_cli.report.page.section import Section, Sources

# Ranks that have a line, and lengths at which a line is computed.
MOST_LINES = 9
LINE_POINTS = 40

# Points of each axis of the surface.
SURFACE_POINTS = 24

# Groups that have a contour map: each takes about 60 kB and half a second.
MOST_PICTURES = 6
DPI = 150

# Of each cell, for the points and what is shown of one.
CELL_FIELDS = ("id", "target_tokens", "delta_loss", "base_loss", "final_loss", "reason")
SEEDS = ("data_seed", "seed")
RECALL = ("token_accuracy", "exact_match")


def section(sources: Sources) -> Section:
    """A group at a time, the largest first."""
    data = [_group(group, sources.laws.get(group.name)) for group in sources.groups]
    for entry, group in zip(data, sources.groups[:MOST_PICTURES], strict=False):
        entry["picture"] = _picture(group)
    notes = [
        {
            "name": group.name,
            "lines": [sentence(finding, group.axis) for finding in group.conclusions],
            "warnings": [sentence(finding, group.axis) for finding in group.warnings],
        }
        for group in sources.groups
    ]
    return Section(
        name="law",
        title="The memory law: gain against rank and length",
        context={"groups": [group.name for group in sources.groups], "notes": notes},
        data=data,
    )


def _group(group: GroupFit, law: FittedLaw | None) -> dict[str, Any]:
    """Cells and curves of a group."""
    cells = group.cells.reindex(columns=[*CELL_FIELDS, *SEEDS, *RECALL])
    columns = {name: cells[name].tolist() for name in cells}
    sizes = pd.to_numeric(group.cells[group.axis.column], errors="coerce")
    has_law = law is not None and law.form is not None
    return {
        "name": group.name,
        "size": group.axis.name,
        "cells": columns | {"size": sizes.tolist()},
        "formula": law.form.notation(group.axis.symbol) if law and law.form else "",
        "lines": _lines(law) if has_law and law else [],
        "surface": _surface(law) if has_law and law else None,
        "parameters": _parameters(group),
    }


def _picture(group: GroupFit) -> str:
    """The contour map as the address of an image; empty where the cells do not carry one."""
    from pml_cli.report.figures.law_view import View
    from pml_cli.report.figures.surface import surface_figure

    view = View(
        name=group.name,
        cells=group.cells,
        observed=group.observed,
        analysis=group.analysis,
        axis=group.axis,
    )
    figure = surface_figure(view)
    if figure is None:
        return ""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _parameters(group: GroupFit) -> list[dict[str, Any]]:
    """Name, value and ends of the 95 % interval of each parameter of the chosen law."""
    law = group.analysis.law
    if law is None:
        return []
    intervals = group.analysis.intervals
    return [
        {"name": name, "value": value, "interval": list(intervals.get(name, ()))}
        for name, value in law.parameters.items()
    ]


def _lines(law: FittedLaw) -> list[dict[str, Any]]:
    """The law over length at some sizes, with the 95 % band of a new cell."""
    lengths = np.geomspace(*law.lengths, LINE_POINTS)
    lines = []
    for size in _spread(law):
        predictions = [
            with_band(law.gain(size, length, law.base_losses(length))) for length in lengths
        ]
        lines.append(
            {
                "size": size,
                "length": lengths,
                "value": [prediction.value for prediction in predictions],
                "low": [prediction.low for prediction in predictions],
                "high": [prediction.high for prediction in predictions],
            }
        )
    return lines


def _spread(law: FittedLaw) -> list[float]:
    """Sizes that have a line: powers of two within those of the cells, and their ends."""
    low, high = law.ranks
    if law.axis.name != "rank":
        return [float(size) for size in np.geomspace(low, high, MOST_LINES)]
    sizes = {low, high}
    power = 1.0
    while power < high:
        if power > low:
            sizes.add(power)
        power *= 2
    ordered = sorted(sizes)
    positions = np.linspace(0, len(ordered) - 1, min(len(ordered), MOST_LINES)).round().astype(int)
    return [ordered[position] for position in positions]


def _surface(law: FittedLaw) -> dict[str, Any]:
    """The fit itself, without bands: gain of each size (rows) at each length."""
    lengths = np.geomspace(*law.lengths, SURFACE_POINTS)
    sizes = np.geomspace(*law.ranks, SURFACE_POINTS)
    base = [law.base_losses(length) for length in lengths]
    gain = [
        [law.gain(size, length, base[k])[0] for k, length in enumerate(lengths)] for size in sizes
    ]
    return {"length": lengths, "size": sizes, "gain": gain}
