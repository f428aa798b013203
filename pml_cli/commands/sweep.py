"""`pml sweep`: train every combination, packed; a second call trains only what is missing."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pml_cli.config.schema import Request
from pml_cli.errors import UserError
from pml_cli.io import json_text
from pml_cli.launch.driver import (
    batch_script,
    check_models_for_dry_run,
    plan_sweep,
    train_sweep,
)
from pml_cli.report.design import design_line, pilot_at
from pml_cli.report.first_token import print_prompts
from pml_cli.report.foreign_files import check_files
from pml_cli.report.output import consoles, print_json
from pml_cli.report.progress import SweepDisplay
from pml_cli.report.sweep_summary import (
    RESULTS,
    conclude,
    plan_line,
    print_next,
    say_outdated,
    sweep_content,
)
from pml_cli.report.tables import dry_run as dry_run_table
from pml_cli.report.tables.data import show_warnings


def run(
    request: Request,
    stdout: Console,
    *,
    dry_run: bool = False,
    design: Path | None = None,
    fail_fast: bool = False,
    wait: bool | None = None,
    retry: bool = True,
    show_all: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Train what is missing of the requested cells, then print and write the results.

    Args:
        request: the cells, the results folder and the launch.
        stdout: to print to.
        dry_run: check and estimate; train nothing, write nothing.
        design: the report of a pilot fit, from whose law a dry run simulates the cells.
        fail_fast: when a cell fails, save checkpoints and stop.
        wait: stay until every cell has ended, those of other processes included; None: as is usual
            for the launch (not on Slurm).
        retry: train again what failed before.
        show_all: print the table and every failure, also where there are many cells.
        as_json: print counts and results as JSON; the rest goes to standard error.
        quiet: show no progress, only the result.

    Returns:
        exit code: 0, or 1 when a cell failed.

    Raises:
        UserError: a cell that cannot be run or a folder that cannot be used (nothing has been
            written then), or a full disk later on (what was finished is kept).
    """
    if as_json and dry_run:
        raise UserError("--json: cannot be combined with --dry-run, which trains nothing")
    console, progress = consoles(stdout, as_json=as_json, quiet=quiet)
    # Raises before anything is written, so that a refused sweep leaves no folder behind.
    if design is not None and not dry_run:
        raise UserError(f"--design {design}: needs --dry-run")
    pilot = pilot_at(design) if design is not None else None
    check_files(request.out, [RESULTS])
    plan = plan_sweep(request, retry=retry, download=not dry_run)
    if dry_run:
        check_models_for_dry_run(plan)
        dry_run_table.show(console, request, plan.cells, plan.todo)
        console.print(design_line(plan.cells, pilot), highlight=False, soft_wrap=True, markup=False)
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
    print_next(plan, console)
    if as_json:
        print_json(stdout, json_text(sweep_content(plan)))
    return code
