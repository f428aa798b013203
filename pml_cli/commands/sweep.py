"""`pml sweep`: every combination, packed; a second call does only what is missing."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pml_cli.config.schema import InlineLaunch, LocalLaunch, Request, SlurmLaunch
from pml_cli.data.cell import CellPlan
from pml_cli.errors import UserError
from pml_cli.format import counted
from pml_cli.io import atomic_write
from pml_cli.launch import slurm
from pml_cli.launch.devices import packing
from pml_cli.launch.executors import Launcher, last_words
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import check, make_packs
from pml_cli.launch.queue import Queue, SweepManifest, work
from pml_cli.launch.signals import Signals, Stopped, held_back, import_worker
from pml_cli.launch.status import living
from pml_cli.report.progress import SweepDisplay
from pml_cli.report.tables import dry_run as dry
from pml_cli.runs.folder import RunFolder
from pml_cli.runs.read import check_formats, read_runs

INTERRUPTED = "interrupted; the same command goes on with what is missing"


def run(
    request: Request,
    console: Console,
    *,
    dry_run: bool = False,
    fail_fast: bool = False,
    wait: bool | None = None,
    retry: bool = True,
) -> int:
    """Train what is missing of the requested cells, then show and write the results.

    Args:
        dry_run: check and price, train nothing, write nothing.
        fail_fast: when a cell fails, keep checkpoints and stop.
        wait: for cells that other processes train, and for Slurm. None: yes, but not for Slurm.
        retry: train again what failed before.

    Returns:
        exit code: 0, or 1 when a cell failed.

    Raises:
        UserError: a cell that cannot be run or a folder that cannot be used (nothing has been written then); or a full disk
            and the like later on (what was finished is kept).
    """
    cells = check(request.runs)
    check_folder(request.out)
    cut = packing(request.launch, cells)
    packs = make_packs(cells, cut)
    there = {path.name for path in request.out.iterdir()} if request.out.is_dir() else set()
    begun = [(cell, RunFolder(request.out, cell.id)) for cell in cells if cell.id in there]
    done = {cell.id for cell, folder in begun if folder.is_done()}
    failed = [
        folder for cell, folder in begun if cell.id not in done and folder.failure() is not None
    ]
    left = _without(packs, done if retry else done | {folder.id for folder in failed})
    if dry_run:
        dry.show(console, request, cells, left)
        return 0
    known = (f", {len(done)} done already" if done else "") + (
        f", {len(failed)} failed before" if failed else ""
    )
    missing = [cell for pack in left for cell in pack.cells]
    console.print(
        f"{counted(cells, 'cell')}: {len(missing)} to train in {counted(left, 'pack')}{known}"
    )
    if not left:
        return finish(request, cells, console)
    if isinstance(request.launch, SlurmLaunch):
        slurm.check_there()
    try:
        _check_places(left, here=not isinstance(request.launch, SlurmLaunch))
    except KeyboardInterrupt:
        if done:
            finish(request, cells, console)
        console.print(INTERRUPTED, highlight=False, soft_wrap=True)
        raise
    with disk_faults(request.out):
        order = SweepManifest.write(request.out, packs, cut)
        with _forgotten(request.out, failed if retry else []):
            return _Sweep(request, order, cells, packs, console, fail_fast=fail_fast).run(wait)


@contextmanager
def disk_faults(out: Path) -> Iterator[None]:
    """What a disk refuses while results are written to `out` becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: {error.strerror or error}; what was finished is kept"
        ) from error


@contextmanager
def _forgotten(out: Path, failed: Sequence[RunFolder]) -> Iterator[None]:
    """Earlier failures are forgotten; where the cluster refuses and nobody is at work, those not tried again come back."""
    reasons = [(folder, folder.error.read_bytes()) for folder in failed]
    for folder, _ in reasons:
        folder.error.unlink()
    try:
        yield
    except UserError:
        for folder, content in reasons if not living(out) else []:
            if not folder.has_ended(fresh=True):
                folder.error.write_bytes(content)
        raise


