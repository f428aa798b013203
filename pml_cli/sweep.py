"""`pml sweep`: every combination, packed; a second call does only what is missing."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import launch as launching
from . import price, slurm, units
from .claims import Member
from .config import InlineLaunch, LocalLaunch, Request, SlurmLaunch
from .errors import UserError
from .plan import Pack, Planned, check, make_packs
from .progress import SweepDisplay
from .records import RunFolder, check_formats, read_runs, write_whole
from .status import living
from .stop import Signals, Stopped
from .work import Order, Queue, work

LISTED = 30  # packs in the table of a dry run


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
        fail_fast: stop at the first cell that fails.
        wait: for cells that other processes train, and for Slurm. None: yes, but not for Slurm.
        retry: train again what failed before.

    Returns:
        exit code: 0, or 1 when a cell failed.

    Raises:
        UserError: a cell that cannot be run, or a folder that cannot be used; nothing has been written then.
    """
    launch = request.launch
    wait = not isinstance(launch, SlurmLaunch) if wait is None else wait
    cells = check(request.runs)
    check_folder(request.out)
    packing = launching.packing(launch, cells)
    packs = make_packs(cells, packing)
    there = {path.name for path in request.out.iterdir()} if request.out.is_dir() else set()
    begun = [(cell, RunFolder(request.out, cell.id)) for cell in cells if cell.id in there]
    done = {cell.id for cell, folder in begun if folder.is_done()}
    failed = [cell for cell, folder in begun if cell.id not in done and folder.failure() is not None]
    left = _left(packs, done if retry else done | {cell.id for cell in failed})
    if dry_run:
        _list(console, request, cells, left)
        return 0
    missing = sum(len(pack.cells) for pack in left)
    known = f", {len(done)} done already" if done else ""
    known += f", {len(failed)} failed before" if failed else ""
    console.print(f"{_count(cells, 'cell')}: {missing} to train in {_count(left, 'pack')}{known}")
    if not left:
        return finish(request, cells, console)
    if isinstance(launch, SlurmLaunch):
        slurm.check_there()
    _check_places(left)
    try:
        order = Order.write(request.out, packs, packing)
        if retry:
            _forget(request.out, failed)
        return _train(request, order, cells, packs, console, fail_fast=fail_fast, wait=wait)
    except OSError as error:
        where = error.filename or request.out
        raise UserError(f"{where}: {error.strerror or error}; what was finished is kept") from error


def _train(
    request: Request,
    order: Order,
    cells: Sequence[Planned],
    packs: Sequence[Pack],
    console: Console,
    *,
    fail_fast: bool,
    wait: bool,
) -> int:
    out, launch = request.out, request.launch
    left = _left(packs, _ended(out, cells))
    count, tokens = sum(len(pack.cells) for pack in left), sum(pack.tokens for pack in left)
    try:
        if isinstance(launch, InlineLaunch):
            with SweepDisplay(console, count, tokens) as display:
                _here(out, order.key, packs, launch, display, fail_fast=fail_fast, wait=wait)
            return finish(request, cells, console)
        started = launching.start(out, order, launch, left, fail_fast)
        what = _count(range(started), *(("process", "es") if isinstance(launch, LocalLaunch) else ("Slurm job", "s")))
        at_work = "" if started else "; those of this folder that are queued or running go on"
        console.print(f"{what} started{at_work}", highlight=False, soft_wrap=True)
        if not wait:
            console.print(f"watch: pml status {_quoted(out)} --watch    stop: pml cancel {_quoted(out)}", soft_wrap=True)
            return 0
        with SweepDisplay(console, count, tokens) as display:
            whole = launching.wait_for(
                out, order, launch, lambda: _left(packs, _ended(out, cells)), display.follow, fail_fast=fail_fast
            )
        if not whole and not fail_fast:
            console.print(f"the workers ended too early; the last one said: {launching.last_words(out)}", soft_wrap=True)
        return finish(request, cells, console)
    except (Stopped, KeyboardInterrupt) as stopped:
        return _stopped(stopped, request, cells, console)


def _stopped(stopped: BaseException, request: Request, cells: Sequence[Planned], console: Console) -> int:
    """What is left to say and do when training was asked to end."""
    if isinstance(request.launch, LocalLaunch):
        launching.end_local(request.out)
    finish(request, cells, console)
    if isinstance(request.launch, SlurmLaunch):
        console.print(
            f"no longer waiting; the jobs go on (pml status, or pml cancel {_quoted(request.out)})", soft_wrap=True
        )
    else:
        console.print("interrupted; the same command goes on with what is missing")
    if isinstance(stopped, KeyboardInterrupt):
        raise stopped
    signum = stopped.signum if isinstance(stopped, Stopped) else None
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    if signum is None:
        console.print(str(stopped), highlight=False)
    return 128 + signum if signum else 1


def _here(
    out: Path,
    key: str,
    packs: Sequence[Pack],
    launch: InlineLaunch,
    display: SweepDisplay,
    *,
    fail_fast: bool,
    wait: bool,
) -> None:
    """Train in this process; wait for cells that others have claimed, and take over what the dead leave."""
    with Member(out, "inline", launch.stale_seconds, key) as member, Signals() as signals:
        from .worker import Worker  # torch takes seconds to import; a finished sweep does not need it

        worker, queue, failures = Worker(out, member, signals, 60 * launch.checkpoint_minutes), Queue(out, packs, member), []

        def report(_cell: Planned, failure: str | None) -> None:
            display.end_cell(failure)
            failures.extend([failure] if failure else [])

        def train(cells: list[Planned]) -> None:
            tokens = Pack(cells).tokens
            worker.run(cells, report, lambda seen: display.step(seen.step / seen.steps, tokens), queue.known)
            display.end_pack(tokens)

        work(
            queue,
            train,
            lambda: worker.loaded,
            wait=wait,
            ended=lambda: fail_fast and bool(failures),
            waiting=display.wait_for,
        )


