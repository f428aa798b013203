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
from pml_cli.evaluation.finished_runs import ForgettingEntry
from pml_cli.evaluation.forgetting_runs import (
    FILE,
    FILE_NAME,
    FORMAT,
    measurable_runs,
    measure,
)
from pml_cli.io import json_text
from pml_cli.launch.signals import Stopped
from pml_cli.report import forgetting_folder
from pml_cli.report.measuring import Measurement, measured_runs
from pml_cli.report.output import consoles, print_json
from pml_cli.report.sweep_summary import exit_code
from pml_cli.report.tables.forgetting import forgetting_report
from pml_cli.results.folder import writable_folder


def run(
    paths: list[Path],
    settings: Forgetting,
    stdout: Console,
    *,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure the finished runs below `paths` that have no entry yet, write and print the report.

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
    measurement = Measurement(
        file_name=FILE_NAME,
        file_format=FORMAT,
        schema=ForgettingEntry,
        example="`pml memft rank=4,8 seqlen=64 loss.keep=0,22 out={folders}`",
        measurable=partial(measurable_runs, settings=settings),
        measure=partial(measure, device=settings.device),
    )
    try:
        runs = measured_runs(paths, settings.out, measurement, console, progress)
    except Stopped as stopped:
        return exit_code(stopped, console)

    if not any(entry["kinds"] for entry in runs.entries):
        folders = shlex.join(str(path) for path in paths)
        raise UserError(
            f"{folders}: no text to measure on; a model without a tokenizer, or text=FILE that "
            "the runs have learned"
        )
    table = measurement_table(runs.entries)
    means = mean_table(table)

    writable_folder(runs.out)
    content = forgetting_folder.report_content(runs.entries, settings, means)
    figures = settings.figures
    names = forgetting_folder.write(runs.out, content, runs.others, table, means, figures=figures)
    kinds = [*settings.kinds, FILE] if settings.text is not None else settings.kinds
    runs.print(console, forgetting_report(means, kinds), names)
    if as_json:
        print_json(stdout, json_text(content))
    return 0
