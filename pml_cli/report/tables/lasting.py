"""What `pml lasting` shows in the terminal: recall and margins by condition, recall by rank, damage; losses side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pml_cli.analysis.deployment import PLACE
from pml_cli.evaluation.conditions import BY_NAME, HALF, NOT_MERGEABLE, TRAINED

SIDE, ACROSS = 5, 6  # losses, and conditions, side by side at 80 columns
SHORT = {
    "adapter_bf16": "A bf16",
    "adapter_int8": "A int8",
    "adapter_int4": "A int4",
    "base_bf16": "W bf16",
}
SHORT |= {
    "base_int8": "W int8",
    "merged_bf16": "m. bf16",
    "merged_int8": "m. int8",
    "bf16_merged": "bf16 m.",
}

Row = Any  # one row of a summary, by name


def shown(
    table: pd.DataFrame, means: pd.DataFrame, against: pd.DataFrame
) -> Iterator[RenderableType]:
    """Tables of each place by itself, and what the conditions are.

    Args:
        table, means, against: from `lasting_table.rows`, `summary` and `comparison`.
    """
    for key, group in means.groupby(PLACE, sort=False):
        where = dict(zip(PLACE, key, strict=True))
        words = [
            f"{name} {value}"
            for name, value in where.items()
            if name not in PLACE[:3] and value != ""
        ]
        yield Text(
            f"{where['model']}, {where['data']}, {where['adapter']}: {', '.join(words)}",
            style="bold",
        )
        same = pd.Series(key, index=PLACE)
        yield from _place(
            group, against[(against[PLACE] == same).all(axis=1)] if len(against) else against
        )
    for name in means["condition"].unique():
        yield Text(f"{name:<13} {BY_NAME[name].meaning}", style="dim")
    if table["status"].eq(NOT_MERGEABLE).any():
        yield Text(
            f"{'merged':<13} {NOT_MERGEABLE}: mlp_block adapters lie beside a whole MLP",
            style="dim",
        )
    yield _violations(table[table["status"] == "measured"])


def _place(group: pd.DataFrame, against: pd.DataFrame) -> Iterator[RenderableType]:
    found = sorted(group["method"].unique(), key=lambda method: (method != "sft", method))
    pooled = {
        (row["condition"], row["method"]): row
        for row in group[group["rank"].isna()].to_dict("records")
    }
    one = group["rank"].nunique() == 1  # then the ranks together are no row of their own
    pairs = against[against["rank"].isna() | one] if len(against) else against
    gains = {
        (row["condition"], row["method"], row["measure"]): row for row in pairs.to_dict("records")
    }
    for start in range(0, len(found), SIDE):
        part = found[start : start + SIDE]
        yield _by_condition("tokens right, %: mean and 95 % interval", part, pooled, _accuracy)
        yield _by_condition(
            "of the runs recalled whole as trained, those that still are", part, pooled, _still
        )
        yield _by_condition(
            "margins above 0, logits: rms of their change, worst fall", part, pooled, _fall
        )
        paired = {
            (c, m): row for (c, m, measure), row in gains.items() if measure == "token_accuracy"
        }
        others = [method for method in part if (TRAINED, method) in paired]
        if others:
            title = "tokens right, points more than sft: paired, 95 % interval"
            yield _by_condition(title, others, paired, lambda row: _difference(row, 100, 1))
    yield from _by_rank(group, found)
    yield _damages(group[group["condition"] == TRAINED], found, against)


def heading(method: str) -> str:
    """The label of a loss in two lines: its kind, and its settings."""
    kind, _, settings = method.removeprefix("memft_").partition("(")
    return f"{kind}\n{settings.replace(')', '')}" if settings else kind


def _by_condition(
    title: str, found: Sequence[str], rows: dict[tuple[str, str], Row], cell: Callable[[Row], str]
) -> RenderableType:
    table = _table("", *map(heading, found))
    for name in BY_NAME:
        if any((name, method) in rows for method in found):
            table.add_row(
                name,
                *[cell(rows[name, method]) if (name, method) in rows else "-" for method in found],
            )
    return _titled(title, table)


def _accuracy(row: Row) -> str:
    return _span(row["token_accuracy"], row["token_accuracy_half"], 100, 1)


def _still(row: Row) -> str:
    return f"{row['still_whole']}/{row['whole']}"


def _fall(row: Row) -> str:
    return (
        "-" if math.isnan(row["worst"]) else f"{row['shift_rms']:.3f}, {max(row['worst'], 0):.2f}"
    )


def _difference(row: Row, scale: float, digits: int) -> str:
    return _span(row["difference"], (row["high"] - row["low"]) / 2, scale, digits, "+")


def _by_rank(group: pd.DataFrame, found: Sequence[str]) -> Iterator[RenderableType]:
    names = [name for name in BY_NAME if name in set(group["condition"])]
    for start in range(0, len(names), ACROSS):
        part = names[start : start + ACROSS]
        table = _table("rank", "loss", "n", *[SHORT.get(name, name) for name in part])
        for (rank, method), cells in _ordered(group, found):
            by = cells.set_index("condition")["exact_match"]
            shares = [f"{100 * by[name]:.0f}" if name in by else "-" for name in part]
            table.add_row(
                str(rank), heading(method).replace("\n", " "), str(cells["runs"].max()), *shares
            )
        yield _titled("recalled whole, %, by rank (A: adapter, W: base weights, m.: merged)", table)


def _ordered(
    group: pd.DataFrame, found: Sequence[str]
) -> Iterator[tuple[tuple[Any, str], pd.DataFrame]]:
    for rank, cells in group[group["rank"].notna()].groupby("rank"):
        for method in found:
            if len(chosen := cells[cells["method"] == method]):
                yield (rank, method), chosen


def _damages(trained: pd.DataFrame, found: Sequence[str], against: pd.DataFrame) -> RenderableType:
    """Loss and divergence on the two texts: by rank, and of all ranks together."""
    if trained["text_kl"].isna().all() and trained["random_kl"].isna().all():
        return Text("no damage measured: tokens=0, or a model without tokenizer")
    pairs = against[against["measure"] == "text_kl"].to_dict("records") if len(against) else []
    gains = {
        (_rank(row["rank"]), row["method"]): row for row in pairs if row["condition"] == TRAINED
    }
    rows = [
        (str(rank), method, cells.iloc[0]) for (rank, method), cells in _ordered(trained, found)
    ]
    if trained["rank"].nunique() > 1:
        pooled = trained[trained["rank"].isna()]
        rows += [("all", method, pooled[pooled["method"] == method].iloc[0]) for method in found]
    table = _table("rank", "loss", "adds", "KL text", "KL random", "KL text over sft")
    for rank, method, row in rows:
        spans = [
            _span(row[name], row[f"{name}_half"], 1, 2)
            for name in ("text_rise", "text_kl", "random_kl")
        ]
        more = _difference(gains[rank, method], 1, 2) if (rank, method) in gains else "-"
        table.add_row(rank, heading(method).replace("\n", " "), *spans, more)
    base = trained["text_base_loss"].mean()
    title = f"damage, nats/token: added to the loss on unseen text ({base:.2f}), KL(base||adapted)"
    return _titled(title, table)


def _rank(rank: Any) -> str:
    return "all" if pd.isna(rank) else str(rank)


def _violations(measured: pd.DataFrame) -> RenderableType:
    trained, lower = (
        measured[measured["condition"] == TRAINED],
        measured[measured["condition"] == HALF],
    )
    above = round(float((trained["share_above_threshold"] * trained["target_tokens"]).sum()))
    return Text(
        f"{above} tokens had p > 0.5 as trained: {int(trained['violations'].sum())} of them decoded wrongly then, "
        f"{int(lower['lost_above'].sum())} in bfloat16; tokens with p > 0.5 in bfloat16 decoded wrongly: "
        f"{int(lower['violations'].sum())} (each with its cause in lasting.json)"
    )


def _span(mean: float, half: float, scale: float, digits: int, sign: str = "") -> str:
    if math.isnan(mean):
        return "-"
    return f"{scale * mean:{sign}.{digits}f}" + (
        "" if math.isnan(half) else f" ±{scale * half:.{digits}f}"
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if i == 0 or (column == "loss" and i == 1) else "right",
            no_wrap=True,
        )
    return table


def _titled(title: str, table: Table) -> RenderableType:
    return Group(Text(title, style="italic"), table, "")
