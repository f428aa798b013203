"""A snapshot of a sweep for people and for scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pml_cli.format import counted
from pml_cli.format import duration_text as duration
from pml_cli.launch.status import RunningProcess, Snapshot
from pml_cli.report.tables.layout import plain_table

# Running packs, and reasons of failure, in the table; --json has them all.
MAX_LISTED = 20


def status_json(out: Path, snapshot: Snapshot) -> dict[str, Any]:
    """What `pml status --json` prints."""
    running = [
        asdict(process) | {"seconds_left": process.seconds_left} for process in snapshot.running
    ]
    jobs = None if snapshot.jobs is None else [asdict(job) for job in snapshot.jobs]
    return {
        "out": str(out),
        "cells": len(snapshot.work),
        "done": len(snapshot.done),
        "failed": snapshot.failed,
        "queued": len(snapshot.queued),
        "resumable": len(snapshot.resumable),
        "running": running,
        "jobs": jobs,
        "share": round(snapshot.share_done, 4),
        "seconds_left": snapshot.seconds_left,
    }


def status_line(snapshot: Snapshot) -> str:
    """The counts of cells, the share of the work that is done, and the time left."""
    training = sum(len(process.cells) for process in snapshot.running)
    counts = [
        f"{len(snapshot.done)} done",
        f"{training} running",
        _queued_text(snapshot),
    ]
    if snapshot.failed:
        counts.append(f"{len(snapshot.failed)} failed")

    line = f"{counted(len(snapshot.work), 'cell')}: {', '.join(counts)}; "
    line += f"{100 * snapshot.share_done:.0f} % of the work"
    if snapshot.seconds_left:
        line += f", about {duration(snapshot.seconds_left)} left"
    return line


def _queued_text(snapshot: Snapshot) -> str:
    """How many cells wait, and how many of them have begun."""
    text = f"{len(snapshot.queued)} queued"
    if snapshot.resumable:
        text += f" ({len(snapshot.resumable)} go on from a checkpoint)"
    return text


def status_view(out: Path, snapshot: Snapshot) -> RenderableType:
    """The folder, the counts, what runs and waits, and why cells have failed."""
    parts: list[RenderableType] = [Text(str(out), style="bold"), Text(status_line(snapshot))]
    if snapshot.training:
        parts.append(_running_table(snapshot.training))
    if snapshot.jobs is None:
        parts.append(
            Text("Slurm's queue does not answer; running processes are known by their heartbeats")
        )
    else:
        parts += _waiting_jobs(snapshot)

    # The same fault usually hits many cells: one line for each reason.
    parts += _failures(snapshot)
    if snapshot.queued and not snapshot.training and not snapshot.jobs:
        parts.append(Text("nothing is running; the same sweep command goes on with what is left"))
    return Group(*parts)


def _running_table(running: Sequence[RunningProcess]) -> Table:
    table = plain_table(
        "where", "job", "cells", "step", "steps/s", "left", text=("where", "job"), folded=()
    )
    for process in running[:MAX_LISTED]:
        rate = process.steps_per_second
        seconds_left = process.seconds_left
        table.add_row(
            process.host,
            process.job or f"{process.kind} {process.pid}",
            str(len(process.cells)),
            f"{process.step}/{process.steps}" if process.steps else "loading",
            f"{rate:.1f}" if rate else "-",
            "-" if seconds_left is None else duration(seconds_left),
        )
    if len(running) > MAX_LISTED:
        table.add_row(f"and {len(running) - MAX_LISTED} more")
    return table


def _waiting_jobs(snapshot: Snapshot) -> list[Text]:
    waiting = [job for job in snapshot.jobs or () if job.state == "PENDING"]
    if not waiting:
        return []
    reasons = Counter(job.reason for job in waiting).most_common()
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
    return [Text(f"{len(waiting)} of its workers wait in Slurm's queue ({counts})")]


def _failures(snapshot: Snapshot) -> list[Text]:
    """A line for each reason, with one of its cells."""
    lines = []
    for reason, count in Counter(snapshot.failed.values()).most_common(MAX_LISTED):
        cell = next(name for name, text in snapshot.failed.items() if text == reason)
        cells = f"{cell} and {count - 1} more" if count > 1 else cell
        lines.append(Text(f"failed: {cells}: {reason}", style="red"))
    return lines
