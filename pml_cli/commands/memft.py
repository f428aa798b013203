"""`pml memft`: the same cells under several losses at equal steps and tokens, compared in pairs."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console

from pml_cli.analysis.paired import compare
from pml_cli.analysis.rank_thresholds import rank_table
from pml_cli.config.schema import Request
from pml_cli.errors import UserError
from pml_cli.io import json_text, jsonable, table_records
from pml_cli.launch.driver import (
    batch_script,
    check_models_for_dry_run,
    plan_sweep,
    train_sweep,
)
from pml_cli.report import folder_index, memft_folder
from pml_cli.report.base_knowledge import base_lines
from pml_cli.report.first_token import print_prompts
from pml_cli.report.foreign_files import check_files
from pml_cli.report.output import consoles, print_json
from pml_cli.report.progress import SweepDisplay
from pml_cli.report.sweep_summary import (
    RESULTS,
    conclude,
    plan_line,
    print_next,
    runs_of,
    say_outdated,
    sweep_content,
)
from pml_cli.report.tables import dry_run as dry_run_table
from pml_cli.report.tables.data import show_warnings
from pml_cli.report.tables.memft import comparison_report, ranks_report
from pml_cli.results.read import read_runs
from pml_cli.results.run_id import loss_label


def run(
    request: Request,
    stdout: Console,
    *,
    dry_run: bool = False,
    fail_fast: bool = False,
    wait: bool | None = None,
    retry: bool = True,
    show_all: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Train what is missing (as `sweep.run`), then compare each loss with plain fine-tuning (sft).

    Args:
        request: the cells, the results folder and the launch.
        stdout: to print to.
        dry_run, fail_fast, wait, retry, show_all, quiet: as of `sweep.run`.
        as_json: print counts, results and comparison as JSON; the rest goes to standard error.

    Returns:
        exit code: 0, or 1 when a cell failed.

    Raises:
        UserError: fewer than two losses, or none of them sft.
    """
    if as_json and dry_run:
        raise UserError("--json: cannot be combined with --dry-run, which trains nothing")
    console, progress = consoles(stdout, as_json=as_json, quiet=quiet)
    _check_losses(request)
    check_files(request.out, (RESULTS, "comparison.csv", "ranks.csv"), figures=("memft",))
    plan = plan_sweep(request, retry=retry, download=not dry_run)
    if dry_run:
        check_models_for_dry_run(plan)
        dry_run_table.show(console, request, plan.cells, plan.todo)
        say_outdated(plan, console)
        dry_run_table.show_script(console, batch_script(plan))
        return 0

    progress.print(plan_line(plan))
    print_prompts(request.runs, console, progress)
    show_warnings(console, plan.cells)
    say_outdated(plan, console)
    with SweepDisplay.of(plan, progress) as display:
        outcome = train_sweep(plan, display, wait=wait, fail_fast=fail_fast)
    code = conclude(plan, outcome, console, show_all=show_all)

    # `conclude` has already named the results that cannot be read; `left_out` takes them silently.
    runs = read_runs([request.out], left_out=[])
    tables: dict[str, pd.DataFrame] = {}
    if len(runs):
        # The folder may hold runs of earlier sweeps with other settings.
        tables = _report(request, runs_of(plan.cells, runs), console)
    print_next(plan, console)
    if as_json:
        content = sweep_content(plan) | _tables_content(tables)
        print_json(stdout, json_text(content))
    return code


def _tables_content(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The rows of the comparison, and of the ranks where there are thresholds."""
    names = ("comparison", "ranks")
    return {name: jsonable(table_records(tables[name])) if name in tables else [] for name in names}


def _check_losses(request: Request) -> None:
    losses = {loss_label(run.loss) for run in request.runs}
    if "sft" not in losses or len(losses) < 2:
        raise UserError(
            f"loss={','.join(sorted(losses))}: a comparison needs sft and another loss, such as "
            "loss=sft,memft_ot"
        )


def _report(request: Request, runs: pd.DataFrame, console: Console) -> dict[str, pd.DataFrame]:
    """Print the comparison and write its files.

    Returns:
        The tables, by name.
    """
    # Every measure is compared in pairs, so that a text that is hard counts for both losses.
    comparison = compare(runs)
    if comparison.empty:
        console.print("nothing to compare: no cell has finished under sft and under another loss")
        return {}

    for part in comparison_report(comparison):
        console.print(part)
    for line in base_lines(runs):
        console.print(line, highlight=False)
    ranks = rank_table(runs)
    if len(ranks):
        for part in ranks_report(ranks):
            console.print(part)

    for path in memft_folder.write_tables(request.out, comparison, ranks):
        console.print(f"{path.stem}: {path}", highlight=False, soft_wrap=True)
    for path in memft_folder.write_figures(request.out, runs, comparison, ranks):
        console.print(f"figure: {path}", highlight=False, soft_wrap=True)
    for name in folder_index.write(request.out):
        path = request.out / name
        console.print(f"what each shows: {path}", highlight=False, soft_wrap=True)
    return {"comparison": comparison, "ranks": ranks}
