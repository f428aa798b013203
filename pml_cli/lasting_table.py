"""What `pml lasting` measured, as tables: a row a run and condition, means with intervals, losses against plain fine-tuning.

Intervals and pairs are those of comparison.py: over texts and seeds, a text's ranks taken together where they are pooled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .comparison import BEST, compare, half_width
from .conditions import BY_NAME, CONDITIONS, NOT_MERGEABLE, TRAINED

RECALL = [
    "token_accuracy", "exact_match", "final_loss", "share_above_threshold", "lost", "lost_above", "won", "kept_whole",
    "least_right_margin", "fall_rms", "fall_worst", "violations", "free_exact_match",
]  # fmt: skip
TEXTS = ("text", "random")
DAMAGE = [f"{text}_{name}" for text in TEXTS for name in ("base_loss", "loss", "rise", "kl", "changed")]
PLACE = ["model", "data", "adapter", "layer", "setting", "seqlen", "lr", "steps"]  # what the runs of one table share
SIDE = 5  # losses side by side at 80 columns
SHORT = {"adapter_bf16": "A bf16", "adapter_int8": "A int8", "adapter_int4": "A int4", "base_bf16": "W bf16"}
SHORT |= {"base_int8": "W int8", "merged_bf16": "m. bf16", "merged_int8": "m. int8", "bf16_merged": "bf16 m."}


def rows(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """lasting.csv: what a run is, the condition, what it recalls under it; its damage in the row of `trained`."""
    out = []
    for one in runs:
        known = {name: value for name, value in one.items() if name not in ("key", "conditions", "damage", "offenders")}
        known["layer"], known["setting"] = str(known["layer"]), known["setting"] or ""
        for condition in CONDITIONS:
            found = one["conditions"][condition.name]
            row = {**known, "condition": condition.name, "status": found["status"].partition(":")[0]}
            row |= {name: found.get(name) for name in (*RECALL, "first_failure", "least_margin")}
            out.append(row | (_damage(one["damage"]) if condition.name == TRAINED else {}))
    table = pd.DataFrame(out)
    measured = [*RECALL, "first_failure", "least_margin", *DAMAGE]
    table[measured] = table.reindex(columns=measured).apply(pd.to_numeric)
    return table


def _damage(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for text in TEXTS:
        values = dict(found[text])
        values["rise"] = None if values["loss"] is None else values["loss"] - values["base_loss"]
        out |= {f"{text}_{name}": value for name, value in values.items()}
    return out


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and half of the 95 % interval of every measure, of each place, loss, rank (and all: no rank) and condition.

    For all ranks together a unit is a text and seed: the mean over its ranks.
    """
    out = []
    for key, group in table[table["status"] == "measured"].groupby([*PLACE, "loss", "condition"], sort=False):
        where = dict(zip([*PLACE, "loss", "condition"], key, strict=True))
        for rank, cell in [*group.groupby("rank"), (None, group)]:
            units = cell.groupby(["data_seed", "seed"])[[*RECALL, *DAMAGE]].mean()
            row: dict[str, Any] = {**where, "rank": rank, "runs": len(cell)}
            whole = cell["kept_whole"].dropna()
            row |= {"whole": len(whole), "still_whole": int((whole == 1).sum()), "worst": cell["fall_worst"].max()}
            for name in (*RECALL, *DAMAGE):
                values = units[name].dropna().to_numpy(float)
                row[name] = values.mean() if len(values) else math.nan
                row[f"{name}_half"] = half_width(values)
            out.append(row)
    return pd.DataFrame(out).astype({"rank": "Int64"})


