"""`pml sweep`: every combination, packed; a second call does only what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .config import Request
from .errors import UserError
from .plan import Pack, Planned, check, make_packs
from .progress import SweepDisplay
from .records import RunFolder, check_formats, read_runs, write_whole
from .report import results_table


def run(request: Request, console: Console, *, dry_run: bool = False, fail_fast: bool = False) -> int:
    """Train what is missing of the requested cells, then show and write the results.

    Args:
        dry_run: check and list, train nothing, write nothing.
        fail_fast: stop at the first cell that fails.

    Returns:
        exit code: 0, or 1 when a cell failed.

    Raises:
        UserError: a cell that cannot be run, or a folder that cannot be used; nothing has been written then.
    """
    cells = check(request.runs)
    check_folder(request.out)
    missing = [cell for cell in cells if not RunFolder(request.out, cell.id).is_done()]
    packs = make_packs(missing, request.launch.pack_tokens)
    if dry_run:
        _list(console, request, cells, packs)
        return 0
    kept = len(cells) - len(missing)
    known = f", {kept} done already" if kept else ""
    console.print(f"{_count(cells, 'cell')}: {len(missing)} to train in {_count(packs, 'pack')}{known}")
    try:
        failures = train(packs, request.out, console, fail_fast=fail_fast) if packs else {}
    except KeyboardInterrupt:
        if request.out.is_dir():
            finish(request, cells, {}, console)
        console.print("interrupted; the same command goes on with what is missing")
        raise
    return finish(request, cells, failures, console)


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


def train(packs: Sequence[Pack], out: Path, console: Console, fail_fast: bool = False) -> dict[str, str]:
    """Train packs in this process; returns the reason of each cell that failed."""
    from .worker import Worker, check_places  # torch takes seconds to import; a finished sweep does not need it

    check_places(packs)
    worker, failures = Worker(out), {}
    count, work = sum(len(pack.cells) for pack in packs), sum(pack.tokens for pack in packs)
    with SweepDisplay(console, count, work) as display:

        def report(cell: Planned, failure: str | None) -> None:
            display.end_cell(failure)
            if failure is not None:
                failures[cell.id] = failure

        for pack in packs:
            tokens = pack.tokens
            worker.run(pack, lambda seen, tokens=tokens: display.step(seen.step / seen.steps, tokens), report)  # type: ignore[misc]
            display.end_pack(tokens)
            if fail_fast and failures:
                break
    return failures


def finish(request: Request, cells: Sequence[Planned], failures: dict[str, str], console: Console) -> int:
    """Write results.csv, show the table, name the failures and what to do next."""
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
        return 1
    if len(cells) > 1 and done == len(cells):
        console.print(f"next: pml fit {shlex.quote(str(request.out))}", highlight=False, soft_wrap=True)
    return 0


def _list(console: Console, request: Request, cells: Sequence[Planned], packs: Sequence[Pack]) -> None:
    """What a sweep would do: its packs, and what is in them."""
    missing, tokens = sum(len(pack.cells) for pack in packs), sum(pack.tokens for pack in packs)
    known = len(cells) - missing
    console.print(f"{_count(cells, 'cell')}, {known} done already, {missing} to train in {_count(packs, 'pack')}")
    if not packs:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("pack", "cells", "steps", "tokens a step"):
        table.add_column(column, justify="right")
    for column in ("ranks", "target tokens", "model", "data", "loss"):
        table.add_column(column)
    for number, pack in enumerate(packs, 1):
        runs = [cell.run for cell in pack.cells]
        counts = (number, len(runs), pack.cells[0].steps, pack.step_tokens)
        names = (_span({r.rank for r in runs}), _span({r.seqlen for r in runs}))
        words = ({r.model.name for r in runs}, {r.data.source for r in runs}, {r.loss.kind for r in runs})
        table.add_row(*map(str, counts), *names, *(",".join(sorted(w)) for w in words))
    console.print(table)
    console.print(f"{tokens:,} tokens of training in all; results go to {request.out}", highlight=False, soft_wrap=True)


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")


def _span(values: set[int]) -> str:
    kept = sorted(values)
    return ",".join(map(str, kept)) if len(kept) <= 4 else f"{kept[0]}..{kept[-1]} ({len(kept)})"
