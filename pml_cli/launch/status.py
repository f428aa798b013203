"""`pml status` and `pml cancel`: what a sweep is doing, read off its folder and the queue, without accounting."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pml_cli.errors import UserError
from pml_cli.format import duration_text as duration
from pml_cli.launch import slurm
from pml_cli.launch.lease import WorkerLease, lives, read_record, server_time
from pml_cli.launch.queue import SweepManifest
from pml_cli.runs.folder import RunFolder

WATCH_SECONDS = 2.0
SHOWN = 20  # running packs and reasons of failure in the table; --json has them all


@dataclass(frozen=True)
class Running:
    """One living process and the pack it trains."""

    name: str
    kind: str  # inline, local, slurm; driver only waits
    order: str  # key of its sweep
    host: str
    pid: int
    job: str | None  # of Slurm, with its array index
    cells: list[str]
    step: int
    steps: int
    steps_per_second: float | None
    work_per_second: float | None  # tokens
    work_left: float  # tokens of the pack still to be trained

    @property
    def seconds_left(self) -> float | None:
        return self.work_left / self.work_per_second if self.work_per_second else None


@dataclass(frozen=True)
class Snapshot:
    """A sweep's folder at one moment. Every cell is done, failed, running or queued."""

    cells: dict[str, dict[str, Any]]
    done: list[str]
    failed: dict[str, str]  # id to reason
    running: list[Running]
    jobs: list[slurm.Job] | None  # of Slurm; None: the queue could not be asked

    @property
    def queued(self) -> list[str]:
        known = (
            {name for running in self.running for name in running.cells}
            | set(self.done)
            | set(self.failed)
        )
        return [name for name in self.cells if name not in known]

    @property
    def goes_on(self) -> bool:
        """Whether something runs or waits, or might: the queue does not answer."""
        return bool(self.running) or self.jobs is None or bool(self.jobs)

    @property
    def share(self) -> float:
        """Of the work of all cells that has been done, counting packs under way."""
        total = sum(cell["work"] for cell in self.cells.values())
        left = sum(self.cells[name]["work"] for name in self.queued) + sum(
            r.work_left for r in self.running
        )
        return 1 - left / total if total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """At the present rate of all running processes."""
        rate = sum(r.work_per_second or 0 for r in self.running)
        total = sum(cell["work"] for cell in self.cells.values())
        return (1 - self.share) * total / rate if rate else None


class Watcher:
    """Takes snapshots of one folder; cells that ended are looked up once."""

    def __init__(self, out: Path, order: SweepManifest | None = None) -> None:
        """`order`: look at its cells alone."""
        self.out, self.order = out, order
        self._done: set[str] = set()

    def look(self, queue: bool = True) -> Snapshot:
        """`queue`: also ask Slurm, where jobs were submitted."""
        records = living(self.out)
        orders = (
            [self.order]
            if self.order
            else self._orders({record.get("order") for record in records})
        )
        cells = {name: cell for order in orders for name, cell in order.cells.items()}
        failed: dict[str, str] = {}
        there = {path.name for path in self.out.iterdir()}
        for name in cells:
            if name in self._done or name not in there:
                continue
            folder = RunFolder(self.out, name)
            if folder.is_done():
                self._done.add(name)
            elif (reason := folder.failure()) is not None:
                failed[name] = reason
        running = [_running(record, cells, self._done | failed.keys()) for record in records]
        jobs = slurm.jobs(self.out, self.order.key if self.order else "") if queue else []
        return Snapshot(cells, [c for c in cells if c in self._done], failed, running, jobs)

    def _orders(self, at_work: set[Any]) -> list[SweepManifest]:
        """The last sweep asked for, those that are worked at, and those that have ended; not one given up for another."""
        orders = sorted(
            (SweepManifest.read(path) for path in (self.out / ".pml" / "requests").glob("*.json")),
            key=lambda order: order.asked,
        )
        there = {path.name for path in self.out.iterdir()}
        return [
            one
            for one in orders
            if one is orders[-1] or one.key in at_work or set(one.cells) <= there
        ]


def living(out: Path) -> list[dict[str, Any]]:
    """Records of the processes at work in a folder."""
    folder = out / ".pml" / "workers"
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record, changed = read_record(path)
        except OSError:  # just being replaced
            continue
        buried = (out / ".pml" / "dead" / path.stem).is_symlink()
        if record is not None and not buried and lives(record, changed, lambda: _clock(folder)):
            found.append(record)
    return found


def _clock(folder: Path) -> float:
    try:
        return server_time(folder)
    except OSError:  # a folder that may only be read
        return time.time()


def run(out: Path, console: Console, *, as_json: bool = False, watch: bool = False) -> int:
    """Show what has become of a sweep.

    Returns:
        exit code: 0, or 1 when a cell has failed.

    Raises:
        UserError: the folder does not exist or holds no sweep.
    """
    if as_json and watch:
        raise UserError("--json: not with --watch; ask as often as you like")
    watcher = Watcher(out)
    snapshot = _checked(watcher)
    if as_json:
        console.print_json(json.dumps(_plain(out, snapshot)))
    elif watch and console.is_terminal:
        with Live(_shown(out, snapshot), console=console, auto_refresh=False) as live:
            while snapshot.goes_on:
                time.sleep(WATCH_SECONDS)
                snapshot = watcher.look()
                live.update(_shown(out, snapshot), refresh=True)
    else:
        console.print(_shown(out, snapshot))
        while watch and snapshot.goes_on:
            time.sleep(5 * WATCH_SECONDS)
            snapshot = watcher.look()
            console.print(_line(snapshot), highlight=False)
    return 1 if snapshot.failed else 0