def _check_places(packs: Sequence[Pack]) -> None:
    from .worker import check_places

    check_places(packs)


def _left(packs: Sequence[Pack], ended: set[str]) -> list[Pack]:
    """The packs without the cells that have ended."""
    parts = ([cell for cell in pack.cells if cell.id not in ended] for pack in packs)
    return [Pack(cells) for cells in parts if cells]


def _ended(out: Path, cells: Sequence[Planned]) -> set[str]:
    return {cell.id for cell in cells if RunFolder(out, cell.id).has_ended()}


def _forget(out: Path, failed: Sequence[Planned]) -> None:
    """Failed runs are tried again, unless a process is at it already."""
    for cell in failed:
        RunFolder(out, cell.id).error.unlink(missing_ok=True)


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


def finish(request: Request, cells: Sequence[Planned], console: Console) -> int:
    """Write results.csv, show the table, name the failures and what to do next."""
    failures = {cell.id: reason for cell in cells if (reason := RunFolder(request.out, cell.id).failure()) is not None}
    from .report import results_table  # pandas takes a second to import; a dry run does without

    runs = read_runs([request.out])
    if len(runs):
        write_whole(request.out / "results.csv", lambda aside: runs.to_csv(aside, index=False))
        wanted = {cell.id for cell in cells}
        console.print(results_table(runs[runs["id"].isin(wanted)]))
    for name, reason in failures.items():
        console.print(f"failed {name}: {reason}", style="red", highlight=False, soft_wrap=True)
    done = sum(RunFolder(request.out, cell.id).is_done() for cell in cells)
    if len(runs):
        console.print(f"{done} of {len(cells)} cells done: {request.out / 'results.csv'}", highlight=False, soft_wrap=True)
    if failures:
        console.print(f"{len(failures)} failed; the same command tries them again", highlight=False)
    if done < len(cells):
        others = sum(record["kind"] != "driver" for record in living(request.out))
        if others and not failures:
            console.print(f"the rest is with {_count(range(others), 'other process', 'es')}", highlight=False)
        return 1 if failures or not others else 0
    if len(cells) > 1:
        console.print(f"next: pml fit {_quoted(request.out)}", highlight=False, soft_wrap=True)
    return 0


def _list(console: Console, request: Request, cells: Sequence[Planned], packs: Sequence[Pack]) -> None:
    """What a sweep would do and cost: its packs, their work, memory and time."""
    missing = sum(len(pack.cells) for pack in packs)
    console.print(
        f"{_count(cells, 'cell')}, {len(cells) - missing} done already, {missing} to train in {_count(packs, 'pack')}"
    )
    if not packs:
        return
    work_of, memory = [price.flops(pack) for pack in packs], [price.memory(pack) for pack in packs]
    seconds = launching.expected_seconds(request.launch, packs)
    rows = [_row(pack) for pack in packs]
    names = ("model", "data", "loss", "steps")
    varied = [i for i in range(len(names)) if len({row[i] for row in rows}) > 1]
    table = Table(box=None, pad_edge=False)
    for column in ("pack", "cells", "rank", "l", "tokens", "work", "memory", "time", *(names[i] for i in varied)):
        table.add_column(column, justify="left" if column in names[:3] else "right", no_wrap=True)
    for number, (pack, flops, took) in list(enumerate(zip(packs, work_of, seconds, strict=True), 1))[:LISTED]:
        runs = [cell.run for cell in pack.cells]
        table.add_row(
            str(number), str(len(runs)), _span({r.rank for r in runs}), _span({r.seqlen for r in runs}),
            str(pack.step_tokens), units.flops_text(flops), units.bytes_text(memory[number - 1]),
            "-" if took is None else units.duration_text(took), *(rows[number - 1][i] for i in varied),
        )  # fmt: skip
    console.print(table)
    if len(packs) > LISTED:
        console.print(f"and {len(packs) - LISTED} more packs", highlight=False)
    tokens, most = sum(pack.tokens for pack in packs), max(memory)
    console.print("tokens: of one step, padding included. work: of the whole training", highlight=False)
    console.print(f"in all: {tokens:,} tokens, {units.flops_text(sum(work_of))}", highlight=False)
    console.print(f"memory of a device: up to about {units.bytes_text(most)} (tensors of the largest pack)", highlight=False)
    console.print(launching.expectation(request.launch, packs, seconds), highlight=False, soft_wrap=True)
    console.print(f"results go to {request.out}", highlight=False, soft_wrap=True)


def _row(pack: Pack) -> tuple[str, str, str, str]:
    """Model, data, loss and steps of a pack, for a table that has a column for what varies."""
    runs = [cell.run for cell in pack.cells]
    words = ({r.model.name for r in runs}, {r.data.source for r in runs}, {r.loss.kind for r in runs})
    model, data, loss = (",".join(sorted(w)) for w in words)
    return model, data, loss, str(pack.cells[0].steps)


def _count(things: Sequence[object], name: str, plural: str = "s") -> str:
    return f"{len(things)} {name}" + ("" if len(things) == 1 else plural)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _span(values: set[int]) -> str:
    kept = sorted(values)
    return ",".join(map(str, kept)) if len(kept) <= 2 else f"{kept[0]}..{kept[-1]}"
