"""`pml probe`: one adapter, one run, watched while it learns."""

from __future__ import annotations

import dataclasses
import signal

from rich.console import Console

from pml_cli.commands.sweep import check_folder, disk_faults
from pml_cli.config.schema import Request, Run
from pml_cli.data.cell import CellPlan
from pml_cli.errors import UserError
from pml_cli.io import atomic_write
from pml_cli.launch.devices import packing
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import check, make_packs
from pml_cli.launch.signals import Signals, Stopped, import_worker
from pml_cli.report.progress import ProbeDisplay
from pml_cli.report.tables.probe import probe_table
from pml_cli.runs.folder import RunFolder
from pml_cli.runs.read import read_runs

LOGGED_STEPS = 100  # a probe is looked at closely


def run(request: Request, console: Console) -> int:
    """Train one adapter, show p of every token as it learns, and write its run folder with a picture of it.

    Returns:
        exit code: 0, or 1 when the run failed.

    Raises:
        UserError: a run or a folder that cannot be used, or a full disk and the like (what was finished is kept).
    """
    (cell,) = check([_closely(request.runs[0])])
    check_folder(request.out)
    folder = RunFolder(request.out, cell.id)
    if folder.is_done():
        console.print(
            f"done already: {folder.path} (delete it to train again)",
            highlight=False,
            soft_wrap=True,
        )
    else:
        try:
            with disk_faults(request.out):
                failure = _train(cell, request, console)
        except Stopped as stopped:
            console.print("interrupted; the same command goes on from there")
            if stopped.signum == signal.SIGINT:
                raise KeyboardInterrupt from stopped
            return 128 + stopped.signum if stopped.signum else 1
        if failure is not None:
            console.print(f"failed: {failure}", style="red", highlight=False, soft_wrap=True)
            return 1
    _picture(folder)
    console.print(probe_table({str(k): v for k, v in read_runs([folder.path]).iloc[0].items()}))
    console.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)
    console.print(f"picture:    {folder.path / 'recall.png'}", highlight=False, soft_wrap=True)
    return 0


def _closely(run: Run) -> Run:
    """A probe logs a hundred steps unless told otherwise."""
    if run.train.log_every:
        return run
    (cell,) = check([run])  # how many steps its epochs are depends on the samples
    every = max(1, cell.steps // LOGGED_STEPS)
    return dataclasses.replace(run, train=dataclasses.replace(run.train, log_every=every))


def _train(cell: CellPlan, request: Request, console: Console) -> str | None:
    import_worker()
    from pml_cli.launch.worker import Worker, check_places
    from pml_cli.training.trainer import StepReport

    failures: list[str | None] = []
    run = cell.run
    title = (
        f"{run.model.name}: {run.adapter.kind} adapter of rank {run.rank} learns "
        f"{sum(len(s.target) for s in cell.samples)} target tokens ({run.data.source}, {run.loss.kind})"
    )
    check_places([Pack([cell])], here=True)
    ((cell,),) = (pack.cells for pack in make_packs([cell], packing(request.launch, [cell])))
    with WorkerLease(request.out, "inline") as member, Signals() as signals:
        worker = Worker(request.out, member, signals)
        if not member.claim(cell.id):
            raise UserError(f"{request.out}: another process trains this run")
        RunFolder(request.out, cell.id).error.unlink(missing_ok=True)
        with ProbeDisplay(console, title, cell.steps) as display:

            def observe(seen: StepReport) -> None:
                display.update(
                    seen.step,
                    float(seen.scores[0].nll.mean()),
                    seen.scores[0].nll,
                    seen.scores[0].correct,
                )

            try:
                worker.run([cell], lambda _cell, failure: failures.append(failure), observe)
            finally:
                member.release(cell.id)
    return failures[0]


def _picture(folder: RunFolder) -> None:
    import pandas as pd

    from pml_cli.report.figures.probe import recall_figure
    from pml_cli.report.figures.style import save

    try:
        figure = recall_figure(pd.read_parquet(folder.tokens))
    except (OSError, ValueError) as error:  # deleted or damaged by hand
        raise UserError(
            f"{folder.tokens}: cannot be read; delete {folder.path} and probe again"
        ) from error
    with disk_faults(folder.path):
        atomic_write(folder.path / "recall.png", lambda aside: save(figure, aside, "png"))
