"""Measuring finished runs again, as the terminal sees it: what is left out, progress, resuming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from pml_cli.errors import MAX_LISTED, and_n_more, raise_all
from pml_cli.evaluation.finished_runs import FinishedRun, Measurements, measure_missing
from pml_cli.io import expand_home
from pml_cli.launch.signals import Signals, Stopped
from pml_cli.report.progress import CountDisplay
from pml_cli.results.folder import writable_folder


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
