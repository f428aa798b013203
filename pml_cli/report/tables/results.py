"""The cells of a sweep: a row each, or means by rank and length where there are many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from pml_cli.report.tables.layout import plain_table, titled

# Columns of result.json that say how a run was trained; seeds apart
SETTINGS = ("model", "data", "adapter", "loss", "setting", "lr")
SEEDS = ("data_seed", "seed")

# Columns aligned as text.
TEXT_COLUMNS = ("model", "data", "adapter", "loss", "setting")

# More cells than this are shown by rank and length.
MAX_ROWS = 30

# Lengths that fit side by side into 80 columns.
LENGTHS_A_BLOCK = 10

# With more columns of settings than this, only SHORT_MEASURES fit beside them.
MAX_SETTINGS_BESIDE_ALL_MEASURES = 2

MEASURES = ("L0", "L1", "dL", "acc %", "exact %", "1st miss", "s")
SHORT_MEASURES = ("L1", "dL", "acc %", "exact %")
NOTE = (
    "L0, L1: loss before and after, dL: their difference (nats/token). "
    "1st miss: position of the first wrong token."
)


def results_table(runs: pd.DataFrame) -> RenderableType:
    """The cells of a sweep, a row each; of more than MAX_ROWS, means by rank and length.

    Args:
        runs: one row a run with the fields of result.json (`results.read.read_runs`).
    """
    if runs.empty:
        return Text("no finished runs")
    # A longer table would scroll off the screen.
    if len(runs) > MAX_ROWS:
        return _pivot_tables(runs)

    settings = _varying(runs, (*SETTINGS, *SEEDS))
    measures = MEASURES if len(settings) <= MAX_SETTINGS_BESIDE_ALL_MEASURES else SHORT_MEASURES
    headings = ["text" if name == "data_seed" else name for name in settings]
    # So that memft_margin_facts stays in one piece beside all measures.
    gap = 1 if settings else 2
    table = plain_table("rank", "l", *headings, *measures, text=TEXT_COLUMNS, gap=gap)

    for run in runs.sort_values(["rank", "target_tokens", *settings]).to_dict("records"):
        values = _measures(run)
        table.add_row(
            f"{run['rank']}",
            f"{run['target_tokens']}",
            *[_setting_text(run[name]) for name in settings],
            *[values[name] for name in measures],
        )
    return Group(table, Text(NOTE, style="dim"))


def _varying(runs: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns that are not the same in all runs."""
    return [name for name in names if name in runs and runs[name].nunique() > 1]


def _measures(run: dict[Any, Any]) -> dict[str, str]:
    """The measured values of one run, by heading."""
    return {
        "L0": f"{run['base_loss']:.3f}",
        "L1": f"{run['final_loss']:.3f}",
        "dL": f"{run['delta_loss']:.3f}",
        "acc %": f"{100 * run['token_accuracy']:.1f}",
        "exact %": f"{100 * run['exact_match']:.1f}",
        "1st miss": _first_failure_text(run),
        "s": f"{run['seconds']:.1f}",
    }


def _first_failure_text(run: dict[Any, Any]) -> str:
    if not pd.isna(run["first_failure"]):
        return f"{run['first_failure']:.0f}"
    # Over many samples there is no one position.
    return "-" if run["samples"] > 1 else "none"


def _setting_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pivot_tables(runs: pd.DataFrame) -> RenderableType:
    """Mean gain and token accuracy by rank and length, for each combination of settings."""
    settings = [name for name in SETTINGS if name in runs]
    varying = _varying(runs, SETTINGS)

    tables: list[RenderableType] = []
    for _, group in runs.groupby(settings, dropna=False, sort=True):
        named = ", ".join(f"{name} {group[name].iloc[0]}" for name in varying)
        suffix = f" ({named})" if named else ""
        repeats = group.groupby(["rank", "target_tokens"]).size().max()
        mean = "mean " if repeats > 1 else ""

        title = f"{mean}gain dL, nats/token{suffix}"
        tables += _pivot(group, "delta_loss", title, "{:.2f}".format)
        title = f"{mean}tokens predicted right, %{suffix}"
        tables += _pivot(group, "token_accuracy", title, _whole_percent)
    return Group(*tables)


def _pivot(
    group: pd.DataFrame, column: str, title: str, text: Callable[[float], str]
) -> list[RenderableType]:
    """Means of a column by rank and length, in blocks of lengths that fit 80 columns."""
    means = group.pivot_table(index="rank", columns="target_tokens", values=column, aggfunc="mean")
    blocks: list[RenderableType] = []
    for start in range(0, means.shape[1], LENGTHS_A_BLOCK):
        block = means.iloc[:, start : start + LENGTHS_A_BLOCK]
        table = plain_table("rank \\ l", *[f"{length:g}" for length in block.columns])
        for rank, values in zip(block.index, block.to_numpy(), strict=True):
            cells = ["" if math.isnan(value) else text(value) for value in values]
            table.add_row(f"{rank:g}", *cells)
        # The title stands above the first block alone.
        blocks.append(titled(title, table) if start == 0 else Group(table, Text("")))
    return blocks


def _whole_percent(proportion: float) -> str:
    """Without decimals, and 100 only for all."""
    return "99" if 0.99 < proportion < 1 else f"{100 * proportion:.0f}"
