"""`pml track`: finished runs mirrored into an experiment tracker, once each.

The run folder is the contract: training knows no tracker, and any machine that sees the folder can
mirror it, also while a sweep fills it.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from rich.console import Console

from pml_cli.errors import UserError, printable
from pml_cli.format import counted
from pml_cli.io import json_text, without_links
from pml_cli.launch.status import Watcher
from pml_cli.report.output import consoles, print_json
from pml_cli.report.progress import CountDisplay
from pml_cli.results.folder import writable_folder
from pml_cli.results.output_folder import PML, disk_faults
from pml_cli.results.read import read_failures, read_runs
from pml_cli.track.base import Tracker
from pml_cli.track.mirrored_run import ResultFile, read_mirrored_run, read_result_file
from pml_cli.track.trackers import installed_tracker

# Within the results folder, where --out says nothing else.
FOLDER = "tracker"

# What every tracker takes, and a folder's name.
PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# Seconds between two checks of --follow.
EVERY = 30.0


def run(
    path: Path,
    stdout: Console,
    *,
    to: str,
    project: str | None = None,
    out: Path | None = None,
    follow: bool = False,
    every: float | None = None,
    as_json: bool = False,
) -> int:
    """Mirror every finished run below a folder that the tracker does not have.

    Args:
        path: a folder of runs, searched at any depth.
        stdout: to print to.
        to: name of the tracker.
        project: its project; None: the name of the folder.
        out: for the files of the tracker; None: tracker/TO in the folder.
        follow: go on until no cell is running or queued any more.
        every: seconds between two checks.
        as_json: print what was mirrored, and where, as JSON; the rest goes to standard error.

    Returns:
        Exit code 0.

    Raises:
        UserError: no such tracker, or not installed; a folder that cannot be read or written, or
            holds no finished run; what the tracker refuses.
    """
    if every is not None and not follow:
        raise UserError(f"--every {every:g}: needs --follow")
    if not path.is_dir():
        reason = "a file; give a folder of runs" if path.exists() else "no such folder"
        raise UserError(f"{path}: {reason}")
    kind = installed_tracker(to)
    project = _project(path, project)

    console = consoles(stdout, as_json=as_json).console
    mirror = _Mirror(path=path, console=console)
    if not follow and read_runs([path], mirror.left_out).empty:
        reason = "; ".join(mirror.left_out) or "none is finished"
        raise UserError(f"{path}: nothing to mirror ({reason})")

    files = out or without_links(path, FOLDER, to)
    try:
        writable_folder(files)
    except UserError as error:
        raise UserError(f"--{str(error).replace('out=', 'out ', 1)}") from error
    tracker = kind(project, files)

    with disk_faults(files):
        if follow:
            _follow(mirror, tracker, EVERY if every is None else every)
        else:
            mirror.round(tracker)
    mirror.conclude(tracker)
    if as_json:
        print_json(stdout, json_text(mirror.content(tracker)))
    return 0


def _project(path: Path, asked: str | None) -> str:
    """The name of the project; by default that of the folder, as far as trackers take it."""
    if asked is None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).lstrip("._-")
        return name[:100] or "pml"
    if not PROJECT.fullmatch(asked):
        allowed = "letters, digits, '.', '_' and '-', at most 100"
        raise UserError(f"--project {asked}: must be {allowed}")
    return asked


def _follow(mirror: _Mirror, tracker: Tracker, every: float) -> None:
    """Mirror what comes, until nothing can come any more."""
    mirror.console.print("following; Ctrl-C ends it, and what was mirrored stays")
    idle_looks = 0
    ended_looks = 0
    while True:
        # Looked at first: what ends meanwhile is mirrored in this round.
        activity = _activity(mirror.path)
        mirror.round(tracker)
        idle_looks = idle_looks + 1 if activity is Activity.IDLE else 0
        ended_looks = ended_looks + 1 if activity is Activity.ENDED else 0
        # Runs without a sweep were copied here; without any, the sweep is yet to come.
        has_runs = bool(mirror.names or mirror.present or mirror.left_out)
        is_over = activity is Activity.NONE and has_runs
        # A sweep that is being started has no process for a moment; a search (pml memorize, pml
        # capacity) has ended all of its cells before it asks for more.
        if is_over or 2 in (idle_looks, ended_looks):
            return
        time.sleep(every)


class Activity(Enum):
    """What becomes of the sweeps below a folder."""

    NONE = auto()
    """There is no sweep."""

    ENDED = auto()
    """Every cell is done or has failed, and nothing is running."""

    IDLE = auto()
    """Cells are missing, and nothing is running or queued."""

    RUNNING = auto()


def _activity(path: Path) -> Activity:
    activity = Activity.NONE
    for folder, children, _ in os.walk(path):
        has_sweep = PML in children
        children[:] = [child for child in children if not child.startswith(".")]
        if not has_sweep:
            continue
        if activity is Activity.NONE:
            activity = Activity.ENDED
        try:
            snapshot = Watcher(Path(folder)).look()
        except UserError:
            # Its requests are damaged or not written yet: runs are all there is to see.
            continue
        # A queue that does not answer may hold cells that are missing, and nothing else.
        if snapshot.running or (snapshot.is_active and not snapshot.all_ended):
            return Activity.RUNNING
        if not snapshot.all_ended:
            activity = Activity.IDLE
    return activity


@dataclass(kw_only=True)
class _Mirror:
    """What has been mirrored so far.

    Attributes:
        path: the folder of runs.
        console: to print to.
        left_out: a line for each run that cannot be read.
        names: of the runs that were mirrored now.
        points: numbers of their curves.
        present: runs that the tracker had already.
    """

    path: Path
    console: Console
    left_out: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    points: int = 0
    present: int = 0
    _said: set[str] = field(default_factory=set)
    _mirrored: set[str] = field(default_factory=set)

    def round(self, tracker: Tracker) -> None:
        """Mirror what is finished by now."""
        self.left_out = []
        frame = read_runs([self.path], self.left_out)
        folders = [Path(folder) for folder in frame["folder"]] if len(frame) else []
        files = []
        for folder in folders:
            try:
                files.append(read_result_file(folder))
            except UserError as error:
                self.left_out.append(str(error))

        has = tracker.mirrored()
        missing = [file for file in files if file.identity not in has]
        # Without those that were mirrored at an earlier look; a run may have been replaced since.
        earlier = has - self._mirrored
        self.present = sum(file.identity in earlier for file in files)
        if missing:
            with CountDisplay(
                self.console, "mirroring", "runs", total=len(missing), piped_line="runs mirrored"
            ) as display:
                for file in missing:
                    self._mirror(file, tracker)
                    display.advance()
        self._say_left_out()

    def _mirror(self, file: ResultFile, tracker: Tracker) -> None:
        try:
            mirrored = read_mirrored_run(file, self.path)
        except UserError as error:
            self.left_out.append(str(error))
            return
        tracker.write(mirrored)
        tracker.remember(mirrored)
        self.names.append(mirrored.name)
        self._mirrored.add(mirrored.identity)
        self.points += sum(len(values) for _, values in mirrored.curve)

    def _say_left_out(self) -> None:
        """Name each run that cannot be read once."""
        stderr = Console(stderr=True, markup=False, emoji=False)
        for line in self.left_out:
            if line not in self._said:
                self._said.add(line)
                text = f"left out: {printable(line)}"
                stderr.print(text, style="yellow", highlight=False, soft_wrap=True)

    def conclude(self, tracker: Tracker) -> None:
        """Say how many there are, and how to look at them."""
        counts = [f"{counted(self.names, 'run')} mirrored to {tracker.name}"]
        if self.present:
            counts.append(f"{self.present} there already")
        if self.left_out:
            counts.append(f"{len(self.left_out)} left out")
        failed = len(read_failures(self.path))
        if failed:
            counts.append(f"{failed} failed and not mirrored")
        self.console.print(", ".join(counts), highlight=False, soft_wrap=True)
        self.console.print(f"see: {printable(tracker.where)}", highlight=False, soft_wrap=True)

    def content(self, tracker: Tracker) -> dict[str, Any]:
        """What `pml track --json` prints: the tracker, and how much it was given."""
        return {
            "to": tracker.name,
            "project": tracker.project,
            "out": str(tracker.out),
            "where": tracker.where,
            "runs": len(self.names),
            "points": self.points,
            "present": self.present,
            "left_out": len(self.left_out),
            "failed": len(read_failures(self.path)),
        }
