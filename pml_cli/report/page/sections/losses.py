"""The losses side by side, on cells that every one of them has."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pml_cli.report.page.section import Section, Sources

# What makes two runs the same cell, but for the loss.
RECALL = ["exact_match", "token_accuracy"]
CELL = [
    *("model", "data", "adapter", "layer", "setting", "steps"),
    *("rank", "target_tokens", "data_seed", "seed"),
]


def section(sources: Sources) -> Section | None:
    """Recall against rank, a line a loss; None with a single loss, or none that share cells."""
    runs = sources.runs.reindex(columns=[*CELL, "loss", "lr", *RECALL])
    losses = sorted({str(loss) for loss in runs["loss"]}, key=lambda name: (name != "sft", name))
    if len(losses) < 2:
        return None

    cells = runs[CELL].astype(str).agg("|".join, axis=1)
    runs = runs.assign(loss=runs["loss"].astype(str), lr=runs["lr"].astype(str), cell=cells)
    several_rates = bool((runs.groupby("loss")["lr"].nunique() > 1).any())
    runs = pd.concat([_at_best_rate(runs, loss) for loss in losses])
    present = runs.groupby("cell")["loss"].transform("nunique")
    shared = runs[present == len(losses)]
    if shared.empty:
        return None

    lines = [_line(loss, shared[shared["loss"] == loss]) for loss in losses]
    return Section(
        name="losses",
        title="The losses side by side",
        context={
            "lines": lines,
            "cells": shared["cell"].nunique(),
            "several_rates": several_rates,
        },
        data=lines,
    )


def _at_best_rate(runs: pd.DataFrame, loss: str) -> pd.DataFrame:
    """The runs of a loss at one learning rate.

    Of the rates that were tried on the most of the cells that the other losses have, the one that
    recalls most of those.
    """
    own = runs[runs["loss"] == loss]
    others = runs[runs["loss"] != loss].groupby("cell")["loss"].nunique()
    wanted = set(others[others == others.max()].index)
    rates = []
    for rate, at_rate in own.groupby("lr"):
        compared = at_rate[at_rate["cell"].isin(wanted)]
        recalled = compared[RECALL].apply(pd.to_numeric, errors="coerce").mean().fillna(-1)
        rates.append((compared["cell"].nunique(), *recalled, str(rate)))
    at_best: pd.DataFrame = own[own["lr"] == max(rates)[-1]]
    return at_best


def _line(loss: str, runs: pd.DataFrame) -> dict[str, Any]:
    """Means over all cells of a rank."""
    numbers = runs[["rank", *RECALL]].apply(pd.to_numeric, errors="coerce")
    by_rank = numbers.groupby("rank").mean()
    return {
        "loss": loss,
        "rank": by_rank.index.tolist(),
        "token_accuracy": by_rank["token_accuracy"].tolist(),
        "exact_match": by_rank["exact_match"].tolist(),
        "runs": len(runs),
        "rate": ", ".join(sorted(set(runs["lr"]) - {"nan"})),
        "tokens": float(numbers["token_accuracy"].mean()),
        "whole": float(numbers["exact_match"].mean()),
    }
