"""`pml lasting`: does recall survive rounding and merging, and what did the adapters make forget?

`lasting.json` holds what was measured of each run; one whose adapter, texts and settings are the
same is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from pml_cli.analysis.deployment import mean_table, measurement_table, sft_comparison
from pml_cli.config.reports import Lasting
from pml_cli.evaluation.finished_runs import LastingEntry, OnMeasured, OnStage
from pml_cli.evaluation.lasting_runs import FORMAT, measurable_runs
from pml_cli.evaluation.subject import EvalRun
from pml_cli.io import json_text
from pml_cli.launch.signals import Stopped
from pml_cli.report import lasting_folder
from pml_cli.report.measuring import Measurement, measured_runs
from pml_cli.report.output import consoles, print_json
from pml_cli.report.sweep_summary import exit_code
from pml_cli.report.tables.lasting import lasting_report
from pml_cli.results.folder import writable_folder


def run(
    paths: list[Path],
    settings: Lasting,
    stdout: Console,
    *,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure the finished runs below `paths` that have no entry yet, write and print the report.

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
    measurement = Measurement(
        file_name="lasting.json",
        file_format=FORMAT,
        schema=LastingEntry,
        example="`pml memft rank=4,8 seqlen=64 out={folders}`",
        measurable=partial(measurable_runs, settings=settings),
        measure=partial(_measure, settings=settings),
    )
    try:
        runs = measured_runs(paths, settings.out, measurement, console, progress)
    except Stopped as stopped:
        return exit_code(stopped, console)

    table = measurement_table(runs.entries)
    means = mean_table(table)
    comparison = sft_comparison(table)

    writable_folder(runs.out)
    content = lasting_folder.report_content(runs.entries, settings, means, comparison)
    names = lasting_folder.write(runs.out, content, runs.others, table, figures=settings.figures)
    runs.print(console, lasting_report(table, means, comparison), names)
    if as_json:
        print_json(stdout, json_text(content))
    return 0


def _measure(
    subjects: Sequence[EvalRun],
    on_measured: OnMeasured,
    on_stage: OnStage,
    *,
    settings: Lasting,
) -> None:
    # Imported here: torch takes seconds, and a repeated report measures nothing.
    from pml_cli.evaluation import robustness

    robustness.measure(subjects, settings, on_measured=on_measured, on_stage=on_stage)