class _Sweep:
    """One sweep under way: where its cells are trained, and what is said of it."""

    def __init__(
        self,
        request: Request,
        order: SweepManifest,
        cells: Sequence[CellPlan],
        packs: Sequence[Pack],
        console: Console,
        *,
        fail_fast: bool,
    ) -> None:
        self.request, self.order, self.cells, self.packs = request, order, cells, packs
        self.console, self.fail_fast, self.out = console, fail_fast, request.out
        left = self._left()
        self.display = SweepDisplay(
            console, sum(len(pack.cells) for pack in left), sum(pack.tokens for pack in left)
        )

    def run(self, wait: bool | None) -> int:
        """Here, or by workers; returns the exit code."""
        launch = self.request.launch
        if isinstance(launch, InlineLaunch):
            return self.here(launch, wait is not False)
        assert isinstance(launch, LocalLaunch | SlurmLaunch)
        return self.elsewhere(launch, isinstance(launch, LocalLaunch) if wait is None else wait)

    def here(self, launch: InlineLaunch, wait: bool) -> int:
        """Train in this process; wait for cells that others have claimed, and take over what the dead leave."""
        member = WorkerLease(self.out, "inline", launch.stale_seconds, order=self.order.key)
        try:
            with self.display, member, Signals() as signals:
                import_worker()  # takes seconds; a finished sweep does not need it
                from pml_cli.launch.worker import Worker

                worker = Worker(self.out, member, signals, 60 * launch.checkpoint_minutes)
                queue = Queue(self.out, self.packs, member)
                failures: list[str] = []

                def report(_cell: CellPlan, failure: str | None) -> None:
                    self.display.end_cell(failure)
                    if failure is not None:
                        failures.append(failure)
                        signals.end = Stopped("a cell failed") if self.fail_fast else signals.end

                def train(cells: list[CellPlan]) -> None:
                    tokens = Pack(cells).tokens
                    worker.run(
                        cells,
                        report,
                        lambda seen: self.display.step(seen.step / seen.steps, tokens),
                        queue.known,
                    )
                    self.display.end_pack(tokens)

                work(
                    queue,
                    train,
                    lambda: worker.loaded,
                    wait=wait,
                    ended=lambda: self.fail_fast and bool(failures),
                    waiting=self.display.wait_for,
                )
        except (Stopped, KeyboardInterrupt) as stopped:
            return self._stopped(stopped, INTERRUPTED)
        return finish(self.request, self.cells, self.console)

    def elsewhere(self, launch: LocalLaunch | SlurmLaunch, wait: bool) -> int:
        """Start workers, and wait for them where that is wanted."""
        launcher = Launcher(self.out, self.order, launch, self.cells, self.fail_fast)
        local = isinstance(launch, LocalLaunch)
        try:
            started = range(launcher.start(self._left()))
            what = counted(started, "process", "es") if local else counted(started, "Slurm job")
            at_work = "" if started else "; those of this folder that are queued or running go on"
            self.console.print(f"{what} started{at_work}", highlight=False, soft_wrap=True)
            if not wait:
                path = _quoted(self.out)
                self.console.print(
                    f"watch: pml status {path} --watch    stop: pml cancel {path}", soft_wrap=True
                )
                return 0
            with self.display:
                whole = launcher.wait(self._left, self.display.follow)
        except (Stopped, KeyboardInterrupt) as stopped:
            if local:
                launcher.end()
            goes_on = (
                "no longer waiting; the jobs go on (pml status shows them, pml cancel stops them)"
            )
            cancelled = isinstance(stopped, Stopped) and stopped.signum is None
            return self._stopped(
                stopped, "interrupted; the same command goes on" if local or cancelled else goes_on
            )
        if not whole and not any(folder.error.exists() for folder in map(self._folder, self.cells)):
            self.console.print(
                f"the workers ended too early; the last one said: {last_words(self.out)}",
                soft_wrap=True,
            )
        return finish(self.request, self.cells, self.console)

    def _left(self) -> list[Pack]:
        return _without(
            self.packs, {cell.id for cell in self.cells if self._folder(cell).has_ended()}
        )

    def _folder(self, cell: CellPlan) -> RunFolder:
        return RunFolder(self.out, cell.id)

    def _stopped(self, stopped: BaseException, words: str) -> int:
        """What is left to say when training was asked to end."""
        finish(self.request, self.cells, self.console)
        self.console.print(words, highlight=False, soft_wrap=True)
        signum = stopped.signum if isinstance(stopped, Stopped) else signal.SIGINT
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        if signum is None:
            self.console.print(str(stopped), highlight=False)
        return 128 + signum if signum else 1


