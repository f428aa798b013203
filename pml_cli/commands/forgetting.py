"""`pml forgetting`: what did adapters make the model forget, and what do they recall for it?

`forgetting.json` holds what was measured of each run; one whose adapter and texts are the same is
not measured again.
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

from rich.console import Console

from pml_cli.analysis.forgetting import mean_table, measurement_table
from pml_cli.config.reports import Forgetting
from pml_cli.errors import UserError
from pml_cli.evaluation.finished_runs import ForgettingEntry, Measurements
from pml_cli.evaluation.forgetting_runs import (
    FILE,
    FILE_NAME,
    FORMAT,
    measurable_runs,
    measure,
)
from pml_cli.format import counted
from pml_cli.io import json_text
from pml_cli.launch.signals import Stopped
from pml_cli.report import forgetting_folder
from pml_cli.report.measuring import (
    measure_with_progress,
    print_left_out,
    report_folder,
)
from pml_cli.report.output import consoles, print_json
from pml_cli.report.run_notes import print_notes
from pml_cli.report.sweep_summary import exit_code
from pml_cli.report.tables.forgetting import forgetting_report
from pml_cli.results.folder import writable_folder
from pml_cli.results.read import finished_runs


def run(
    paths: list[Path],
    settings: Forgetting,
    stdout: Console,
    *,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure every finished run below `paths` that is not measured yet, write and print all.

    Args:
        paths: folders of runs, searched at any depth; results go to settings.out or the first.
        stdout: to print to.
        as_json: print forgetting.json; the rest goes to standard error.
        quiet: show no progress, only the result.

    Returns:
        Exit code 0; 128 and more after a signal.

    Raises:
        UserError: no finished run, an adapter or text that is missing or has changed, a folder that
            cannot be written.
    """
    console, progress = consoles(stdout, as_json=as_json, quiet=quiet)
    folders = shlex.join(str(path) for path in paths)
    notes: list[str] = []
    example = f"`pml memft rank=4,8 seqlen=64 loss.keep=0,22 out={folders}`"
    runs = finished_runs(paths, example, notes)
    print_notes(notes)
    out = report_folder(paths, settings.out)
    measurements = Measurements(out / FILE_NAME, FORMAT, ForgettingEntry)
    selected, faults = measurable_runs(runs, settings)
    print_left_out(selected, faults)

    on_device = partial(measure, device=settings.device)
    try:
        measured_now = measure_with_progress(measurements, selected, on_device, console, progress)
    except Stopped as stopped:
        return exit_code(stopped, console)

    of_report = measurements.of(selected)
    if not any(entry["kinds"] for entry in of_report):
        raise UserError(
            f"{folders}: no text to measure on; a model without a tokenizer, or text=FILE that "
            "the runs have learned"
        )
    table = measurement_table(of_report)
    means = mean_table(table)

    writable_folder(out)
    content = forgetting_folder.report_content(of_report, settings, means)
    # Entries of runs that are not selected this time stay in forgetting.json.
    others = measurements.others(selected)
    names = forgetting_folder.write(out, content, others, table, means, figures=settings.figures)
    kinds = [*settings.kinds, FILE] if settings.text is not None else settings.kinds
    for part in forgetting_report(means, kinds):
        console.print(part)
    measured = f"{counted(of_report, 'run')}, {measured_now} of them measured now"
    console.print(f"{measured}; in {out}: {', '.join(names)}", highlight=False)
    if as_json:
        print_json(stdout, json_text(content))
    return 0
