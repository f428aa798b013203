"""The losses side by side, on cells that every one of them has."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pml_cli.report.page.section import Section, Sources

RECALL = ["exact_match", "token_accuracy"]

# What makes two runs the same cell, but for the loss.
CELL = [
    *("model", "data", "adapter", "layer", "setting", "steps"),
    *("rank", "target_tokens", "data_seed", "seed"),
]


def section(sources: Sources) -> Section | None:
    """Recall against rank, a line a loss; None with a single loss, or none that share cells."""
    runs = _named(sources.runs)
    losses = sorted(set(runs["loss"]), key=lambda name: (name != "sft", name))
    if len(losses) < 2:
        return None

    at_best = pd.concat([_at_best_rate(runs, loss) for loss in losses])
    losses_of_cell = at_best.groupby("cell")["loss"].transform("nunique")
    shared = at_best[losses_of_cell == len(losses)]
    if shared.empty:
        return None

    lines = [_line(loss, shared[shared["loss"] == loss]) for loss in losses]
    return Section(
        name="losses",
        title="The losses side by side",
        context={
            "lines": lines,
            "cells": shared["cell"].nunique(),
            "several_rates": _has_several_rates(runs),
        },
        data=lines,
    )


def _named(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with loss and rate as texts, and with a name for the cell."""
    table = runs.reindex(columns=[*CELL, "loss", "lr", *RECALL])
    return table.assign(
        loss=table["loss"].astype(str),
        lr=table["lr"].astype(str),
        cell=table[CELL].astype(str).agg("|".join, axis=1),
    )


def _has_several_rates(runs: pd.DataFrame) -> bool:
    rates = runs.groupby("loss")["lr"].nunique()
    return bool((rates > 1).any())


def _at_best_rate(runs: pd.DataFrame, loss: str) -> pd.DataFrame:
    """The runs of a loss at one learning rate.

    Of the rates that were tried on the most of the cells that the other losses have, the one that
    recalls most of those.
    """
    own = runs[runs["loss"] == loss]
    other_losses = runs[runs["loss"] != loss].groupby("cell")["loss"].nunique()
    compared = other_losses[other_losses == other_losses.max()].index

    def merit(rate: str) -> tuple[float, ...]:
        tried = own[(own["lr"] == rate) & own["cell"].isin(compared)]
        recalled = tried[RECALL].apply(pd.to_numeric, errors="coerce").mean()
        return (tried["cell"].nunique(), *recalled.fillna(-1))

    best = max(sorted(set(own["lr"])), key=merit)
    at_best: pd.DataFrame = own[own["lr"] == best]
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
