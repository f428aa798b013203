"""The losses side by side, task by task, on the cells that every loss of a task has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from pml_cli.format import counted
from pml_cli.report.page.section import Section, Sources
from pml_cli.results.groups import group_name

RECALL = ["exact_match", "token_accuracy"]

# What runs share that are compared, as in `analysis/paired.py`; lengths have rates of their own.
TASK = ["model", "data", "adapter", "layer", "setting", "steps"]

# What makes two runs of a task the same cell, but for the loss.
CELL = ["rank", "target_tokens", "data_seed", "seed"]

# A task whose settings are those of the command line without any.
PLAIN = "default settings"


@dataclass(frozen=True, kw_only=True)
class Task:
    """The losses of one task.

    Attributes:
        key: by the columns TASK.
        lines: of each loss, see `_line`.
        cells: that every loss has.
        lacking: runs in cells that another loss lacks.
    """

    key: dict[str, Any]
    lines: list[dict[str, Any]]
    cells: int
    lacking: int


def section(sources: Sources) -> Section | None:
    """Recall against rank, a line a loss; None where no task has losses that share cells."""
    runs = _named(sources.runs)
    tasks: list[Task] = []
    unpaired = 0
    for _, of_task in runs.groupby("task", sort=False):
        task = _task(of_task)
        if task is None:
            unpaired += len(of_task)
        else:
            tasks.append(task)
    if not tasks:
        return None

    # The most cells first; it is what the chart shows to begin with.
    tasks.sort(key=lambda task: -task.cells)
    names = _names(tasks)
    groups = [
        {"name": name, "cells": task.cells, "lines": task.lines}
        for name, task in zip(names, tasks, strict=True)
    ]
    return Section(
        name="losses",
        title="The losses side by side",
        context={
            "groups": groups,
            "several_rates": _has_several_rates(runs),
            "left_out": _left_out(unpaired, sum(task.lacking for task in tasks)),
        },
        data=groups,
    )


def _named(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with loss and rate as texts, and with names for the task and the cell."""
    table = runs.reindex(columns=[*TASK, *CELL, "loss", "lr", *RECALL])
    return table.assign(
        loss=table["loss"].astype(str),
        lr=table["lr"].astype(str),
        task=table[TASK].astype(str).agg("|".join, axis=1),
        cell=table[CELL].astype(str).agg("|".join, axis=1),
    )


def _has_several_rates(runs: pd.DataFrame) -> bool:
    rates = runs.groupby(["task", "loss"])["lr"].nunique()
    return bool((rates > 1).any())


def _task(runs: pd.DataFrame) -> Task | None:
    """The losses of the runs of one task; None with a single loss, or none that share cells."""
    losses = sorted(set(runs["loss"]), key=lambda name: (name != "sft", name))
    if len(losses) < 2:
        return None

    # Another length may take another rate.
    by_length = [of_length for _, of_length in runs.groupby("target_tokens", dropna=False)]
    chosen = [
        _at_best_rate(of_length, loss)
        for of_length in by_length
        for loss in losses
        if loss in set(of_length["loss"])
    ]
    at_best = pd.concat(chosen)
    losses_of_cell = at_best.groupby("cell")["loss"].transform("nunique")
    shared = at_best[losses_of_cell == len(losses)]
    if shared.empty:
        return None
    return Task(
        key={column: runs[column].iloc[0] for column in TASK},
        lines=[_line(loss, shared[shared["loss"] == loss]) for loss in losses],
        cells=shared["cell"].nunique(),
        lacking=len(at_best) - len(shared),
    )


def _names(tasks: list[Task]) -> list[str]:
    """What tells the tasks apart; one alone needs no name."""
    if len(tasks) == 1:
        return [""]
    differing = [column for column in TASK if len({str(task.key[column]) for task in tasks}) > 1]
    names = []
    for task in tasks:
        values = {column: task.key[column] for column in differing}
        names.append(group_name(values) or PLAIN)
    return names


def _left_out(unpaired: int, lacking: int) -> str:
    """What is not shown, as a sentence; empty where all is."""
    parts = []
    if unpaired:
        parts.append(f"{counted(unpaired, 'run')} of tasks without cells that several losses have")
    if lacking:
        parts.append(f"{counted(lacking, 'run')} in cells that another loss lacks")
    return f"Left out: {', '.join(parts)}." if parts else ""


def _at_best_rate(runs: pd.DataFrame, loss: str) -> pd.DataFrame:
    """The runs of a loss at one learning rate.

    Of the rates that were tried on the most of the cells that the other losses have, the one that
    recalls most of those.

    Args:
        runs: of one task and length.
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
