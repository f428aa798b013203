"""What `pml memft` prints: each loss against plain fine-tuning, and the rank that recall takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pml_cli.analysis.paired import BEST_RATES, EQUAL, SOURCE
from pml_cli.format import MISSING, number
from pml_cli.report.tables.layout import plain_table

TERMS = {
    EQUAL: "equal steps and learning rate",
    BEST_RATES: (
        "equal steps, each method and length at the learning rate with the best mean accuracy "
        "(chosen on these runs)"
    ),
}
UNEQUAL_TERMS = "UNEQUAL BUDGET: steps or tokens differ, see the column budget"
COMPARISON_NOTE = (
    "n pairs; token accuracy under sft and under the loss, and the difference with its 95 % "
    "interval (paired t over texts; - for one pair, and where all differences are equal), p of a "
    "sign-flip permutation test (- for one pair); exact: samples (facts, or a text as a whole) "
    "recalled verbatim, the mean over texts, under sft and under the loss\n"
)
RANKS_NOTE = (
    "rank: at which half of the samples of a text (facts, or the text as a whole) are recalled "
    "verbatim (interpolated between the ranks tried; geometric mean over n texts; 95 % t interval "
    "of the log, none where all are equal), and its ratio to the rank under sft and memft_ot, text "
    "by text; outside: texts whose rank lies below or above all ranks tried, which count with that "
    "bound; lr: for each text the rate that is best on the other texts\n"
)
BEYOND_NOTE = (
    "under sft, under the loss; whole: greedily, from the prompt; start: tokens up to the first "
    "wrong one; from 8: the rest greedily after 8 tokens; edit: normalised edit distance of what "
    "is decoded; log10 p: chance that sampling at temperature 1 writes the whole text\n"
)

# Columns of `beyond_greedy_table`: measure, factor and format.
BEYOND_COLUMNS = {
    "whole %": ("exact_match", 100, ".0f"),
    "start %": ("prefix_share", 100, ".0f"),
    "from 8 %": ("recall_from_8", 100, ".0f"),
    "edit %": ("edit_distance", 100, ".0f"),
    "log10 p": ("log10_p", 1, ".3g"),
}


def comparison_report(comparison: pd.DataFrame) -> Iterator[RenderableType]:
    """The tables for the terms of the comparison that occur, and what they are.

    Args:
        comparison: from `paired.compare`.
    """
    for terms in comparison["terms"].unique():
        of_terms = comparison[comparison["terms"] == terms]
        yield comparison_table(of_terms)
        yield Text(f"{TERMS.get(terms, UNEQUAL_TERMS)}; {COMPARISON_NOTE}")
        # Runs of earlier versions have no other measure than exact recall.
        if (of_terms["measure"] == "log10_p").any():
            yield beyond_greedy_table(of_terms)
            yield Text(BEYOND_NOTE)


def beyond_greedy_table(comparison: pd.DataFrame) -> Table:
    """Recall by other measures than greedy exact match, of each rank and length."""
    differing = _differing(comparison)
    columns = [*differing, "rank", "l", "loss", *BEYOND_COLUMNS]
    table = plain_table(*columns, text=[*differing, "loss"], folded=differing, gap=1)

    keys = [*SOURCE, "seqlen", "rank", "method", "lr", "lr_sft"]
    for _, cell in comparison.groupby(keys, dropna=False):
        common = cell.iloc[0]
        by_measure = cell.set_index("measure")
        row = [str(common[name]) for name in differing]
        row += [_or_all(common["rank"]), str(common["seqlen"]), str(common["method"])]
        for measure, factor, spec in BEYOND_COLUMNS.values():
            row.append(_pair_text(by_measure, measure, factor, spec))
        table.add_row(*row)
    return table


def _pair_text(by_measure: pd.DataFrame, measure: str, factor: float, spec: str) -> str:
    """A measure under sft and under the loss: `100, 98`."""
    if measure not in by_measure.index:
        return MISSING
    row = by_measure.loc[measure]
    return f"{factor * row['sft']:{spec}}, {factor * row['value']:{spec}}"


def comparison_table(comparison: pd.DataFrame) -> Table:
    """Token accuracy and exact match of each rank and length, and of all ranks together."""
    # Columns that would say the same in every row are left out, to stay within 80 columns.
    differing = _differing(comparison)
    several_rates = comparison["lr"].nunique() > 1
    show_rates = several_rates or (comparison["lr"] != comparison["lr_sft"]).any()
    show_budget = not comparison["budget"].between(0.99, 1.01).all()

    columns = [*differing, "rank", "l", "loss", "n", "sft %", "acc %", "difference", "p", "exact %"]
    if show_rates:
        columns.append("lr")
    if show_budget:
        columns.append("budget")
    table = plain_table(*columns, text=[*differing, "loss"])

    keys = [*SOURCE, "seqlen", "rank", "method", "lr", "lr_sft"]
    # The rank of a row of all ranks together is missing, and must not be dropped.
    for _, cell in comparison.groupby(keys, dropna=False):
        common = cell.iloc[0]
        row = [str(common[name]) for name in differing]
        row += _comparison_cells(cell)
        if show_rates:
            same_rate = common["lr"] == common["lr_sft"]
            row.append(common["lr"] if same_rate else f"{common['lr_sft']}, {common['lr']}")
        if show_budget:
            row.append(f"x{common['budget']:.2g}")
        table.add_row(*row)
    return table


def _differing(table: pd.DataFrame) -> list[str]:
    """The columns of SOURCE in which the rows differ."""
    return [name for name in SOURCE if table[name].nunique() > 1]


def _comparison_cells(cell: pd.DataFrame) -> list[str]:
    """rank, l, loss, n, sft %, acc %, difference, p, exact %.

    Args:
        cell: the measures of one rank, length and method.
    """
    common = cell.iloc[0]
    rows = cell.to_dict("records")
    by_measure: dict[Any, Any] = {row["measure"]: row for row in rows}
    accuracy = by_measure["token_accuracy"]
    exact = by_measure["exact_match"]
    half_width = 100 * (accuracy["high"] - accuracy["low"]) / 2

    return [
        _or_all(common["rank"]),
        str(common["seqlen"]),
        str(common["method"]),
        str(accuracy["pairs"]),
        f"{100 * accuracy['sft']:.1f}",
        f"{100 * accuracy['value']:.1f}",
        f"{100 * accuracy['difference']:+.1f} ± {number(half_width, '.1f')}",
        number(accuracy["p_signs"], ".2g"),
        f"{100 * exact['sft']:.0f}, {100 * exact['value']:.0f}",
    ]


def _or_all(value: Any) -> str:
    """A rank or length; where it is missing, the row is of all of them."""
    return "all" if pd.isna(value) else str(value)


def ranks_report(ranks: pd.DataFrame) -> Iterator[RenderableType]:
    """The table of each source, and what it holds.

    Args:
        ranks: from `rank_thresholds.rank_table`.
    """
    differing = _differing(ranks)

    for _, group in ranks.groupby(SOURCE):
        first = group.iloc[0]
        title = ", ".join(str(first[name]) for name in differing)
        table = ranks_table(group)
        yield Group(Text(title), table) if title else table
    yield Text(RANKS_NOTE)


def ranks_table(ranks: pd.DataFrame) -> Table:
    """The rank at which half of the texts are recalled, and its ratios, within 80 columns."""
    columns = ["l", "loss", "n", "rank", "of sft's", "of memft_ot's"]
    optional = []
    # A bound must never look like a measured rank.
    if (ranks["outside"] != "").any():
        optional.append("outside")
    if ranks["lr"].nunique() > 1:
        optional.append("lr")

    # The name of a curriculum is long.
    has_curriculum = ranks["method"].str.contains(" ").any()
    folded = ["outside", "loss"] if has_curriculum else ["outside"]
    table = plain_table(
        *columns,
        *optional,
        text=["loss", "outside"],
        folded=folded,
        gap=1,
    )

    for row in ranks.to_dict("records"):
        ratios = []
        for reference in ("sft", "memft_ot"):
            is_itself = row["method"] == reference
            ratios.append("" if is_itself else _with_interval(row, f"to_{reference}", ".2f"))
        table.add_row(
            _or_all(row["seqlen"]),
            str(row["method"]),
            str(row["texts"]),
            _with_interval(row, "rank", ".1f"),
            *ratios,
            *(str(row[name]) for name in optional),
        )
    return table


def _with_interval(row: dict[Any, Any], name: str, spec: str) -> str:
    """A value and its interval: 1.50 (1.20-1.88); the interval of `rank` is low and high."""
    value = row[name]
    if np.isnan(value):
        return MISSING
    prefix = "" if name == "rank" else f"{name}_"
    low = row[f"{prefix}low"]
    high = row[f"{prefix}high"]
    text = format(value, spec)
    return text if np.isnan(low) else f"{text} ({low:{spec}}-{high:{spec}})"
