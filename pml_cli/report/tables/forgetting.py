"""What `pml forgetting` prints: recall beside harm, harm by kind of text, the best in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pml_cli.analysis.deployment import SETUP
from pml_cli.analysis.forgetting import least_harm, pareto_front
from pml_cli.format import MISSING, number, percent
from pml_cli.report.forgetting_text import meaning_of_harm
from pml_cli.report.tables.layout import plain_table, titled
from pml_cli.report.tables.setups import setup_title

# Of the samples, the share that must be recalled for a cell to be named.
ENOUGH_RECALL = 0.95


def forgetting_report(means: pd.DataFrame, kinds: Sequence[str]) -> Iterator[RenderableType]:
    """The tables of each setup, and what stands out.

    Args:
        means: `forgetting.mean_table`.
        kinds: of text, those that were measured.
    """
    for values, group in means.groupby(SETUP, sort=False):
        setup = dict(zip(SETUP, values, strict=True))
        yield Text(setup_title(setup), style="bold")
        yield titled("recall, and harm to other text (nats/token added)", _harm_table(group))
        yield titled("harm by kind of text", _kind_table(group, kinds))
        yield from map(Text, _sentences(group))
        yield Text("")


def _cell_texts(row: dict[Any, Any]) -> list[str]:
    """Loss, penalty and rank of a cell."""
    # The prefix that all of them share would cost a column's width.
    method = row["method"].removeprefix("memft_")
    penalty = row["penalty"].removeprefix("keep=") or "none"
    return [method, penalty, f"{row['rank']:g}"]


def _harm_table(means: pd.DataFrame) -> Table:
    columns = ["loss", "keep", "rank", "runs", "whole %", "harm", "95 %", "KL", "changed %"]
    # Nine columns in 80.
    table = plain_table(*columns, text=["loss", "keep"], folded=[], gap=1)
    for row in means.to_dict("records"):
        interval = MISSING
        if pd.notna(row["harm_low"]):
            interval = f"{harm_text(row['harm_low'])} to {harm_text(row['harm_high'])}"
        table.add_row(
            *_cell_texts(row),
            str(row["runs"]),
            percent(row["recall"]),
            harm_text(row["harm"]),
            interval,
            harm_text(row["kl"]),
            number(100 * row["changed"], ".0f"),
        )
    return table


def _kind_table(means: pd.DataFrame, kinds: Sequence[str]) -> Table:
    table = plain_table("loss", "keep", "rank", *kinds, text=["loss", "keep"], folded=[])
    for row in means.to_dict("records"):
        harms = [harm_text(row.get(f"harm_{kind}")) for kind in kinds]
        table.add_row(*_cell_texts(row), *harms)
    return table


def harm_text(value: float | None) -> str:
    """Nats per token: two decimals, and three below 0.1."""
    small = value is not None and abs(value) < 0.0995
    return number(value, ".3f" if small else ".2f")


def _sentences(means: pd.DataFrame) -> list[str]:
    """The cells that are best: of each loss, and of all."""
    least = least_harm(means, ENOUGH_RECALL)
    if least.empty:
        share = f"{100 * ENOUGH_RECALL:.0f} %"
        front = pareto_front(means)
        if front.empty:
            return ["harm: not measured on all of prose, docs, code and chat"]
        best = front.iloc[-1].to_dict()
        if not best["recall"]:
            return ["no cell recalls a sample whole"]
        recalled = f"{percent(best['recall'])} % of the samples"
        return [f"no cell recalls {share} of its samples; the most: {_named(best)}, {recalled}"]

    lines = [f"least harm of each loss, {100 * ENOUGH_RECALL:.0f} % recalled or more:"]
    for row in least.to_dict("records"):
        meaning = meaning_of_harm(row["harm"], row["changed"])
        lines.append(f"  {_named(row)}: {harm_text(row['harm'])} nats: {meaning}")
    return lines


def _named(row: dict[Any, Any]) -> str:
    method, penalty, rank = _cell_texts(row)
    keep = f", loss.keep {penalty}" if row["penalty"] else ""
    return f"{method}{keep}, rank {rank}"
