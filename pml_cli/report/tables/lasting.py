"""What `pml lasting` prints: recall and margins by condition, recall by rank, forgetting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from pml_cli.analysis.deployment import SETUP
from pml_cli.evaluation.conditions import BASE_INT8, BF16, BY_NAME, NOT_MERGEABLE, TRAINED
from pml_cli.format import MISSING, counted, number
from pml_cli.report.figures.methods import sft_first
from pml_cli.report.tables.layout import plain_table
from pml_cli.report.tables.setups import setup_title, with_half_width

# Side by side at 80 columns.
MAX_METHODS = 5
MAX_CONDITIONS = 6

HEADINGS = {
    "adapter_bf16": "A bf16",
    "adapter_int8": "A int8",
    "adapter_int4": "A int4",
    "base_bf16": "W bf16",
    "base_int8": "W int8",
    "merged_bf16": "m. bf16",
    "merged_int8": "m. int8",
    "bf16_merged": "bf16 m.",
}
CONDITION_WIDTH = 13

# What a deployed adapter has to stand.
USUAL_CONDITIONS = (BF16, BASE_INT8)

# Columns of the recall beyond greedy decoding, as trained: measure, factor and format.
BEYOND_COLUMNS = {
    "log10 p": ("log10_p", 1, ".3g"),
    "at T .7": ("log10_p_07", 1, ".3g"),
    "T50": ("t50", 1, ".2f"),
    "prefix %": ("prefix_share", 100, ".0f"),
    "after 8 %": ("recall_from_8", 100, ".0f"),
    "after 32 %": ("recall_from_32", 100, ".0f"),
    "recovers %": ("recall_after_wrong", 100, ".0f"),
}
BEYOND_TITLE = (
    "beyond greedy recall, adapter as trained; p: probability of sampling the whole target at "
    "temperature 1 and .7; T50: temperature at which it is one half; prefix: share of tokens "
    "before the first error; after 8, after 32: samples completed exactly when given so many "
    "tokens; recovers: samples completed exactly after one wrong token"
)

Row: TypeAlias = dict[Any, Any]
ByCondition: TypeAlias = dict[tuple[str, str], Row]
"""Rows by condition and method."""


def lasting_report(
    table: pd.DataFrame, means: pd.DataFrame, comparison: pd.DataFrame
) -> Iterator[RenderableType]:
    """The tables of each setup, what the conditions are, and the violations.

    Args:
        table: `deployment.measurement_table`.
        means: `deployment.mean_table`.
        comparison: `deployment.sft_comparison`.
    """
    for values, group in means.groupby(SETUP, sort=False):
        setup = dict(zip(SETUP, values, strict=True))
        yield Text(setup_title(setup), style="bold")
        of_setup = comparison
        if len(comparison):
            same = (comparison[SETUP] == pd.Series(setup)).all(axis=1)
            of_setup = comparison[same]
        yield from _setup_tables(group, of_setup)

    for name in means["condition"].unique():
        yield Text(f"{name:<{CONDITION_WIDTH}} {BY_NAME[name].meaning}", style="dim")
    if table["status"].eq(NOT_MERGEABLE).any():
        reason = f"{NOT_MERGEABLE}: mlp_block adapters lie beside a whole MLP"
        yield Text(f"{'merged':<{CONDITION_WIDTH}} {reason}", style="dim")
    yield Text(_violation_line(table[table["status"] == "measured"]))


def _setup_tables(
    means: pd.DataFrame,
    comparison: pd.DataFrame,
) -> Iterator[RenderableType]:
    """The tables of one setup."""
    methods = sft_first(means["method"])
    # The rows of all ranks together have no rank.
    all_ranks = _by_condition(means[means["rank"].isna()])
    differences = _accuracy_differences(means, comparison)

    for start in range(0, len(methods), MAX_METHODS):
        shown_methods = methods[start : start + MAX_METHODS]
        yield _condition_table(
            "token accuracy, %: mean and 95 % interval", shown_methods, all_ranks, _accuracy
        )
        yield _condition_table(
            "of the runs recalled verbatim as trained, those that still are",
            shown_methods,
            all_ranks,
            _still_whole,
        )
        yield _condition_table(
            "margins above 0, logits: rms of their change, worst fall",
            shown_methods,
            all_ranks,
            _margin_change,
        )
        compared = [method for method in shown_methods if (TRAINED, method) in differences]
        if compared:
            yield _condition_table(
                "token accuracy, percentage points above sft: paired, 95 % interval",
                compared,
                differences,
                lambda row: _difference(row, scale=100, spec="+.1f"),
            )

    trained = means[means["condition"] == TRAINED]
    # Runs that an earlier version has measured have none of it.
    if trained["log10_p"].notna().any():
        yield _beyond_greedy_table(trained, methods)
    yield from _rank_tables(means, methods)
    yield Text("\n".join([*_margin_lines(methods, all_ranks), ""]))
    yield _forgetting_table(trained, methods, comparison)


def _beyond_greedy_table(trained: pd.DataFrame, methods: Sequence[str]) -> RenderableType:
    """A row for each rank and method."""
    table = plain_table("rank", "loss", *BEYOND_COLUMNS, text=["rank", "loss"], folded=[], gap=1)
    for rank, method, cells in _by_rank(trained, methods):
        row = cells.iloc[0]
        values = []
        for measure, factor, spec in BEYOND_COLUMNS.values():
            values.append(number(factor * row[measure], spec))
        table.add_row(str(rank), _one_line(method), *values)
    return _titled(BEYOND_TITLE, table)


def _margin_lines(methods: Sequence[str], all_ranks: ByCondition) -> Iterator[str]:
    """For each method, the margin that would have withstood the usual conditions."""
    for method in methods:
        falls = {}
        for condition in USUAL_CONDITIONS:
            row = all_ranks.get((condition, method))
            if row is not None and not math.isnan(row["worst"]):
                falls[condition] = max(row["worst"], 0.0)
        trained = all_ranks.get((TRAINED, method))
        if not falls or trained is None:
            continue

        needed = max(falls.values())
        margins = ", ".join(f"{fall:.2f} in {name}" for name, fall in falls.items())
        # Rounded up: it has to be above the fall.
        aim = math.ceil(100 * needed + 1) / 100
        of_loss = f" (loss.margin={aim:g})" if method.startswith("memft_margin") else ""
        line = (
            f"{_one_line(method)}: margins fell by up to {margins}; train.stop_margin={aim:g}"
            f"{of_loss} would have withstood that"
        )
        if not math.isnan(trained["least_whole"]):
            line += f"; the least margin of what was whole is {trained['least_whole']:.2f}"
        yield line


def _by_condition(rows: pd.DataFrame) -> ByCondition:
    by_condition = {}
    for row in rows.to_dict("records"):
        by_condition[row["condition"], row["method"]] = row
    return by_condition


def _accuracy_differences(means: pd.DataFrame, comparison: pd.DataFrame) -> ByCondition:
    """Differences in token accuracy from sft, all ranks together."""
    if comparison.empty:
        return {}
    rows = comparison[comparison["measure"] == "token_accuracy"]
    # With a single rank, there is no row of all ranks together.
    if means["rank"].nunique() > 1:
        rows = rows[rows["rank"].isna()]
    return _by_condition(rows)


def _condition_table(
    title: str,
    methods: Sequence[str],
    rows: ByCondition,
    cell: Callable[[Row], str],
) -> RenderableType:
    """A row for each condition, a column for each method.

    Args:
        cell: text of a row of `rows`.
    """
    headings = [heading(method) for method in methods]
    table = plain_table("", *headings, text=[""], folded=[])

    for condition in BY_NAME:
        in_condition = [rows.get((condition, method)) for method in methods]
        if any(row is not None for row in in_condition):
            cells = [MISSING if row is None else cell(row) for row in in_condition]
            table.add_row(condition, *cells)
    return _titled(title, table)


def heading(method: str) -> str:
    """The label of a loss in two lines: its kind, and its settings."""
    # The prefix that all of them share would cost a column's width.
    kind, _, settings = method.removeprefix("memft_").partition("(")
    return f"{kind}\n{settings.replace(')', '')}" if settings else kind


def _one_line(method: str) -> str:
    return heading(method).replace("\n", " ")


def _accuracy(row: Row) -> str:
    return with_half_width(
        100 * row["token_accuracy"], 100 * row["token_accuracy_half"], spec=".1f"
    )


def _still_whole(row: Row) -> str:
    return f"{row['still_whole']}/{row['whole']}"


def _margin_change(row: Row) -> str:
    if math.isnan(row["worst"]):
        return MISSING
    return f"{row['shift_rms']:.3f}, {max(row['worst'], 0):.2f}"


def _difference(row: Row, scale: float, spec: str) -> str:
    half_width = (row["high"] - row["low"]) / 2
    return with_half_width(scale * row["difference"], scale * half_width, spec)


def _rank_tables(
    means: pd.DataFrame,
    methods: Sequence[str],
) -> Iterator[RenderableType]:
    """Share of samples recalled verbatim, by rank and method, a column for each condition."""
    occurring = set(means["condition"])
    names = [name for name in BY_NAME if name in occurring]
    for start in range(0, len(names), MAX_CONDITIONS):
        conditions = names[start : start + MAX_CONDITIONS]
        headings = [HEADINGS.get(name, name) for name in conditions]
        columns = ["rank", "loss", "n", *headings]
        table = plain_table(*columns, text=["rank", "loss"], folded=[])

        for rank, method, cells in _by_rank(means, methods):
            exact_match = cells.set_index("condition")["exact_match"]
            shares = [
                number(100 * exact_match[name], ".0f") if name in exact_match else MISSING
                for name in conditions
            ]
            runs = str(cells["runs"].max())
            table.add_row(str(rank), _one_line(method), runs, *shares)
        title = "recalled verbatim, %, by rank (A: adapter, W: base weights, m.: merged)"
        yield _titled(title, table)


def _by_rank(
    means: pd.DataFrame, methods: Sequence[str]
) -> Iterator[tuple[int, str, pd.DataFrame]]:
    """Rank, method and rows of each, without the rows of all ranks together."""
    with_rank = means[means["rank"].notna()]
    for rank in sorted(with_rank["rank"].unique()):
        of_rank = with_rank[with_rank["rank"] == rank]
        for method in methods:
            cells = of_rank[of_rank["method"] == method]
            if len(cells):
                yield rank, method, cells


def _forgetting_table(
    trained: pd.DataFrame, methods: Sequence[str], comparison: pd.DataFrame
) -> RenderableType:
    """Rise of the loss and KL to the base model on both texts, by rank and over all ranks."""
    if trained[["text_kl", "random_kl"]].isna().all(axis=None):
        return Text("no forgetting measured: tokens=0, or a model without tokenizer")

    rows = []
    for rank, method, cells in _by_rank(trained, methods):
        rows.append((str(rank), method, cells.iloc[0]))
    if trained["rank"].nunique() > 1:
        all_ranks = trained[trained["rank"].isna()]
        for method in methods:
            of_method = all_ranks[all_ranks["method"] == method]
            rows.append(("all", method, of_method.iloc[0]))

    differences = _kl_differences(comparison)
    columns = ["rank", "loss", "adds", "KL text", "KL random", "KL text over sft"]
    table = plain_table(*columns, text=["rank", "loss"], folded=[])
    for rank_text, method, row in rows:
        values = [
            with_half_width(row[name], row[f"{name}_half"], spec=".2f")
            for name in ("text_rise", "text_kl", "random_kl")
        ]
        difference = MISSING
        if (rank_text, method) in differences:
            kl_difference = differences[rank_text, method]
            difference = _difference(kl_difference, scale=1, spec="+.2f")
        table.add_row(rank_text, _one_line(method), *values, difference)

    base = trained["text_base_loss"].mean()
    return _titled(
        f"forgetting, nats/token: rise of loss on unseen text ({base:.2f}), KL(base||adapted)",
        table,
    )


def _kl_differences(
    comparison: pd.DataFrame,
) -> dict[tuple[str, str], Row]:
    """Differences in KL on the text from sft, by rank (or all) and method."""
    if comparison.empty:
        return {}
    of_text = (comparison["measure"] == "text_kl") & (comparison["condition"] == TRAINED)
    differences = {}
    for row in comparison[of_text].to_dict("records"):
        rank = "all" if pd.isna(row["rank"]) else str(row["rank"])
        differences[rank, row["method"]] = row
    return differences


def _violation_line(measured: pd.DataFrame) -> str:
    """Whether p > 0.5 sufficed as trained and in bfloat16."""
    trained = measured[measured["condition"] == TRAINED]
    bf16 = measured[measured["condition"] == BF16]
    above_by_run = trained["share_above_threshold"] * trained["target_tokens"]
    above = round(float(above_by_run.sum()))
    wrong = int(trained["violations"].sum())
    lost = int(bf16["lost_above"].sum())
    wrong_in_bf16 = int(bf16["violations"].sum())

    return (
        f"{counted(above, 'token')} had p > 0.5 as trained: {wrong} of them decoded wrongly then, "
        f"{lost} in bfloat16; tokens with p > 0.5 in bfloat16 decoded wrongly: {wrong_in_bf16} "
        "(each with its cause in lasting.json)"
    )


def _titled(title: str, table: RenderableType) -> RenderableType:
    return Group(Text(title, style="italic"), table, "")
