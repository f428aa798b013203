"""`pml report`: everything that a results folder has to say, as one HTML page.

Exit codes: 0 when the page was written; 2 (a `UserError`) when there is nothing to read or nowhere
to write.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text

from pml_cli.config.reports import Report
from pml_cli.errors import UserError
from pml_cli.io import write_text
from pml_cli.law.fit_groups import GroupFit, audit, fit_group, with_columns
from pml_cli.law.law_json import fitted_laws
from pml_cli.law.observations import SIZE_AXES
from pml_cli.report import law_folder
from pml_cli.report.progress import CountDisplay
from pml_cli.report.run_notes import print_notes
from pml_cli.results.folder import writable_folder
from pml_cli.results.groups import group_slugs, split_groups
from pml_cli.results.read import finished_runs, read_failures

FILE_NAME = "report.html"


def run(paths: list[Path], settings: Report, console: Console) -> int:
    """Fit every group of runs below `paths` and write the page.

    Args:
        paths: folders of runs, searched at any depth.

    Returns:
        The exit code (above).

    Raises:
        UserError: a missing folder, no finished run, a page that cannot be written.
    """
    file = _file(paths, settings)
    notes: list[str] = []
    folders = shlex.join(str(path) for path in paths)
    runs = finished_runs(paths, f"`pml sweep`, then `pml report {folders}`", notes)
    print_notes(notes)
    groups = _fitted(with_columns(runs), settings, console)

    # Imported late: templates and plotly are not needed to refuse a folder.
    from pml_cli.report.page.page import render
    from pml_cli.report.page.section import Sources

    sources = Sources(
        paths=paths,
        runs=runs,
        groups=groups,
        laws={law.name: law for law in fitted_laws(law_folder.law_content(groups, settings))},
        failures={name: why for path in paths for name, why in read_failures(path).items()},
        shown_runs=settings.runs,
    )
    try:
        write_text(file, render(sources))
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error
    console.print(Text(f"written to {file}: open it in a browser"))
    return 0


def _file(paths: list[Path], settings: Report) -> Path:
    """Where the page goes: `out`, which may name a folder too.

    Raises:
        UserError: the folder cannot be written.
    """
    file = Path(settings.out) if settings.out else paths[0] / FILE_NAME
    if file.is_dir():
        file = file / FILE_NAME
    # A folder that does not exist is named by what reads the runs.
    if settings.out:
        writable_folder(file.parent)
    return file


def _fitted(runs: pd.DataFrame, settings: Report, console: Console) -> list[GroupFit]:
    """Every group of comparable runs, that with the most cells first."""
    axis = SIZE_AXES[settings.x]
    cells = audit(runs, settings.saturated_below, axis, unconverged=settings.unconverged)
    keyed_cells = sorted(split_groups(cells), key=lambda entry: -len(entry[1]))
    slugs = group_slugs([key for key, _ in keyed_cells])

    groups = []
    for (key, rows), slug in zip(keyed_cells, slugs, strict=True):
        with CountDisplay(console, "fitting", "bootstrap draws") as display:
            group = fit_group(
                key,
                rows,
                settings.saturated_below,
                settings.draws,
                display.show,
                axis=axis,
                unconverged=settings.unconverged,
            )
        groups.append(dataclasses.replace(group, slug=slug))
    return groups
