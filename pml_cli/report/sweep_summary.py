"""What is said of a sweep: before it trains, and when it has ended."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pml_cli.data.cell import CellPlan
from pml_cli.errors import MAX_LISTED
from pml_cli.format import counted
from pml_cli.io import jsonable, table_records, write_csv
from pml_cli.launch.driver import Outcome, SweepPlan, workers_ended
from pml_cli.launch.executors.base import Ending
from pml_cli.launch.liveness import living_processes
from pml_cli.launch.signals import Stopped
from pml_cli.launch.status import DRIVER
from pml_cli.report.first_token import print_unmoved
from pml_cli.report.tables.results import results_table
from pml_cli.report.tables.samples import sweep_lines
from pml_cli.results.folder import REPLACED
from pml_cli.results.read import read_runs
from pml_cli.results.run_folders import RunFolders, run_key

if TYPE_CHECKING:
    import pandas as pd

# In the results folder, a row for each of its runs.
RESULTS = "results.csv"

# Of more cells the table is not printed without --all: the answer would scroll off the screen.
MOST_ROWS = 20


def plan_line(plan: SweepPlan) -> str:
    """How many cells a sweep has, and how many of them are to be trained."""
    missing = sum(len(pack.cells) for pack in plan.todo)
    line = f"{counted(plan.cells, 'cell')}: {missing} to train in {counted(plan.todo, 'pack')}"
    if plan.done:
        line += f", {len(plan.done)} done already"
    if plan.failed:
        line += f", {len(plan.failed)} failed before"
    return line


def say_outdated(plan: SweepPlan, console: Console) -> None:
    """Say how many finished cells are trained again, since they had learned other tokens."""
    if plan.outdated:
        line = outdated_line(plan.out, len(plan.outdated))
        console.print(line, style="yellow", highlight=False, soft_wrap=True)


def outdated_line(out: Path, count: int) -> str:
    """What is said of finished runs that are trained again."""
    return (
        f"{count} finished before on other tokens (the data, the tokenizer or its chat template "
        f"has changed) and trained again; their old folders are kept in {out / REPLACED}"
    )


def conclude(plan: SweepPlan, outcome: Outcome, console: Console, *, show_all: bool = False) -> int:
    """Print how a sweep ended, and its results.

    Args:
        plan: of the sweep.
        outcome: how it ended.
        console: to print to.
        show_all: print the table and every failure, also where there are many cells.

    Returns:
        exit code: 0; 1 where a cell failed or the sweep was cancelled; 128 and more after a signal.

    Raises:
        KeyboardInterrupt: the sweep was interrupted from the keyboard.
    """
    if outcome.ending is Ending.DETACHED:
        folder = quoted(plan.out)
        console.print(
            f"watch: pml status {folder} --watch    stop: pml cancel {folder}", soft_wrap=True
        )
        return 0

    # Finished cells are worth a table, whatever happened to the others.
    if outcome.stopped is not None:
        if outcome.trained:
            summarise(plan.out, plan.cells, console, show_all=show_all)
        console.print(outcome.message, highlight=False, soft_wrap=True)
        return exit_code(outcome.stopped, console)

    # Failed cells explain themselves in the summary.
    folders = RunFolders(plan.out)
    failed = any(folders.find(cell.id).error.exists() for cell in plan.cells)
    if outcome.ending is Ending.GAVE_UP and not failed:
        console.print(workers_ended(plan.out), soft_wrap=True)
    return summarise(plan.out, plan.cells, console, show_all=show_all)


def sweep_content(plan: SweepPlan) -> dict[str, Any]:
    """What `pml sweep --json` prints: how many cells, which failed and why, and the results."""
    folders = RunFolders(plan.out)
    reasons = {cell.id: folders.find(cell.id).failure() for cell in plan.cells}
    failed = {name: reason for name, reason in reasons.items() if reason is not None}
    finished = [cell for cell in plan.cells if folders.find(cell.id).is_done(cell.tokens_hash)]

    runs = read_runs([plan.out], left_out=[])
    results = table_records(runs_of(finished, runs)) if len(runs) else []
    return {
        "out": str(plan.out),
        "cells": len(plan.cells),
        "done": len(finished),
        "failed": failed,
        "results": jsonable(results),
    }


def runs_of(cells: Sequence[CellPlan], runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of some cells, whatever the readable front of their ids.

    Args:
        cells: of a sweep.
        runs: one row a run, as `read_runs` of a folder that may hold other runs too.
    """
    keys = {run_key(cell.id) for cell in cells}
    return runs[runs["id"].map(run_key).isin(keys)]


