"""`pml lasting`: does recall survive rounding and merging, and what did the adapters make forget?

`lasting.json` holds what was measured of each run; one whose adapter, texts and settings are the
same is not measured again.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pml_cli.analysis.deployment import mean_table, measurement_table, sft_comparison
from pml_cli.config.reports import Lasting
from pml_cli.evaluation.finished_runs import LastingEntry, Measurements, OnMeasured, OnStage
from pml_cli.evaluation.lasting_runs import FORMAT, measurable_runs
from pml_cli.evaluation.subject import EvalRun
from pml_cli.format import counted
from pml_cli.io import json_text
from pml_cli.launch.signals import Stopped
from pml_cli.report import lasting_folder
from pml_cli.report.measuring import (
    measure_with_progress,
    print_left_out,
    report_folder,
)
from pml_cli.report.output import consoles, print_json
from pml_cli.report.run_notes import print_notes
from pml_cli.report.sweep_summary import exit_code
from pml_cli.report.tables.lasting import lasting_report
from pml_cli.results.folder import writable_folder
from pml_cli.results.read import finished_runs


def run(
    paths: list[Path],
    settings: Lasting,
    stdout: Console,
    *,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure every finished run below `paths` that is not measured yet, write and print all.

    Args:
        paths: folders of runs, searched at any depth; results go to settings.out or the first.
        stdout: to print to.
        as_json: print lasting.json; the rest goes to standard error.
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
    runs = finished_runs(paths, f"`pml memft rank=4,8 seqlen=64 out={folders}`", notes)
    print_notes(notes)
    out = report_folder(paths, settings.out)
    measurements = Measurements(out / "lasting.json", FORMAT, LastingEntry)
    selected, faults = measurable_runs(runs, settings)
    print_left_out(selected, faults)

    def measure(subjects: Sequence[EvalRun], on_measured: OnMeasured, on_stage: OnStage) -> None:
        # Imported here: torch takes seconds, and a repeated report measures nothing.
        from pml_cli.evaluation import robustness

        robustness.measure(subjects, settings, on_measured=on_measured, on_stage=on_stage)

    try:
        measured_now = measure_with_progress(measurements, selected, measure, console, progress)
    except Stopped as stopped:
        return exit_code(stopped, console)

    of_report = measurements.of(selected)
    table = measurement_table(of_report)
    means = mean_table(table)
    comparison = sft_comparison(table)

    writable_folder(out)
    content = lasting_folder.report_content(of_report, settings, means, comparison)
    # Entries of runs that are not selected this time stay in lasting.json.
    others = measurements.others(selected)
    names = lasting_folder.write(out, content, others, table, figures=settings.figures)
    for part in lasting_report(table, means, comparison):
        console.print(part)
    measured = f"{counted(of_report, 'run')}, {measured_now} of them measured now"
    console.print(f"{measured}; in {out}: {', '.join(names)}", highlight=False)
    if as_json:
        print_json(stdout, json_text(content))
    return 0