def _check_places(packs: Sequence[Pack], here: bool) -> None:
    import_worker()
    from pml_cli.launch.worker import check_places

    with held_back():  # it builds models, for which more is imported
        check_places(packs, here)


def _without(packs: Sequence[Pack], ended: set[str]) -> list[Pack]:
    """The packs without the cells that have ended."""
    parts = ([cell for cell in pack.cells if cell.id not in ended] for pack in packs)
    return [Pack(cells) for cells in parts if cells]


def check_folder(out: Path) -> None:
    """Refuse a results folder that is a file, cannot be written, or holds another version's runs."""
    check_formats(out)
    place = next(p for p in (out, *out.resolve().parents) if p.exists())
    if not place.is_dir():
        raise UserError(f"out={out}: {place} is a file, a folder is needed")
    try:
        with _Touch(place):
            pass
    except OSError as error:
        raise UserError(f"out={out}: cannot write below {place} ({error.strerror})") from error


class _Touch:
    """A file that exists for a moment: os.access does not know of read-only mounts."""

    def __init__(self, place: Path) -> None:
        import uuid

        self.path = place / f".pml-{uuid.uuid4().hex[:8]}"

    def __enter__(self) -> None:
        self.path.touch()

    def __exit__(self, *_: object) -> None:
        self.path.unlink()


def finish(request: Request, cells: Sequence[CellPlan], console: Console) -> int:
    """Write results.csv, show the table, name the failures and what to do next."""
    failures = {
        cell.id: reason
        for cell in cells
        if (reason := RunFolder(request.out, cell.id).failure()) is not None
    }
    from pml_cli.report.tables.results import results_table

    left_out: list[str] = []
    runs = read_runs([request.out], left_out)
    if len(runs):
        atomic_write(request.out / "results.csv", lambda aside: runs.to_csv(aside, index=False))
        wanted = {cell.id for cell in cells}
        console.print(results_table(runs[runs["id"].isin(wanted)]))
    for line in left_out:  # what another sweep has left damaged here is no fault of this one
        console.print(f"left out: {line}", style="yellow", highlight=False, soft_wrap=True)
    for name, reason in failures.items():
        console.print(f"failed {name}: {reason}", style="red", highlight=False, soft_wrap=True)
    done = sum(RunFolder(request.out, cell.id).is_done() for cell in cells)
    if len(runs):
        console.print(
            f"{done} of {len(cells)} cells done: {request.out / 'results.csv'}",
            highlight=False,
            soft_wrap=True,
        )
    if failures:
        console.print(
            f"{len(failures)} failed; the same command (with --retry) tries them again",
            highlight=False,
        )
    if done < len(cells):
        others = sum(record["kind"] != "driver" for record in living(request.out))
        if others and not failures:
            console.print(
                f"the rest is with {counted(range(others), 'other process', 'es')}", highlight=False
            )
        return 1 if failures or not others else 0
    if len(cells) > 1:
        console.print(f"next: pml fit {_quoted(request.out)}", highlight=False, soft_wrap=True)
    return 0


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