def cancel(out: Path, console: Console) -> int:
    """Ask every process at work in the folder to keep a checkpoint and end; take its Slurm jobs off the queue.

    Raises:
        UserError: the folder does not exist or holds no sweep.
    """
    snapshot = _checked(Watcher(out))
    workers = [one for one in snapshot.running if one.kind != "driver"]
    launches = [
        noted["launch"] for noted in slurm.launches(out).values()
    ]  # also those that have not shown themselves yet
    WorkerLease.cancel_in(out, [one.name for one in snapshot.running] + launches)
    if snapshot.jobs is None:
        raise UserError(
            f"{out}: squeue does not answer; what runs was asked to end, jobs in the queue were not"
        )
    slurm.cancel([job.id for job in snapshot.jobs])
    if not workers and not snapshot.jobs:
        console.print("nothing is running here")
        return 0
    told = f"{len(workers)} running asked to keep a checkpoint and end"
    console.print(
        told + (f", {len(snapshot.jobs)} jobs cancelled" if snapshot.jobs else ""), highlight=False
    )
    console.print(
        "they end after the step they are at; the same sweep command goes on from there",
        highlight=False,
    )
    return 0


def _checked(watcher: Watcher) -> Snapshot:
    out = watcher.out
    if not out.is_dir():
        raise UserError(
            f"{out}: " + ("a file; give a sweep's folder" if out.exists() else "no such folder")
        )
    snapshot = watcher.look()
    if not snapshot.cells:
        inside = sorted(path.parent.parent.name for path in out.glob("*/.pml/requests"))
        hint = f"; sweeps in it: {', '.join(inside)}" if inside else ""
        raise UserError(f"{out}: no sweep was started here{hint}")
    return snapshot


def _running(record: dict[str, Any], cells: dict[str, dict[str, Any]], ended: set[str]) -> Running:
    doing = record.get("doing") or {}
    step, steps = int(doing.get("step", 0)), int(doing.get("steps", 0))
    spent = float(record["shown"]) - float(doing.get("since", record["shown"]))
    rate = (step - int(doing.get("first", 0))) / spent if spent > 0 and step else None
    names = [name for name in doing.get("names", []) if name in cells and name not in ended]
    work = sum(cells[name]["work"] for name in names)
    slurm_job = record.get("slurm") or {}
    return Running(
        name=record["name"], kind=record["kind"], order=record.get("order", ""),
        host=record["host"], pid=record["pid"], job=slurm_job.get("task"),
        cells=names, step=step, steps=steps, steps_per_second=rate,
        work_per_second=rate * work / steps if rate and steps else None,
        work_left=work * (1 - step / steps) if steps else work,
    )  # fmt: skip


def _plain(out: Path, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "out": str(out),
        "cells": len(snapshot.cells),
        "done": len(snapshot.done),
        "failed": snapshot.failed,
        "queued": len(snapshot.queued),
        "running": [asdict(r) | {"seconds_left": r.seconds_left} for r in snapshot.running],
        "jobs": None if snapshot.jobs is None else [asdict(job) for job in snapshot.jobs],
        "share": round(snapshot.share, 4),
        "seconds_left": snapshot.seconds_left,
    }


def _line(snapshot: Snapshot) -> str:
    training = sum(len(r.cells) for r in snapshot.running)
    parts = [f"{len(snapshot.done)} done", f"{training} running", f"{len(snapshot.queued)} queued"]
    parts += [f"{len(snapshot.failed)} failed"] if snapshot.failed else []
    left = f", about {duration(snapshot.seconds_left)} left" if snapshot.seconds_left else ""
    cells = f"{len(snapshot.cells)} cell" + ("" if len(snapshot.cells) == 1 else "s")
    return f"{cells}: {', '.join(parts)}; {100 * snapshot.share:.0f} % of the work{left}"


def _shown(out: Path, snapshot: Snapshot) -> RenderableType:
    parts: list[RenderableType] = [Text(str(out), style="bold"), Text(_line(snapshot))]
    active = [r for r in snapshot.running if r.kind != "driver"]
    if active:
        parts.append(_running_table(active))
    if snapshot.jobs is None:
        parts.append(
            Text("Slurm's queue does not answer; what is running is known from its signs of life")
        )
    elif waiting := [job for job in snapshot.jobs if job.state == "PENDING"]:
        why = ", ".join(
            f"{n} {reason}" for reason, n in Counter(job.reason for job in waiting).most_common()
        )
        parts.append(Text(f"{len(waiting)} of its workers wait in Slurm's queue ({why})"))
    for reason, count in Counter(snapshot.failed.values()).most_common(SHOWN):
        first = next(name for name, said in snapshot.failed.items() if said == reason)
        parts.append(
            Text(
                f"failed: {first}"
                + (f" and {count - 1} more" if count > 1 else "")
                + f": {reason}",
                style="red",
            )
        )
    if snapshot.queued and not active and not snapshot.jobs:
        parts.append(Text("nothing is running; the same sweep command goes on with what is left"))
    return Group(*parts)


def _running_table(running: list[Running]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("where", "job", "cells", "step", "steps/s", "left"):
        table.add_column(
            name, justify="left" if name in ("where", "job") else "right", no_wrap=True
        )
    for one in running[:SHOWN]:
        rate = f"{one.steps_per_second:.1f}" if one.steps_per_second else "-"
        left = duration(one.seconds_left) if one.seconds_left is not None else "-"
        job = one.job or f"{one.kind} {one.pid}"
        step = f"{one.step}/{one.steps}" if one.steps else "loading"
        table.add_row(one.host, job, str(len(one.cells)), step, rate, left)
    if len(running) > SHOWN:
        table.add_row(f"and {len(running) - SHOWN} more")
    return table
