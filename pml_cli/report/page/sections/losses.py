"""The losses side by side, on cells that every one of them has."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pml_cli.report.page.section import Section, Sources

# What makes two runs the same cell, but for the loss.
RECALL = ["exact_match", "token_accuracy"]
CELL = ["model", "data", "adapter", "layer", "rank", "target_tokens", "data_seed", "seed"]


def section(sources: Sources) -> Section | None:
    """Recall against rank, a line a loss; None with a single loss, or none that share cells."""
    runs = sources.runs.reindex(columns=[*CELL, "loss", "lr", *RECALL])
    losses = sorted({str(loss) for loss in runs["loss"]}, key=lambda name: (name != "sft", name))
    if len(losses) < 2:
        return None

    runs = runs.assign(loss=runs["loss"].astype(str))
    keys = runs[CELL].astype(str).agg("|".join, axis=1)
    present = runs.groupby(keys)["loss"].transform("nunique")
    shared = runs[present == len(losses)]
    if shared.empty:
        return None
    lines = [_line(loss, _at_best_rate(shared[shared["loss"] == loss])) for loss in losses]
    return Section(
        name="losses",
        title="The losses side by side",
        context={
            "lines": lines,
            "cells": min(line["runs"] for line in lines),
            "several_rates": bool((shared.groupby("loss")["lr"].nunique() > 1).any()),
        },
        data=lines,
    )


def _at_best_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """Of the runs of a loss those of one learning rate: of the best, where several were tried."""
    if runs["lr"].nunique() < 2:
        return runs
    recalled = runs[RECALL].apply(pd.to_numeric, errors="coerce").groupby(runs["lr"]).mean()
    best = recalled.sort_values(RECALL, ascending=False).index[0]
    at_best: pd.DataFrame = runs[runs["lr"] == best]
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
        "rate": ", ".join(f"{rate:g}" for rate in sorted(set(runs["lr"].dropna()))),
        "tokens": float(numbers["token_accuracy"].mean()),
        "whole": float(numbers["exact_match"].mean()),
    }