def comparison(table: pd.DataFrame) -> pd.DataFrame:
    """Every loss against sft under each condition, pair by pair (`comparison.compare`); damage under `trained`."""
    parts = []
    for condition, cells in table[table["status"] == "measured"].groupby("condition", sort=False):
        measures = [*RECALL, *(DAMAGE if condition == TRAINED else [])]
        found = compare(cells, measures)
        if len(found):
            parts.append(found[found["terms"] != BEST].assign(condition=condition))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON: what is missing is null."""
    kept = table.astype(object).where(table.notna(), None)
    return [{str(k): v for k, v in row.items()} for row in kept.to_dict("records")]


def shown(table: pd.DataFrame, means: pd.DataFrame) -> Iterator[RenderableType]:
    """Tables for the terminal, of each place by itself."""
    against = comparison(table)
    for key, group in means.groupby(PLACE, sort=False):
        where = dict(zip(PLACE, key, strict=True))
        words = [
            f"{name} {value}" for name, value in where.items() if name not in ("model", "data", "adapter") and value != ""
        ]
        yield Text(f"{where['model']}, {where['data']}, {where['adapter']}: {', '.join(words)}", style="bold")
        yield from _place(group, _of(against, where))
    for condition in CONDITIONS:
        if condition.name in set(table["condition"]):
            yield Text(f"{condition.name:<13} {condition.meaning}", style="dim")
    if table["status"].eq(NOT_MERGEABLE).any():
        yield Text("merged: not mergeable, an mlp_block adapter lies beside a whole MLP (why: lasting.json)", style="dim")
    yield _violations(table)


def _of(against: pd.DataFrame, where: dict[str, Any]) -> pd.DataFrame:
    if against.empty:
        return against
    same = [name for name in ("model", "data", "adapter", "seqlen") if name in against]
    rate = against["lr"].astype(str) == f"{where['lr']:g}"
    return against[(against[same] == pd.Series({name: where[name] for name in same})).all(axis=1) & rate]


def _place(group: pd.DataFrame, against: pd.DataFrame) -> Iterator[RenderableType]:
    losses = sorted(group["loss"].unique(), key=lambda loss: (loss != "sft", loss))
    pooled = group[group["rank"].isna()].set_index(["condition", "loss"])
    for start in range(0, len(losses), SIDE):
        part = losses[start : start + SIDE]
        yield _by_condition("tokens right, %: mean and 95 % interval", part, pooled, _accuracy)
        yield _by_condition("runs recalled whole as trained that still are", part, pooled, _still)
        yield _by_condition("fall of a margin that was above 0, logits: rms, worst of all", part, pooled, _fall)
        if len(against):
            yield _paired("tokens right, points more than sft: paired, 95 % interval", part, against, "token_accuracy", 100)
    yield _by_rank(group, losses)
    yield _damages(group, losses, against)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="italic", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def heading(loss: str) -> str:
    """The label of a loss in two lines: its kind, and its settings."""
    kind, _, settings = loss.removeprefix("memft_").partition("(")
    return f"{kind}\n{settings.removesuffix(')')}" if settings else kind


def _by_condition(title: str, losses: Sequence[str], pooled: pd.DataFrame, cell: Any) -> Table:
    table = _table(title, "", *map(heading, losses))
    for name in BY_NAME:
        if any((name, loss) in pooled.index for loss in losses):
            table.add_row(
                name, *[cell(pooled.loc[(name, loss)]) if (name, loss) in pooled.index else "-" for loss in losses]
            )
    return table


def _span(mean: float, half: float, scale: float = 1, digits: int = 1, sign: str = "") -> str:
    if math.isnan(mean):
        return "-"
    return f"{scale * mean:{sign}.{digits}f}" + ("" if math.isnan(half) else f" ±{scale * half:.{digits}f}")


def _accuracy(row: pd.Series[Any]) -> str:
    return _span(row["token_accuracy"], row["token_accuracy_half"], 100)


def _still(row: pd.Series[Any]) -> str:
    return f"{row['still_whole']}/{row['whole']}"


def _fall(row: pd.Series[Any]) -> str:
    return "-" if math.isnan(row["worst"]) else f"{row['fall_rms']:.3f}, {row['worst']:.2f}"


def _paired(title: str, losses: Sequence[str], against: pd.DataFrame, measure: str, scale: float) -> Table:
    found = against[against["rank"].isna() | (against.groupby("method")["rank"].transform("nunique") < 2)]
    cells = found[found["measure"] == measure].set_index(["condition", "method"])
    others = [loss for loss in losses if loss != "sft"]
    table = _table(title, "", *map(heading, others))
    for name in BY_NAME:
        row = [_difference(cells, name, loss, scale) for loss in others]
        if set(row) - {"-"}:
            table.add_row(name, *row)
    return table


def _difference(cells: pd.DataFrame, condition: str, loss: str, scale: float, digits: int = 1) -> str:
    if (condition, loss) not in cells.index:
        return "-"
    one = cells.loc[[(condition, loss)]].iloc[0]
    return _span(one["difference"], (one["high"] - one["low"]) / 2, scale, digits, "+")


def _by_rank(group: pd.DataFrame, losses: Sequence[str]) -> Table:
    names = [name for name in BY_NAME if name in set(group["condition"])]
    group = group.assign(order=group["loss"].map(losses.index)).sort_values(["rank", "order"])
    table = _table("recalled whole, %, by rank (A adapter, W base weights, m. merged)", "rank", "loss", "n", *[
        SHORT.get(name, name) for name in names])  # fmt: skip
    for (rank, loss), cells in group[group["rank"].notna()].groupby(["rank", "loss"], sort=False):
        by = cells.set_index("condition")["exact_match"]
        shares = [f"{100 * by[name]:.0f}" if name in by else "-" for name in names]
        table.add_row(str(rank), heading(str(loss)).replace("\n", " "), str(cells["runs"].max()), *shares)
    return table


def _damages(group: pd.DataFrame, losses: Sequence[str], against: pd.DataFrame) -> RenderableType:
    """Loss and divergence on the two texts, by rank and of all ranks together."""
    cells = group[group["condition"] == TRAINED].set_index(["rank", "loss"])
    if cells["text_kl"].isna().all() and cells["random_kl"].isna().all():
        return Text("no damage measured (tokens=0, or a model without tokenizer)")
    table = _table(
        "damage, nats per token: loss on unseen text and what the adapter adds to it, KL(base || adapted)",
        "rank", "loss", "text", "adds", "KL text", "KL random", "KL text, more than sft",
    )  # fmt: skip
    paired = against[against["measure"] == "text_kl"] if len(against) else against
    for rank in [*sorted(group["rank"].dropna().unique()), pd.NA]:
        for loss in losses:
            found = cells[cells.index.get_level_values("loss") == loss]
            level = found.index.get_level_values("rank")
            found = found[level.isna() if pd.isna(rank) else (level == rank).fillna(False)]
            if found.empty or (pd.isna(rank) and group["rank"].nunique() < 2):
                continue
            one, more = found.iloc[0], "-"
            if len(paired):
                at = paired[paired["rank"].isna() if pd.isna(rank) else (paired["rank"] == rank).fillna(False)]
                more = _difference(at.set_index(["condition", "method"]), TRAINED, loss, 1, 2)
            spans = [_span(one[name], one[f"{name}_half"], 1, 2) for name in ("text_rise", "text_kl", "random_kl")]
            name = heading(loss).replace("\n", " ")
            table.add_row("all" if pd.isna(rank) else str(rank), name, f"{one['text_base_loss']:.2f}", *spans, more)
    return table


def _violations(table: pd.DataFrame) -> Text:
    cells = table[table["status"] == "measured"]
    trained, lower = cells[cells["condition"] == TRAINED], cells[cells["condition"] == "bf16"]
    if lower.empty:
        return Text("no run measured in bfloat16")
    counted = f"{int(lower['violations'].sum())} of them where p > 0.5 in bfloat16 too"
    return Text(
        f"decoded wrongly in bfloat16 though p > 0.5 as trained: {int(lower['lost_above'].sum())} of "
        f"{round(float((trained['share_above_threshold'] * trained['target_tokens']).sum()))} such tokens; {counted} "
        f"(each with its cause: lasting.json); as trained: {int(trained['violations'].sum())}"
    )
