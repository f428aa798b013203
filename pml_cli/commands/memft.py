"""`pml memft`: the same cells under several losses at equal steps and tokens, compared pair by pair."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from pml_cli.analysis import paired as comparison
from pml_cli.analysis import rank_thresholds
from pml_cli.analysis.paired import BEST, EQUAL, SOURCE, UNEQUAL
from pml_cli.config.schema import Request
from pml_cli.errors import UserError
from pml_cli.io import atomic_write
from pml_cli.launch.driver import plan_sweep, train_sweep
from pml_cli.report.progress import SweepDisplay
from pml_cli.report.sweep_summary import conclude, plan_line
from pml_cli.report.tables import dry_run as dry_run_table
from pml_cli.runs.read import read_runs
from pml_cli.runs.run_id import loss_label

RANKS_EXPLAINED = (
    "rank: at which half of the texts are recalled whole (interpolated between the ranks tried; 95 % t interval of the log "
    "over n texts, none where all are equal), and what share it is of sft's and memft_ot's, text by text; outside: texts "
    "whose rank lies below or above all ranks tried, which count with that bound; lr: for each text the rate that is best "
    "on the other texts\n"
)


def run(
    request: Request,
    console: Console,
    *,
    dry_run: bool = False,
    fail_fast: bool = False,
    wait: bool | None = None,
    retry: bool = True,
) -> int:
    """Train what is missing (as `sweep.run`), then compare every loss with plain fine-tuning (sft) on equal cells.

    Returns:
        exit code: 0, or 1 when a cell failed.

    Raises:
        UserError: fewer than two losses, or none of them sft.
    """
    kinds = {loss_label(run.loss) for run in request.runs}
    if "sft" not in kinds or len(kinds) < 2:
        raise UserError(
            f"loss={','.join(sorted(kinds))}: a comparison needs sft and another loss, such as loss=sft,memft_ot"
        )
    plan = plan_sweep(request, retry=retry)
    if dry_run:
        dry_run_table.show(console, request, plan.cells, plan.todo)
        return 0

    console.print(plan_line(plan))
    with SweepDisplay.of(plan, console) as display:
        outcome = train_sweep(plan, display, wait=wait, fail_fast=fail_fast)
    code = conclude(plan, outcome, console)

    runs = read_runs([request.out], left_out=[])  # the sweep has named them
    if len(runs) == 0:
        return code
    wanted = {cell.id for cell in plan.cells}
    runs = runs[runs["id"].isin(wanted)]
    table = comparison.compare(runs)
    if table.empty:
        console.print("nothing to compare: no cell has finished under sft and under another loss")
        return code
    atomic_write(request.out / "comparison.csv", lambda aside: table.to_csv(aside, index=False))
    for terms in table["terms"].unique():
        console.print(_shown(table[table["terms"] == terms]))
        console.print(_explained(terms))
    ranks = rank_thresholds.rank_table(runs)
    if len(ranks):
        atomic_write(request.out / "ranks.csv", lambda aside: ranks.to_csv(aside, index=False))
        told = [key for key in SOURCE if ranks[key].nunique() > 1]
        for _, group in ranks.groupby(SOURCE):
            console.print(_shown_ranks(group, ", ".join(str(group[key].iloc[0]) for key in told)))
        console.print(RANKS_EXPLAINED)
    for name in ("comparison", *(["ranks"] if len(ranks) else [])):
        console.print(f"{name}: {request.out / name}.csv", highlight=False, soft_wrap=True)
    for name in _draw(request, runs, table, ranks):
        console.print(f"figure: {request.out / name}", highlight=False, soft_wrap=True)
    return code


def _explained(terms: str) -> str:
    means = {
        EQUAL: "equal steps and learning rate",
        BEST: "equal steps, each method and length at the learning rate with the best mean accuracy (chosen on these runs)",
    }
    budget = means.get(terms, "UNEQUAL BUDGET: steps or tokens differ, see the column budget")
    return (
        f"{budget}; n pairs, tokens right under sft and under the loss, and the difference with its 95 % interval (paired t "
        "over texts and seeds), p by flipping signs; exact: recalled whole, under sft and the loss; - for one pair\n"
    )


def _shown(table: pd.DataFrame) -> Table:
    """Accuracy and exact match of each rank and length, and of all ranks together."""
    out, budget = Table(box=None, pad_edge=False), not table["budget"].between(0.99, 1.01).all()
    rates = table["lr"].nunique() > 1 or (table["lr"] != table["lr_sft"]).any()
    several = [key for key in SOURCE if table[key].nunique() > 1]
    for name in several:
        out.add_column(name, no_wrap=False)
    names = ["rank", "l", "loss", "n", "sft %", "acc %", "difference", "p", "exact %"]
    for name in [*names, *(["lr"] if rates else []), *(["budget"] if budget else [])]:
        out.add_column(name, justify="left" if name == "loss" else "right", no_wrap=name != "loss")
    for _, cell in table.groupby(
        [*SOURCE, "seqlen", "rank", "method", "lr", "lr_sft"], dropna=False
    ):
        by, one = cell.set_index("measure"), cell.iloc[0]
        accuracy, exact = by.loc["token_accuracy"], by.loc["exact_match"]
        half = 100 * (accuracy["high"] - accuracy["low"]) / 2
        span = f"{100 * accuracy['difference']:+.1f} ± " + (
            "-" if np.isnan(half) else f"{half:.1f}"
        )
        p, rank = accuracy["p_signs"], "all" if pd.isna(one["rank"]) else str(one["rank"])
        lr = one["lr"] if one["lr"] == one["lr_sft"] else f"{one['lr_sft']}, {one['lr']}"
        out.add_row(
            *(str(one[key]) for key in several), rank, str(one["seqlen"]), str(one["method"]), str(accuracy["pairs"]),
            f"{100 * accuracy['sft']:.1f}",
            f"{100 * accuracy['value']:.1f}", span, "-" if np.isnan(p) else f"{p:.2g}",
            f"{100 * exact['sft']:.0f}, {100 * exact['value']:.0f}", *([lr] if rates else []),
            *([f"x{one['budget']:.2g}"] if budget else []),
        )  # fmt: skip
    return out


def _shown_ranks(ranks: pd.DataFrame, source: str) -> Table:
    """The rank at even chance of exact recall under each loss, and what share it is of another loss's; 80 columns."""
    out = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=source or None,
        title_justify="left",
        title_style="",
    )
    told = {
        "outside": (ranks["outside"] != "").any(),
        "lr": ranks["lr"].nunique() > 1,
    }  # a bound is never left unsaid
    extra = [name for name, says in told.items() if says]
    for name in ["l", "loss", "n", "rank", "of sft's", "of memft_ot's", *extra]:
        left = name in ("loss", "outside")
        folded = name == "outside" or (
            name == "loss" and ranks["method"].str.contains(" ").any()
        )  # a curriculum is long
        out.add_column(
            name, justify="left" if left else "right", no_wrap=not folded, overflow="fold"
        )
    for row in ranks.to_dict("records"):
        others = {
            "sft": _span(row, "to_sft", "to_sft_", 2),
            "memft_ot": _span(row, "to_memft_ot", "to_memft_ot_", 2),
        }
        length = "all" if pd.isna(row["seqlen"]) else str(row["seqlen"])
        shares = ["" if row["method"] == other else share for other, share in others.items()]
        rank = _span(row, "rank", "", 1)
        out.add_row(
            length,
            str(row["method"]),
            str(row["texts"]),
            rank,
            *shares,
            *(str(row[name]) for name in extra),
        )
    return out


