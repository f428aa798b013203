"""What adapters hold exactly: a row for each size."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from pml_cli.analysis.capacity import KIND, capacity_table, parameter_lines
from pml_cli.analysis.growth import BUDGET, WHOLE_TEXT
from pml_cli.format import counted, duration_text, number, span
from pml_cli.report.tables.layout import plain_table, titled

# What stands in the column of failures where none has failed.
BOUND = {WHOLE_TEXT: "whole text", BUDGET: "out of passes"}


def capacity_report(held: pd.DataFrame) -> Iterator[RenderableType]:
    """Tables of every kind of adapter, and its line of parameters against bits.

    Args:
        held: a row an adapter that has grown.
    """
    sizes = capacity_table(held)
    lines = parameter_lines(held)
    for key, group in sizes.groupby(KIND, dropna=False, sort=False):
        rows = group.to_dict("records")
        yield titled(_kind_text(sizes, key), _size_table(rows))
    for line in lines.to_dict("records"):
        yield Text(_line_text(line))

    bounded = held[held["ended"].isin(BOUND)]
    for reason, group in bounded.groupby("ended"):
        text = f"warning: of {counted(len(group), 'adapter')} the tokens are a lower bound"
        yield Text(f"{text}: {BOUND[str(reason)]}", style="yellow")


def _size_table(rows: Sequence[Mapping[Hashable, Any]]) -> RenderableType:
    table = plain_table(
        "rank", "parameters", "texts", "tokens", "95 %", "bits", "bits/N", "passes", "time"
    )
    for row in rows:
        table.add_row(
            str(row["rank"]),
            f"{row['parameters']:,}",
            str(row["texts"]),
            number(row["tokens"], ".1f"),
            span(row["tokens_low"], row["tokens_high"], ".1f"),
            number(row["bits"], ",.0f"),
            number(row["bits"] / row["parameters"], ".2f"),
            number(row["passes"], ",.0f"),
            duration_text(row["seconds"]),
        )
    return table


def _kind_text(sizes: pd.DataFrame, key: Sequence[Any]) -> str:
    """What tells a kind of adapter from the others of the report."""
    shown = []
    for name, value in zip(KIND, key, strict=True):
        # What all share, but for the names that say what this is.
        if sizes[name].nunique(dropna=False) == 1 and name not in ("model", "data", "loss"):
            continue
        bare = name in ("model", "data", "adapter", "loss")
        shown.append(str(value) if bare else f"{name} {value}")
    return ", ".join(shown)


def _line_text(line: Mapping[Hashable, Any]) -> str:
    power = f"N = {line['c']:.3g} bits^{line['s']:.3f}"
    interval = span(line["s_low"], line["s_high"], ".3f", missing="one text: no interval")
    return f"{line['loss']}: {power} ({interval})"
