"""`pml status` and `pml cancel`: what works on a results folder, and ending it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from pml_cli.errors import UserError, raise_all
from pml_cli.format import counted
from pml_cli.launch import slurm
from pml_cli.launch.lease import cancel_processes
from pml_cli.launch.liveness import living_processes
from pml_cli.launch.status import Snapshot, Watcher
from pml_cli.report.tables.status import status_json, status_line, status_view

# Seconds between two refreshes of --watch, on a terminal and into a pipe.
WATCH_SECONDS = 2.0
PIPED_WATCH_SECONDS = 10.0

# Most warnings about unreadable records that are printed.
MAX_UNREAD = 3


def run(out: Path, console: Console, *, as_json: bool = False, watch: bool = False) -> int:
    """Show the state of a sweep.

    Args:
        out: its results folder.
        console: to print to.
        as_json: print everything as JSON.
        watch: redraw until nothing runs or waits any more.

    Returns:
        exit code: 0, or 1 when a cell has failed.

    Raises:
        UserError: the folder does not exist or holds no sweep.
    """
    if as_json and watch:
        raise UserError(
            "--json: cannot be combined with --watch; call the command repeatedly instead"
        )

    # The same watcher for all snapshots: it remembers the cells that are done.
    watcher = Watcher(out)
    snapshot = _first_look(watcher)
    if as_json:
        console.print_json(json.dumps(status_json(out, snapshot)))
        _print_left_out(watcher, Console(stderr=True, markup=False, emoji=False))
    elif watch and console.is_terminal:
        snapshot = _watch_live(watcher, snapshot, console)
    else:
        console.print(status_view(out, snapshot))
        _print_left_out(watcher, console)
        if watch:
            snapshot = _watch_piped(watcher, snapshot, console)
    return 1 if snapshot.failed else 0


def _print_left_out(watcher: Watcher, console: Console) -> None:
    for line in watcher.left_out:
        console.print(f"left out: {line}", style="yellow", highlight=False, soft_wrap=True)


def _watch_live(watcher: Watcher, snapshot: Snapshot, console: Console) -> Snapshot:
    view = status_view(watcher.out, snapshot)
    with Live(view, console=console, auto_refresh=False) as live:
        while snapshot.is_active:
            time.sleep(WATCH_SECONDS)
            snapshot = watcher.look()
            live.update(status_view(watcher.out, snapshot), refresh=True)
    return snapshot


def _watch_piped(watcher: Watcher, snapshot: Snapshot, console: Console) -> Snapshot:
    while snapshot.is_active:
        time.sleep(PIPED_WATCH_SECONDS)
        snapshot = watcher.look()
        console.print(status_line(snapshot), highlight=False)
    return snapshot


def cancel(out: Path, console: Console) -> int:
    """Ask every process of a folder to save a checkpoint and end, and cancel its Slurm jobs.

    Args:
        out: the results folder of a sweep.
        console: to print to.

    Returns:
        exit code 0, also where nothing runs: what was asked for holds.

    Raises:
        UserError: the folder does not exist or holds no sweep, the queue does not answer, or a
            process may live whose record tells nothing.
    """
    # Before all else: neither a damaged file nor an unreachable queue must keep them running. The
    # launches include workers that have started and not yet registered.
    unread: list[str] = []
    processes = [record["name"] for record in living_processes(out, unread)]
    launches = [record["launch"] for record in slurm.launch_records(out, unread).values()]
    if processes or launches:
        cancel_processes(out, processes + launches)
    snapshot = _first_look(Watcher(out))
    if snapshot.jobs is None:
        raise UserError(
            f"{out}: squeue does not answer; "
            "running processes were asked to end, queued jobs were not cancelled"
        )
    if not slurm.cancel_jobs([job.id for job in snapshot.jobs]):
        raise UserError(
            f"{out}: scancel does not answer, or refuses; "
            "running processes were asked to end, queued jobs were perhaps not cancelled"
        )

    if not snapshot.training and not snapshot.jobs:
        raise_all(unread, MAX_UNREAD)
        console.print("nothing is running here")
        return 0

    running = len(snapshot.training)
    message = f"{counted(running, 'process', 'es')} asked to save a checkpoint and end"
    if snapshot.jobs:
        message += f", {len(snapshot.jobs)} jobs cancelled"
    console.print(message, highlight=False)
    console.print(
        f"{'it ends' if running == 1 else 'they end'} after the current training step; the same "
        "sweep command resumes from there",
        highlight=False,
    )
    raise_all(unread, MAX_UNREAD)
    return 0


def _first_look(watcher: Watcher) -> Snapshot:
    """A snapshot of a folder that must hold a sweep.

    Raises:
        UserError: it does not, or is not a folder; names the sweeps below it.
    """
    out = watcher.out
    if not out.is_dir():
        reason = "a file; give a sweep's folder" if out.exists() else "no such folder"
        raise UserError(f"{out}: {reason}")

    # A folder of sweeps is an easy slip, so the message names those in it.
    snapshot = watcher.look()
    if not snapshot.work:
        below = sorted(path.parent.parent.name for path in out.glob("*/.pml/requests"))
        hint = f"; sweeps in it: {', '.join(below)}" if below else ""
        raise UserError(f"{out}: no sweep was started here{hint}")
    return snapshot
