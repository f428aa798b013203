"""The losses side by side, on cells that every one of them has."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pml_cli.report.page.section import Section, Sources

# What makes two runs the same cell, but for the loss.
CELL = ["model", "data", "adapter", "layer", "rank", "target_tokens", "data_seed", "seed"]


def section(sources: Sources) -> Section | None:
    """Recall against rank, a line a loss; None with a single loss, or none that share cells."""
    runs = sources.runs.reindex(columns=[*CELL, "loss", "token_accuracy", "exact_match"])
    losses = sorted({str(loss) for loss in runs["loss"]}, key=lambda name: (name != "sft", name))
    if len(losses) < 2:
        return None

    runs = runs.assign(loss=runs["loss"].astype(str))
    keys = runs[CELL].astype(str).agg("|".join, axis=1)
    present = runs.groupby(keys)["loss"].transform("nunique")
    shared = runs[present == len(losses)]
    if shared.empty:
        return None
    lines = [_line(loss, shared[shared["loss"] == loss]) for loss in losses]
    return Section(
        name="losses",
        title="The losses side by side",
        context={"lines": lines, "cells": len(shared) // len(losses)},
        data=lines,
    )


def _line(loss: str, runs: pd.DataFrame) -> dict[str, Any]:
    """Means over all cells of a rank."""
    columns = ["rank", "token_accuracy", "exact_match"]
    numbers = runs[columns].apply(pd.to_numeric, errors="coerce")
    by_rank = numbers.groupby("rank").mean()
    return {
        "loss": loss,
        "rank": by_rank.index.tolist(),
        "token_accuracy": by_rank["token_accuracy"].tolist(),
        "exact_match": by_rank["exact_match"].tolist(),
        "runs": len(runs),
        "tokens": float(numbers["token_accuracy"].mean()),
        "whole": float(numbers["exact_match"].mean()),
    }