def exit_code(stopped: Stopped, console: Console) -> int:
    """The exit code of a sweep that was interrupted; a line where `pml cancel` did it.

    Raises:
        KeyboardInterrupt: from the keyboard.
    """
    if stopped.signum == signal.SIGINT:
        raise KeyboardInterrupt
    if stopped.signum is None:
        console.print(str(stopped), highlight=False)
        return 1
    return 128 + stopped.signum


def summarise(
    out: Path, cells: Sequence[CellPlan], console: Console, *, show_all: bool = False
) -> int:
    """Write results.csv, print the table, name the failures.

    Args:
        out: the results folder; results.csv holds all its runs.
        cells: those of the sweep.
        console: to print to.
        show_all: print the table and every failure, also where there are many cells.

    Returns:
        exit code: 0, or 1 where a cell failed or is missing and no process trains it.
    """
    unreadable: list[str] = []
    runs = read_runs([out], unreadable)
    path = out / RESULTS
    if len(runs):
        write_csv(path, runs)
        of_sweep = runs_of(cells, runs)
        if show_all or len(of_sweep) <= MOST_ROWS:
            console.print(results_table(of_sweep))
        else:
            line = f"the table of {len(of_sweep)} cells: {path}; --all prints it"
            console.print(line, highlight=False, soft_wrap=True)
        for line in sweep_lines(of_sweep):
            console.print(line, highlight=False, soft_wrap=True)
        print_unmoved(of_sweep, console)

    # Damaged results of other sweeps in this folder do not fail this one.
    for line in unreadable:
        console.print(f"left out: {line}", style="yellow", highlight=False, soft_wrap=True)
    failures = _print_failures(out, cells, console, show_all=show_all)

    done = _done(out, cells)
    if len(runs):
        console.print(f"{done} of {len(cells)} cells done: {path}", highlight=False, soft_wrap=True)
    if failures:
        them = "it" if failures == 1 else "them"
        console.print(
            f"{failures} failed; the same command (without --no-retry) tries {them} again",
            highlight=False,
            soft_wrap=True,
        )
    if done < len(cells):
        return _incomplete(out, failures, console)
    return 0


def print_next(plan: SweepPlan, console: Console) -> None:
    """Name the command that fits a law to the cells, once all of them are done."""
    # A law needs more than one cell.
    if len(plan.cells) > 1 and _done(plan.out, plan.cells) == len(plan.cells):
        console.print(f"next: pml fit {quoted(plan.out)}", highlight=False, soft_wrap=True)


def _done(out: Path, cells: Sequence[CellPlan]) -> int:
    """Number of cells whose result is there."""
    folders = RunFolders(out)
    return sum(folders.find(cell.id).is_done(cell.tokens_hash) for cell in cells)


def _print_failures(
    out: Path, cells: Sequence[CellPlan], console: Console, *, show_all: bool
) -> int:
    """Print a line for each failed cell, of many the first ones; how many there are."""
    folders = RunFolders(out)
    reasons = {cell.id: folders.find(cell.id).failure() for cell in cells}
    lines = [f"failed {name}: {why}" for name, why in reasons.items() if why is not None]

    for line in lines if show_all else lines[:MAX_LISTED]:
        console.print(line, style="red", highlight=False, soft_wrap=True)
    more = len(lines) - MAX_LISTED
    if more > 0 and not show_all:
        console.print(f"and {more} more failed; --all names them", style="red", highlight=False)
    return len(lines)


def _incomplete(out: Path, failures: int, console: Console) -> int:
    """The exit code where cells are missing, and who trains them."""
    others = sum(record["kind"] != DRIVER for record in living_processes(out))
    if failures or not others:
        return 1
    console.print(f"the rest is with {counted(others, 'other process', 'es')}", highlight=False)
    return 0


def quoted(path: Path) -> str:
    """A path for a shell."""
    return shlex.quote(str(path))
