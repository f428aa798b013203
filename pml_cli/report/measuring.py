"""Measuring finished runs again, as the terminal sees it: what is left out, progress, resuming."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

from pml_cli.errors import MAX_LISTED, and_n_more, raise_all
from pml_cli.evaluation.finished_runs import FinishedRun, Measurements, measure_missing
from pml_cli.format import counted
from pml_cli.io import expand_home
from pml_cli.launch.signals import Signals, Stopped
from pml_cli.report.foreign_files import check_files
from pml_cli.report.progress import CountDisplay
from pml_cli.report.run_notes import print_notes
from pml_cli.results.folder import writable_folder
from pml_cli.results.read import finished_runs

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a command measures of finished runs: that of `pml lasting` or `pml forgetting`."""

    file_name: str
    """Name of the file that holds the entries, in the folder of the report."""

    file_format: int
    """Format of that file."""

    schema: type
    """Schema of an entry."""

    example: str
    """Command that trains runs to be measured, for an error; {folders} stands for the paths."""

    measurable: Callable[[pd.DataFrame], tuple[list[FinishedRun], list[str]]]
    """From rows of result.json to the runs that can be measured, and the faults of the others."""

    measure: Callable[..., None]
    """As of `measure_missing`."""


@dataclass(frozen=True, kw_only=True)
class MeasuredRuns:
    """The finished runs of a report, all of them measured."""

    out: Path
    """Folder of the report."""

    entries: list[dict[str, Any]]
    """One entry per run."""

    others: list[dict[str, Any]]
    """Entries of runs that are not selected this time; they stay in the file."""

    new: int
    """Number of runs that were not measured before."""

    def print(
        self, console: Console, tables: Iterable[RenderableType], names: Sequence[str]
    ) -> None:
        """Print the tables of the report and the files that were written.

        Args:
            console: to print to.
            tables: of the report.
            names: of the files in its folder.
        """
        for table in tables:
            console.print(table)
        measured = f"{counted(self.entries, 'run')}, {self.new} of them measured now"
        console.print(f"{measured}; in {self.out}: {', '.join(names)}", highlight=False)


def measured_runs(
    paths: Sequence[Path],
    out: str | None,
    measurement: Measurement,
    console: Console,
    progress: Console,
) -> MeasuredRuns:
    """Measure the finished runs below `paths` that have no entry yet.

    Args:
        paths: folders of runs, searched at any depth.
        out: folder of the report; None: the first path.
        measurement: what is measured.
        console: where it says that it was interrupted.
        progress: where progress is shown.

    Raises:
        UserError: no finished run, an adapter or text that is missing or has changed, a folder that
            cannot be written.
        Stopped: a signal asked to end.
    """
    notes: list[str] = []
    folders = shlex.join(str(path) for path in paths)
    runs = finished_runs(paths, measurement.example.format(folders=folders), notes)
    print_notes(notes)

    folder = report_folder(paths, out)
    path = folder / measurement.file_name
    check_files(folder, [path.name, f"{path.stem}.csv"], figures=[path.stem])
    measurements = Measurements(path, measurement.file_format, measurement.schema)
    selected, faults = measurement.measurable(runs)
    print_left_out(selected, faults)

    new = measure_with_progress(measurements, selected, measurement.measure, console, progress)
    return MeasuredRuns(
        out=folder,
        entries=measurements.of(selected),
        others=measurements.others(selected),
        new=new,
    )


def print_left_out(selected: Sequence[FinishedRun], faults: Sequence[str]) -> None:
    """Print a line on standard error for each fault of the runs that cannot be measured.

    Args:
        selected: the runs that can.
        faults: a line each.

    Raises:
        UserError: none can.
    """
    if not selected:
        raise_all(faults)
    stderr = Console(stderr=True)
    for line in and_n_more(list(faults), MAX_LISTED):
        stderr.print(f"left out: {line}", style="yellow", highlight=False, soft_wrap=True)


def measure_with_progress(
    measurements: Measurements,
    selected: Sequence[FinishedRun],
    measure: Callable[..., None],
    console: Console,
    progress: Console,
) -> int:
    """Measure the runs that are not measured yet.

    Args:
        measurements: gets the entries.
        selected: the runs.
        measure: as of `measure_missing`; a signal may come at any time.
        console: where it says that it was interrupted.
        progress: where progress is shown.

    Returns:
        How many have been measured.

    Raises:
        UserError: a model cannot be loaded, has other weights than it had, or an adapter does not
            fit; a folder that cannot be written.
        Stopped: a signal asked to end.
    """
    missing = measurements.missing(selected)
    if not missing:
        return 0

    writable_folder(measurements.path.parent)
    try:
        # A signal comes at once: a chunk of runs may take minutes, and only it is lost.
        with (
            Signals(),
            CountDisplay(progress, "measuring", "runs", piped_line="runs measured") as display,
        ):
            display.show(0, len(missing))
            measure_missing(measurements, missing, measure, display.show, display.stage)
    except (KeyboardInterrupt, Stopped):
        # It may have come between two lines of bookkeeping.
        measurements.save()
        console.print("interrupted; what was measured is kept, and the same command continues")
        raise
    return len(missing)


def report_folder(paths: Sequence[Path], out: str | None) -> Path:
    """The folder of a report: `out`, else the first path."""
    return expand_home(out) if out else paths[0]
