"""One sweep from its request to its end: plan the cells, train what is missing.

Shared by `pml sweep` and `pml memft`. What is printed meanwhile is up to the observer.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pml_cli.config.schema import Request
from pml_cli.data.cell import CellPlan
from pml_cli.errors import UserError, WorkersError
from pml_cli.launch.executors.base import Ending, Executor, SweepJob, last_log_line
from pml_cli.launch.liveness import living_processes
from pml_cli.launch.manifest import SweepManifest
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.pack import Pack, as_found
from pml_cli.launch.packing import (
    Packing,
    check,
    check_with_weights,
    make_packs,
    packing_for,
    without_cells,
)
from pml_cli.launch.signals import Stopped, deferred_signals
from pml_cli.launch.worker_import import import_trainer
from pml_cli.model.model_config import is_read_as_it_is
from pml_cli.results.folder import RunFolder
from pml_cli.results.output_folder import check_output_folder, disk_faults
from pml_cli.results.run_folders import RunFolders

RESUME_HINT = "interrupted; the same command goes on with what is missing"


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A checked sweep.

    Attributes:
        request: the request that it was planned from.
        cells: every cell, in the order asked for.
        packing: how the cells are cut into packs.
        packs: every pack.
        done: ids of the cells that were done before.
        failed: folders of the cells that failed before.
        outdated: folders of cells that were done, but had learned other tokens than they would now
            (their data, tokenizer or chat template has changed).
        todo: the packs without the cells that are not to be trained.
        retry: whether cells that failed before are trained again.
    """

    request: Request
    cells: Sequence[CellPlan]
    packing: Packing
    packs: Sequence[Pack]
    done: frozenset[str]
    failed: Sequence[RunFolder]
    outdated: Sequence[RunFolder]
    todo: Sequence[Pack]
    retry: bool

    @property
    def out(self) -> Path:
        """The results folder."""
        return self.request.out


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the training of a sweep ended.

    Attributes:
        ending: as the executor reports it.
        stopped: what interrupted it; None: nothing did.
        message: what becomes of an interrupted sweep, for the user.
        trained: whether any training was begun.
    """

    ending: Ending
    stopped: Stopped | None = None
    message: str = ""
    trained: bool = True


def plan_sweep(request: Request, *, retry: bool = True, download: bool = True) -> SweepPlan:
    """Check every cell and the results folder, and cut the cells into packs.

    Args:
        request: the cells, the results folder and the launch.
        retry: whether cells that failed before are trained again.
        download: whether weights of the hub may be downloaded for it (`check_with_weights`).

    Raises:
        UserError: a cell that cannot be run, or a folder that cannot be used; nothing is written.
    """
    checked = check_with_weights if download else check
    cells = checked(request.runs)
    check_output_folder(request.out)
    folders = RunFolders(request.out)
    cells = [as_found(cell, folders) for cell in cells]
    cut = packing_for(request.launch, cells)
    packs = make_packs(cells, cut)

    ended = _ended_before(folders, cells)
    skipped = ended.done if retry else ended.done | {folder.id for folder in ended.failed}
    return SweepPlan(
        request=request,
        cells=cells,
        packing=cut,
        packs=packs,
        done=frozenset(ended.done),
        failed=ended.failed,
        outdated=ended.outdated,
        todo=without_cells(packs, skipped),
        retry=retry,
    )


@dataclass(kw_only=True)
class _Ended:
    """Cells of a sweep that ended before; attributes as in `SweepPlan`."""

    done: set[str] = field(default_factory=set)
    failed: list[RunFolder] = field(default_factory=list)
    outdated: list[RunFolder] = field(default_factory=list)


def _ended_before(folders: RunFolders, cells: Sequence[CellPlan]) -> _Ended:
    ended = _Ended()
    for cell in cells:
        if not folders.exists(cell.id):
            continue

        folder = folders.find(cell.id)
        if folder.is_done(cell.tokens_hash):
            ended.done.add(cell.id)
        elif folder.failure() is not None:
            ended.failed.append(folder)
        elif folder.is_done():
            ended.outdated.append(folder)
    return ended


def train_sweep(
    plan: SweepPlan, observer: RunObserver, *, wait: bool | None = None, fail_fast: bool = False
) -> Outcome:
    """Train what is missing of a sweep.

    Args:
        plan: of the sweep.
        observer: hears of the progress.
        wait: whether to stay until every cell has ended; None: as is usual for the launch.
        fail_fast: whether the first failed cell ends the sweep.

    Raises:
        UserError: a model or device that cannot be used, or no worker can be started (nothing has
            been written then); or a full disk and the like later on (what was finished is kept).
    """
    if not plan.todo:
        return Outcome(ending=Ending.COMPLETE, trained=False)

    launch = plan.request.launch
    # Nothing is written before these two have passed.
    launch.check_available()
    try:
        check_models(plan.todo, on_this_machine=not launch.remote)
    except KeyboardInterrupt:
        return Outcome(
            ending=Ending.STOPPED,
            stopped=Stopped("SIGINT", signal.SIGINT),
            message=RESUME_HINT,
            # Earlier runs of the sweep are still worth a table.
            trained=bool(plan.done),
        )

    with disk_faults(plan.out):
        hashes = {cell.id: cell.tokens_hash for cell in plan.cells}
        for folder in plan.outdated:
            # Not one that another process has trained anew since the sweep was planned.
            folder.make_room(hashes[folder.id])
        manifest = SweepManifest.write(plan.out, plan.packs, plan.packing)
        with _forgotten_failures(plan.out, plan.failed if plan.retry else []):
            job = SweepJob(
                out=plan.out,
                manifest=manifest,
                packs=plan.packs,
                fail_fast=fail_fast,
            )
            executor = launch.executor(job)
            return _run(executor, observer, launch.waits if wait is None else wait)


def check_workers(outcome: Outcome, out: Path) -> None:
    """For callers that go on with the results.

    Raises:
        WorkersError: the workers gave up.
    """
    if outcome.ending is Ending.GAVE_UP:
        raise WorkersError(workers_ended(out))


def workers_ended(out: Path) -> str:
    """Why workers ended before all was trained, as far as their logs tell."""
    return f"the workers ended too early; the last line of their logs: {last_log_line(out)}"


def _run(executor: Executor, observer: RunObserver, wait: bool) -> Outcome:
    try:
        return Outcome(ending=executor.run(observer, wait=wait))
    except (Stopped, KeyboardInterrupt) as interrupt:
        stopped = interrupt if isinstance(interrupt, Stopped) else Stopped("SIGINT", signal.SIGINT)
        message = executor.interrupted(stopped)
        return Outcome(ending=Ending.STOPPED, stopped=stopped, message=message)


def check_models_for_dry_run(plan: SweepPlan) -> None:
    """Check models other than the embedded one, as far as that needs no weights.

    The embedded model has passed when the sweep was planned, without an import of torch.

    Raises:
        UserError: all faults at once, one line each.
    """
    packs = [pack for pack in plan.todo if not is_read_as_it_is(pack.cells[0].run.model)]
    if packs:
        check_models(packs, on_this_machine=False)


def batch_script(plan: SweepPlan) -> str:
    """The batch script that the sweep would submit; empty where there is none."""
    if not plan.todo:
        return ""
    job = SweepJob(
        out=plan.out,
        manifest=SweepManifest.planned(plan.out, plan.packs),
        packs=plan.packs,
        fail_fast=False,
    )
    executor: Executor = plan.request.launch.executor(job)
    return executor.script()


def check_models(packs: Sequence[Pack], *, on_this_machine: bool) -> None:
    """Check that every model has the modules that its adapters need; imports torch.

    Args:
        packs: to be trained.
        on_this_machine: whether their device has to be here.

    Raises:
        UserError: all faults at once, one line each.
    """
    import_trainer()
    from pml_cli.launch import preflight

    # Building a model imports more modules.
    with deferred_signals():
        preflight.check_models(packs, on_this_machine=on_this_machine)


@contextmanager
def _forgotten_failures(out: Path, failed: Sequence[RunFolder]) -> Iterator[None]:
    """Forget earlier failures, so that their cells are trained again.

    Where no worker can be started, the failures that were not tried again come back.
    """
    contents = [(folder, folder.failure() or "") for folder in failed]
    for folder in failed:
        folder.forget_failure()
    try:
        yield
    except UserError:
        if not living_processes(out):
            for folder, reason in contents:
                if not folder.has_ended(fresh=True):
                    folder.fail(reason)
        raise