def _span(row: dict[Hashable, Any], name: str, ends: str, places: int) -> str:
    value, low, high = (row[key] for key in (name, f"{ends}low", f"{ends}high"))
    if np.isnan(value):
        return "-"
    return f"{value:.{places}f}" + (
        "" if np.isnan(low) else f" ({low:.{places}f}-{high:.{places}f})"
    )


def _draw(
    request: Request, runs: pd.DataFrame, table: pd.DataFrame, ranks: pd.DataFrame
) -> list[str]:
    """Write the figures of each model and kind of data, as PNG and SVG."""
    from pml_cli.report.figures.memft import accuracy_figure, rank_figure
    from pml_cli.report.figures.registry import write_figure

    runs, rates = comparison.methods(runs), bool((table["terms"] == BEST).any())
    if rates:
        runs = comparison.best_rates(runs)
    source = (
        [key for key in SOURCE if key not in ("setting", "steps")]
        if (table["terms"] == UNEQUAL).any()
        else SOURCE
    )
    groups, names = list(runs.groupby(source)), []
    told = [key for key in source if runs[key].nunique() > 1]
    for place, group in groups:
        stem = re.sub(r"[^A-Za-z0-9._=-]+", "-", "".join(f"-{group[key].iloc[0]}" for key in told))
        figures = {f"memft{stem}": accuracy_figure(group, rates)}
        mine = ranks[(ranks[source] == list(place)).all(axis=1)]
        if mine["seqlen"].nunique() > 1:
            figures[f"ranks{stem}"] = rank_figure(mine)
        for name, figure in figures.items():
            names += write_figure(request.out / name, figure)
    return names
