"""`pml probe`: train one adapter, and watch it while it learns."""

from __future__ import annotations

import dataclasses
import signal
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pml_cli.config.schema import Request, Run
from pml_cli.data.cell import CellPlan
from pml_cli.errors import UserError
from pml_cli.format import counted
from pml_cli.io import atomic_write, json_text, jsonable, table_records
from pml_cli.launch.driver import check_models
from pml_cli.launch.pack import Pack, as_found
from pml_cli.launch.packing import check_with_weights, make_packs, packing_for
from pml_cli.launch.signals import Stopped
from pml_cli.launch.worker import train_here
from pml_cli.report.first_token import print_prompts, print_unmoved
from pml_cli.report.output import consoles, print_json
from pml_cli.report.progress import ProbeDisplay
from pml_cli.report.sweep_summary import outdated_line
from pml_cli.report.tables.data import show_warnings
from pml_cli.report.tables.probe import missing_fields, probe_table
from pml_cli.report.tables.samples import probe_lines
from pml_cli.results.folder import RunFolder
from pml_cli.results.output_folder import check_output_folder, disk_faults
from pml_cli.results.read import read_runs
from pml_cli.results.run_folders import RunFolders
from pml_cli.results.run_id import loss_label, run_id

if TYPE_CHECKING:
    import pandas as pd

# Logged steps of a probe, which is looked at more closely than the cells of a sweep.
LOGGED_STEPS = 100


def run(
    request: Request,
    stdout: Console,
    *,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Train one adapter, show p of every token as it learns, and write its run folder and figure.

    Args:
        request: one run, and the folder for it.
        stdout: to print to.
        as_json: print folder and result as JSON; the rest goes to standard error.
        quiet: show no progress, only the result.

    Returns:
        exit code: 0, or 1 when the run failed.

    Raises:
        UserError: a run or a folder that cannot be used, or a full disk and the like.
    """
    console, progress = consoles(stdout, as_json=as_json, quiet=quiet)
    try:
        folder = train(request, console, progress)
    except Stopped as stopped:
        console.print("interrupted; the same command goes on from there")
        # The shell's convention: 130 for Ctrl-C (in cli.main), 128 + signal for others.
        if stopped.signum == signal.SIGINT:
            raise KeyboardInterrupt from stopped
        return 128 + stopped.signum if stopped.signum else 1

    failure = None if folder.is_done() else folder.failure()
    content: dict[str, Any] = {"folder": str(folder.path), "failed": failure, "result": None}
    if failure is not None:
        console.print(f"failed: {failure}", style="red", highlight=False, soft_wrap=True)
    else:
        content["result"] = _show(folder, console)
    if as_json:
        print_json(stdout, json_text(content))
    return 0 if failure is None else 1


def _show(folder: RunFolder, console: Console) -> dict[str, Any]:
    """Draw and print what a finished run recalls; its result for JSON."""
    # Drawn also for a run that was done before: the figure may be missing or of an older version.
    _draw(folder)
    runs = read_runs([folder.path])
    console.print(probe_table(_whole_result(folder, runs)))
    for line in probe_lines(folder):
        console.print(line, highlight=False, soft_wrap=True)
    print_unmoved(runs, console)
    console.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)
    console.print(f"picture:    {folder.path / 'recall.png'}", highlight=False, soft_wrap=True)

    result: dict[str, Any] = jsonable(table_records(runs)[0])
    return result


def train(request: Request, console: Console, progress: Console) -> RunFolder:
    """Train one adapter, unless it is done already.

    Args:
        request: one run, and the folder for it.
        console: for warnings.
        progress: where it is shown how the adapter learns.

    Returns:
        The run folder, with a result or with a failure.

    Raises:
        UserError: a run or a folder that cannot be used, or a full disk and the like.
        Stopped: interrupted; the same call goes on from there.
    """
    cell = _plan(request.runs[0])
    print_prompts(request.runs, console, progress)
    check_output_folder(request.out)
    show_warnings(console, [cell])
    cell = as_found(cell, RunFolders(request.out))
    folder = RunFolder(request.out, cell.id)

    if folder.is_done(cell.tokens_hash):
        progress.print(
            f"done already: {folder.path} (delete it to train again)",
            highlight=False,
            soft_wrap=True,
        )
        return folder

    if folder.is_done():
        line = outdated_line(request.out, 1)
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    with disk_faults(request.out):
        _train(cell, request, progress)
    return folder


def _plan(run: Run) -> CellPlan:
    """Check the run; without a setting of its own it logs a hundred of its steps."""
    (cell,) = check_with_weights([run])
    run = cell.run
    if run.train.log_every:
        return cell

    # A training given in epochs has a number of steps only once its samples are known.
    log_every = max(1, cell.steps // LOGGED_STEPS)
    logged = dataclasses.replace(run, train=dataclasses.replace(run.train, log_every=log_every))
    return dataclasses.replace(cell, id=run_id(logged), run=logged)


def _train(cell: CellPlan, request: Request, progress: Console) -> None:
    check_models([Pack(cells=[cell])], on_this_machine=True)
    packs = make_packs([cell], packing_for(request.launch, [cell]))

    # A probe retries a run that has failed; the error would count as its end.
    folder = RunFolder(request.out, cell.id)
    folder.forget_failure()
    folder.make_room(cell.tokens_hash)

    with ProbeDisplay(progress, _title(cell), cell.steps) as display:
        train_here(request.out, packs, request.launch, display, wait=False)
    if not folder.has_ended(cell.tokens_hash):
        raise UserError(f"{request.out}: another process trains this run")


def _title(cell: CellPlan) -> str:
    run = cell.run
    tokens = sum(len(sample.target) for sample in cell.samples)
    return (
        f"{run.model.name}: {run.adapter.kind} adapter of rank {run.rank} learns "
        f"{counted(tokens, 'target token')} ({run.data.label}, {loss_label(run.loss)})"
    )


def _whole_result(folder: RunFolder, runs: pd.DataFrame) -> dict[str, Any]:
    """The fields of the only run.

    Raises:
        UserError: one that is shown is missing.
    """
    result = {str(name): value for name, value in runs.iloc[0].items()}
    missing = missing_fields(result)
    if missing:
        reason = f"has no {missing[0]}; delete {folder.path} and probe again"
        raise UserError(f"{folder.result}: {reason}")
    return result


def _draw(folder: RunFolder) -> None:
    """Write the figure of recall by token and step.

    Raises:
        UserError: the run's tokens cannot be read, or the figure cannot be written.
    """
    from pml_cli.report.figures.probe import recall_figure
    from pml_cli.report.figures.style import save
    from pml_cli.results.tokens import IrregularError, read_frame

    try:
        figure = recall_figure(read_frame(folder.tokens))
    except (OSError, IrregularError) as error:
        # The run is done, so the file was deleted or damaged since.
        raise UserError(
            f"{folder.tokens}: cannot be read; delete {folder.path} and probe again"
        ) from error
    with disk_faults(folder.path):
        atomic_write(folder.path / "recall.png", lambda aside: save(figure, aside, "png"))
